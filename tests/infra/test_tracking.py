"""Runs and the registry on a real SQLite store; models from code, without pickles of ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from infra.tracking import ModelMissing, TensorSignature, Tracking

SIGNATURE = TensorSignature((-1, 3, -1, -1), (-1, -1, 2, -1, -1))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracking")
    Tracking(f"sqlite:///{folder}/mlflow.db")._client.search_experiments()  # the schema is created once: seconds
    return folder


@pytest.fixture
def tracking(store: Path) -> Tracking:
    return Tracking(f"sqlite:///{store}/mlflow.db")


def checkpoint(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"value": value}))
    save_file({"weight": np.full(3, value, np.float32)}, folder / "model.safetensors")
    return folder


def registered(tracking: Tracking, name: str, folder: Path, count: int) -> list[int]:
    versions = []
    with tracking.run("squall/test/training", "register") as log:
        for number in range(count):
            found = tracking.register(
                name, checkpoint(folder / str(number), float(number)), run_id=log.run_id, signature=SIGNATURE
            )
            versions.append(found.version)
    return versions


def test_metrics_are_kept_by_step_and_a_missing_score_is_not_logged_as_a_number(tracking: Tracking) -> None:
    with tracking.run("squall/test/training", "metrics") as log:
        log.params({"seed": 1})
        log.tags({"squall.preset": "earthformer/small-64"})
        log.metrics({"val/csi_1mm/lead_30min": 0.25, "val/far_1mm/lead_30min": float("nan")}, step=7)
    run = tracking._client.get_run(log.run_id)
    history = tracking._client.get_metric_history(log.run_id, "val/csi_1mm/lead_30min")
    assert [(point.step, point.value) for point in history] == [(7, 0.25)]
    assert "val/far_1mm/lead_30min" not in run.data.metrics
    assert run.data.tags["squall.preset"] == "earthformer/small-64"
    assert run.info.status == "FINISHED"


def test_a_run_that_raises_is_recorded_as_failed_and_can_be_continued(tracking: Tracking) -> None:
    with pytest.raises(RuntimeError), tracking.run("squall/test/training", "fails") as log:
        raise RuntimeError("the disk is full")
    assert tracking._client.get_run(log.run_id).info.status == "FAILED"
    with tracking.run("squall/test/training", "fails", run_id=log.run_id) as again:
        again.metrics({"train/loss": 0.5}, step=3)
    assert again.run_id == log.run_id
    assert tracking._client.get_run(log.run_id).info.status == "FINISHED"


def test_artifacts_lie_beside_the_database_and_not_in_the_working_folder(
    tracking: Tracking, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with tracking.run("squall/test/artifacts", "table") as log:
        log.table({"answer": 42}, "evidence.json")
    assert [json.loads(path.read_text()) for path in store.rglob("evidence.json")] == [{"answer": 42}]
    assert list(tmp_path.iterdir()) == []


def test_a_promotion_moves_champion_to_previous_and_a_rollback_returns_it(tracking: Tracking, tmp_path: Path) -> None:
    first, second = registered(tracking, "here-tiny", tmp_path, 2)
    tracking.promote("here-tiny", first, "above persistence")
    tracking.challenge("here-tiny", second)
    tracking.promote("here-tiny", second, "above the champion")
    assert tracking.version("here-tiny", "champion").version == second
    assert tracking.version("here-tiny", "previous").version == first
    assert tracking.find("here-tiny", "challenger") is None
    assert tracking.rollback("here-tiny", "skill degraded").version == first
    assert tracking.version("here-tiny", "previous").version == second
    assert [(event.event, event.version, event.replaced) for event in tracking.history("here-tiny")] == [
        ("promoted", first, None),
        ("promoted", second, first),
        ("rolled-back", first, second),
    ]


def test_promoting_the_champion_again_changes_nothing(tracking: Tracking, tmp_path: Path) -> None:
    (only,) = registered(tracking, "again-tiny", tmp_path, 1)
    for _ in range(2):
        tracking.promote("again-tiny", only, "above persistence")
    assert tracking.find("again-tiny", "previous") is None
    assert len(tracking.history("again-tiny")) == 1


def test_a_refused_challenger_loses_its_alias_and_the_reason_is_kept(tracking: Tracking, tmp_path: Path) -> None:
    first, second = registered(tracking, "refused-tiny", tmp_path, 2)
    tracking.promote("refused-tiny", first, "above persistence")
    tracking.challenge("refused-tiny", second)
    tracking.refuse("refused-tiny", second, "lower bound -0.01")
    assert tracking.find("refused-tiny", "challenger") is None
    assert tracking.version("refused-tiny", "champion").version == first
    assert tracking.history("refused-tiny")[-1].reason == "lower bound -0.01"


def test_a_download_gives_the_bytes_that_were_registered(tracking: Tracking, tmp_path: Path) -> None:
    (only,) = registered(tracking, "bytes-tiny", tmp_path / "in", 1)
    tracking.promote("bytes-tiny", only, "above persistence")
    folder = tracking.download("bytes-tiny", "champion", tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "in" / "0" / name).read_bytes()
    assert tracking.download("bytes-tiny", only, tmp_path / "out") == folder


def stored_value(folder: Path) -> object:
    return json.loads((folder / "config.json").read_text())["value"]


def test_version_1_of_another_server_is_not_taken_for_this_ones(tracking: Tracking, tmp_path: Path) -> None:
    servers = (tracking, Tracking(f"sqlite:///{tmp_path}/other/mlflow.db"))
    for value, server in enumerate(servers):
        with server.run("squall/test/training", "twin") as log:
            weights = checkpoint(tmp_path / str(value), float(value))
            server.register("twin-tiny", weights, run_id=log.run_id, signature=SIGNATURE)
    folders = [server.download("twin-tiny", 1, tmp_path / "out") for server in servers]
    assert [stored_value(folder) for folder in folders] == [0.0, 1.0]


def test_a_model_deleted_and_registered_anew_by_its_run_is_fetched_anew(tracking: Tracking, tmp_path: Path) -> None:
    with tracking.run("squall/test/training", "anew") as log:
        for value in (0.0, 1.0):
            weights = checkpoint(tmp_path / str(value), value)
            found = tracking.register("anew-tiny", weights, run_id=log.run_id, signature=SIGNATURE)
            assert found.version == 1
            assert stored_value(tracking.download("anew-tiny", 1, tmp_path / "out")) == value
            tracking._client.delete_registered_model("anew-tiny")


def test_a_model_nobody_registered_is_missing(tracking: Tracking, tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="nowhere-earthformer@champion"):
        tracking.download("nowhere-earthformer", "champion", tmp_path)


def test_no_pickle_is_stored_with_a_version(tracking: Tracking, store: Path, tmp_path: Path) -> None:
    registered(tracking, "plain-tiny", tmp_path, 1)
    assert [path.name for path in store.rglob("*.pkl")] == []


def test_a_run_is_found_by_its_tag_the_newest_first(tracking: Tracking) -> None:
    for _ in range(2):
        with tracking.run("squall/test/training", "tagged", tags={"squall.request": "one"}) as log:
            pass
    assert tracking.find_tagged("squall/test/training", "squall.request", "one") == log.run_id
    assert tracking.find_tagged("squall/test/training", "squall.request", "two") is None
