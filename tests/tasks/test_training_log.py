"""From a training to a registered version that MLflow itself can load and run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from builders.training import drifting_rain, samples, small_model
from infra.tracking import Tracking
from models.baselines.persistence import Persistence
from models.configuration import build_network
from models.forecaster import load_forecaster, save_checkpoint
from tasks.training.config import TrainConfig
from tasks.training.evaluation import evaluate
from tasks.training.log import log_evaluation, log_examples, log_provenance, pool, register_checkpoint
from tasks.verification.figures import side_by_side

mpl.use("agg")


@pytest.fixture
def tracking(tmp_path: Path) -> Tracking:
    return Tracking(f"sqlite:///{tmp_path}/tracking/mlflow.db")


def artifacts(folder: Path) -> set[str]:
    root = folder / "tracking" / "mlflow-artifacts"
    return {str(path.relative_to(root).as_posix()).partition("artifacts/")[2] for path in root.rglob("*.*")}


def test_a_registered_version_forecasts_in_physical_units_through_mlflow(tracking: Tracking, tmp_path: Path) -> None:
    import mlflow

    torch.manual_seed(0)
    model = small_model()
    network = build_network(model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder = save_checkpoint(tmp_path / "checkpoint", model, network.state_dict())
    with tracking.run("squall/tiny/training", "register") as log:
        version = register_checkpoint(tracking, "tiny-earthformer", folder, log, {"squall.archive_snapshot": "S"})
        assert register_checkpoint(tracking, "tiny-earthformer", folder, log, {}) == version
        changed = {key: value + 1 for key, value in network.state_dict().items()}
        other = save_checkpoint(tmp_path / "again", model, changed)
        assert register_checkpoint(tracking, "tiny-earthformer", other, log, {}).version == version.version + 1
        tracking.challenge("tiny-earthformer", version.version)
    assert version.aliases == ("challenger",)
    assert version.tags["squall.archive_snapshot"] == "S"
    tracking.promote("tiny-earthformer", version.version, "above persistence")
    context = drifting_rain(3)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking.uri)
    try:
        served = mlflow.pyfunc.load_model("models:/tiny-earthformer@champion")
        forecast = served.predict(context[None])
        twice = served.predict(context[None], params={"members": 2})
    finally:
        mlflow.set_tracking_uri(before)
    expected = load_forecaster(folder).forecast(context, 2)
    assert forecast.shape == (1, 1, 2, 16, 16)
    assert twice.shape == (1, 2, 2, 16, 16)
    np.testing.assert_allclose(forecast[0], expected, rtol=1e-5)
    assert served.metadata.signature.inputs.inputs[0].type == np.float32


def test_a_run_says_where_it_came_from_and_what_it_did(tracking: Tracking, tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    config = TrainConfig(domain="tiny", preset="earthformer/small-64", max_steps=1, thresholds=(0.5, 2.0))
    forecasters = {"persistence": Persistence(t_out=2), "again": Persistence(t_out=2)}
    evaluation = evaluate(forecasters, source, split="val", thresholds=config.thresholds, limit=6)
    with tracking.run("squall/tiny/training", "log") as log:
        log_provenance(log, config, source, code_revision="abc123", parent_model="tiny-earthformer@1")
        log_evaluation(log, evaluation, source, "val")
        log_examples(log, forecasters, source)
    run = tracking._client.get_run(log.run_id)
    assert run.data.tags["squall.archive_snapshot"] == "SNAPSHOT"
    assert run.data.tags["squall.code_revision"] == "abc123"
    assert run.data.tags["squall.parent_model"] == "tiny-earthformer@1"
    assert json.loads(run.data.tags["squall.split"])["windows"]["val"] == len(source.windows("val"))
    assert run.data.params["thresholds"] == "(0.5, 2.0)"
    curve = tracking._client.get_metric_history(log.run_id, "val_wet/persistence/csi_2mm")
    expected = pool(evaluation.counts["persistence"], wet=True).csi[:, 1]
    assert {point.step: point.value for point in curve} == pytest.approx(dict(zip((5, 10), expected, strict=True)))
    wanted = {"val/csi.png", "val_wet/pod.png", "val/mse.png", "examples/0.png", "split.json"}
    assert wanted <= artifacts(tmp_path)


def test_the_same_run_can_be_described_twice(tracking: Tracking, tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    config = TrainConfig(domain="tiny", preset="earthformer/small-64", max_steps=1)
    with tracking.run("squall/tiny/training", "log") as log:
        log_provenance(log, config, source, code_revision="abc123")
        log_provenance(log, replace(config), source, code_revision="abc123")


def test_pictures_show_rain_dry_and_unobserved_cells_in_different_colours(tmp_path: Path) -> None:
    field = np.zeros((1, 8, 8), np.float32)
    field[:, :, 3:5], field[:, :, 5:] = 4.0, np.nan
    side_by_side(field, {"persistence": field}, ["now"], "rainfall_rate").savefig(tmp_path / "picture.png", dpi=100)
    pixels = np.asarray(Image.open(tmp_path / "picture.png").convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    common = {tuple(int(v) for v in colour) for colour in colours[np.argsort(counts)[-3:]]}
    assert (255, 255, 255) in common
    assert (191, 191, 191) in common
    assert len(common) == 3
