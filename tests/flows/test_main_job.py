"""The main job as its users meet it: frames become an archive, a judged model, products and scores, flow by flow."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from infra.objects import ObjectStore
from infra.settings import Domain, Settings, load_domain
from infra.tracking import Tracking
from models.checkpoint import WEIGHTS_FILE
from tasks.cycle import open_archive, product_store
from tasks.feeds.simulated import simulated_objects
from tasks.products.manifest import verify_product
from tasks.products.publishing import read_latest
from tasks.products.report import Report, read_report
from tasks.training.resumption import training_folder

pytestmark = pytest.mark.slow

DOMAIN, MODEL = "simulated", "simulated-earthformer"
START = datetime(2025, 6, 1, 12, tzinfo=UTC)
CADENCE = timedelta(minutes=2)
FRAMES, LEADS = 90, 6
NEWEST = START + (FRAMES - 1) * CADENCE
WET = 0.1  # mm h-1


@dataclass(frozen=True)
class Issue:
    """One nowcast: the state its flow ended in, its result, and the pointer's bytes and the store's keys after it."""

    state: Any
    result: dict[str, Any]
    pointer: bytes
    keys: frozenset[str]


@dataclass(frozen=True)
class Day:
    """What every flow of the day answered, in the order of the fields."""

    settings: Settings
    place: Domain
    ingested: dict[str, Any]
    ingested_again: dict[str, Any]
    trained: dict[str, Any]
    asked: Issue
    repeated: Issue
    ladder: Issue
    stale: Issue
    refused: Issue
    unlikely: Issue
    verified: dict[str, Any]
    scores: frozenset[str]
    verified_again: dict[str, Any]
    scores_again: frozenset[str]
    ensemble: dict[str, Any]
    ensemble_again: dict[str, Any]

    @property
    def store(self) -> ObjectStore:
        """Where the products are."""
        return product_store(self.place, self.settings)

    def path(self, issue: Issue) -> str:
        """A product's folder below the store's root."""
        return str(issue.result["path"]).removeprefix(f"{self.place.product.url}/")

    def report(self, issue: Issue) -> Report:
        """A product's report."""
        return read_report(self.store, self.path(issue))

    def product(self, issue: Issue) -> xr.Dataset:
        """A product as any user opens it."""
        (folder,) = Path(issue.result["path"]).glob("*.zarr")
        return xr.open_zarr(folder)


def period(first: int, last: int) -> dict[str, str]:
    return {"start": (START + first * CADENCE).isoformat(), "end": (START + last * CADENCE).isoformat()}


def keys(store: ObjectStore, prefix: str) -> frozenset[str]:
    return frozenset(item.key for item in store.list(prefix))


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory, prefect_server: None, own_environment: None) -> Day:
    """Three hours of frames, a model of four steps, nowcasts with and without the newest frames, two verifications."""
    from flows.ingest import ingest
    from flows.nowcast import nowcast
    from flows.train import train
    from flows.train_prediff import train_prediff
    from flows.verify import verify

    os.environ["SQUALL_HOME"] = str(tmp_path_factory.mktemp("home"))
    settings = Settings(_env_file=None)
    place = load_domain(DOMAIN, settings)
    store = product_store(place, settings)
    frames = list(simulated_objects(START, FRAMES + LEADS, CADENCE, (64, 64), 2000.0, seed=7))

    def appear(objects: Sequence[tuple[datetime, str, bytes]]) -> None:
        bucket = ObjectStore(place.feed.url, {})
        for _, key, data in objects:
            bucket.write(key, data)

    def issue(minutes: float, model: str | None = None, seed: int = 0) -> Issue:
        at = (NEWEST + timedelta(minutes=minutes)).isoformat()
        state = nowcast(domain=DOMAIN, at=at, model=model, seed=seed, return_state=True)
        result = state.result() if state.is_completed() else {}
        pointer = store.read(f"products/{DOMAIN}/latest.json")
        return Issue(state, result, pointer, keys(store, f"products/{DOMAIN}/"))

    def score() -> dict[str, Any]:
        appear(frames[FRAMES:])
        ingest(domain=DOMAIN, **period(FRAMES, FRAMES + LEADS - 1))
        found: dict[str, Any] = verify(domain=DOMAIN, **period(0, FRAMES + LEADS))
        return found

    def draw(**asked: Any) -> dict[str, Any]:
        found: dict[str, Any] = train_prediff(domain=DOMAIN, preset="prediff/tiny", **asked)
        return found | {"run_id": Tracking(settings.tracking_uri).version(found["model"], found["version"]).run_id}

    appear(frames[:FRAMES])
    history = period(0, FRAMES - 1)
    return Day(
        settings=settings,
        place=place,
        ingested=ingest(domain=DOMAIN, **history),
        ingested_again=ingest(domain=DOMAIN, **history),
        trained=train(domain=DOMAIN, max_steps=4),
        asked=issue(1.5, f"{MODEL}/1"),
        repeated=issue(1.5, f"{MODEL}/1"),
        ladder=issue(1.6),
        stale=issue(9.5),
        refused=issue(25.0),
        unlikely=issue(1.7, f"{MODEL}/99", seed=1),
        verified=score(),
        scores=keys(store, "scores/"),
        verified_again=score(),
        scores_again=keys(store, "scores/"),
        ensemble=(ensemble := draw(max_steps=2, windows=16)),
        ensemble_again=draw(resume=ensemble["run_id"], stage="alignment"),
    )


def test_every_frame_of_the_feed_is_archived_once(day: Day) -> None:
    assert (day.ingested["found"], day.ingested["written"], day.ingested["rejected"]) == (FRAMES, FRAMES, [])
    assert (day.ingested["first"], day.ingested["last"]) == (START.isoformat(), NEWEST.isoformat())
    assert (day.ingested_again["known"], day.ingested_again["written"]) == (FRAMES, 0)
    stored = open_archive(day.place, day.settings).read(START, NEWEST)["rainfall_rate"]
    assert stored.sizes == {"time": FRAMES, "y": 64, "x": 64}
    assert bool((stored >= WET).any(("y", "x")).all())


def test_a_training_is_registered_and_judged_with_a_reason(day: Day) -> None:
    assert (day.trained["model"], day.trained["version"], day.trained["steps"]) == (MODEL, 1, 4)
    assert day.trained["archive_snapshot"] == day.ingested["archive_snapshot"]
    verdict = "promoted: " if day.trained["promoted"] else "not promoted: "
    assert day.trained["verdict"].startswith(verdict)
    tracking = Tracking(day.settings.tracking_uri)
    version = tracking.version(MODEL, 1)
    assert version.aliases == (("champion",) if day.trained["promoted"] else ())
    assert version.tags["squall.ladder_rank"] == day.trained["ladder_rank"]
    assert [event.reason for event in tracking.history(MODEL)] == [day.trained["verdict"]]


def test_a_prediff_is_trained_judged_and_taken_up_again_on_its_own_snapshot(day: Day) -> None:
    first, again = day.ensemble, day.ensemble_again
    assert (first["model"], first["version"]) == ("simulated-prediff", 1)
    registered = Tracking(day.settings.tracking_uri).download(again["model"], again["version"], day.settings.root / "x")
    ended_with = training_folder(day.settings, str(again["run_id"])) / "best" / WEIGHTS_FILE
    assert (registered / WEIGHTS_FILE).read_bytes() == ended_with.read_bytes()
    assert first["verdict"].startswith("promoted: " if first["promoted"] else "not promoted: ")
    assert (again["run_id"], again["archive_snapshot"]) == (first["run_id"], first["archive_snapshot"])
    kept = open_archive(day.place, day.settings).repository.list_tags()
    assert f"train-{first['run_id']}" in kept


def test_a_product_opens_with_xarray_alone_and_it_still_rains(day: Day) -> None:
    product = day.product(day.asked)
    mean = product["rainfall_rate_mean"]
    assert mean.sizes == {"lead_time": LEADS, "y": 64, "x": 64}
    leads = np.datetime64(NEWEST.replace(tzinfo=None), "ns") + np.arange(1, LEADS + 1) * np.timedelta64(CADENCE)
    np.testing.assert_array_equal(product["time"], leads)
    assert bool((mean >= WET).any(("y", "x")).all())
    unseen = open_archive(day.place, day.settings).read(NEWEST, NEWEST)["rainfall_rate"].isnull().values[0]
    assert 0 < unseen.mean() < 0.5
    assert mean.isnull().values[:, unseen].all()


def test_a_report_quotes_snapshot_model_and_rung(day: Day) -> None:
    report = day.report(day.asked)
    assert report.archive_snapshot == day.ingested["archive_snapshot"]
    run_id = Tracking(day.settings.tracking_uri).version(MODEL, 1).run_id
    assert (report.model.name, report.model.version, report.model.run_id) == (MODEL, "1", run_id)
    assert (report.rung, report.verdict, report.skipped) == ("earthformer", "complete", ())
    assert report.init_time == NEWEST
    assert len(report.frames) == day.place.context.frames
    assert verify_product(day.store, day.path(day.asked)) == []


def test_the_pointer_names_the_newest_product(day: Day) -> None:
    for one in (day.asked, day.ladder, day.stale):
        assert one.result["latest"]
        assert json.loads(one.pointer)["path"] == day.path(one)


def test_the_same_nowcast_again_publishes_nothing_twice(day: Day) -> None:
    assert not day.asked.result["published_before"]
    assert day.repeated.result["published_before"]
    assert day.repeated.result["path"] == day.asked.result["path"]
    assert (day.repeated.keys, day.repeated.pointer) == (day.asked.keys, day.asked.pointer)


def test_without_a_model_above_extrapolation_the_ladder_answers_with_extrapolation(day: Day) -> None:
    report = day.report(day.ladder)
    above = day.trained["promoted"] and day.trained["ladder_rank"] == "above"
    assert report.rung == ("earthformer" if above else "extrapolation")
    if not day.trained["promoted"]:
        assert [(entry.rung, entry.kind) for entry in report.skipped] == [("earthformer", "ModelMissing")]


def test_an_unknown_version_costs_its_rung_and_the_product_says_so(day: Day) -> None:
    report = day.report(day.unlikely)
    assert report.rung == "extrapolation"
    assert [entry.kind for entry in report.skipped] == ["ModelMissing"]
    assert f"{MODEL}@99" in report.skipped[0].reason


def test_a_nowcast_without_the_newest_frames_is_stale_and_never_dry(day: Day) -> None:
    report = day.report(day.stale)
    assert report.verdict == "stale"
    assert any("newest expected frame is missing" in reason for reason in report.reasons)
    assert report.init_time == NEWEST
    mean = day.product(day.stale)["rainfall_rate_mean"]
    assert bool((mean >= WET).any(("y", "x")).all())


def test_a_refused_nowcast_fails_with_its_reason_and_leaves_the_pointer_alone(day: Day) -> None:
    assert day.refused.state.is_failed()
    assert "context refused: the newest frame is 25 min old; at most 15 min are allowed" in day.refused.state.message
    assert (day.refused.keys, day.refused.pointer) == (day.stale.keys, day.stale.pointer)


def test_an_older_moment_is_published_and_does_not_take_the_pointer_back(day: Day) -> None:
    assert day.unlikely.state.is_completed()
    assert not day.unlikely.result["latest"]
    assert day.unlikely.pointer == day.stale.pointer
    latest = read_latest(day.store, DOMAIN)
    assert latest is not None
    assert latest.path == day.path(day.stale)


def test_every_product_is_scored_once_beside_both_baselines(day: Day) -> None:
    issued = {day.path(one) for one in (day.asked, day.ladder, day.stale, day.unlikely)}
    assert (day.verified["scored"], day.verified["skipped"], day.verified["superseded"]) == (len(issued), [], 0)
    assert day.verified["rows"] > 0
    assert day.verified["products"] == len(issued)
    for line in day.verified["csi"]:
        assert {"product", "extrapolation", "persistence"} <= line.keys()
    assert (day.verified_again["scored"], day.verified_again["rows"]) == (0, 0)
    assert day.scores_again == day.scores != frozenset()
    assert day.verified_again["csi"] == day.verified["csi"]
