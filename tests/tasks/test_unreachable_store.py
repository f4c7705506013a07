"""A store or an object that is away just now: nothing is rejected for ever, and a nowcast comes all the same."""

from __future__ import annotations

import pickle
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from builders.archives import STEP, at
from builders.feeds_national import FMI_TIME, fmi_codes, fmi_key, fmi_pgm
from builders.nowcasts import moving_rain, newest_context, small_domain, write_archive
from builders.tiny_feed import tiny_domain
from builders.unreachable import store_away
from infra.settings import RegionSettings, Settings
from tasks.archive.archive import Archive, Status
from tasks.archive.ingestion import IngestReport, ingest
from tasks.archive.receiving import Job, receive
from tasks.feeds import Feed, FeedSource, FrameObject, open_feed
from tasks.feeds.listing import stored_objects
from tasks.forecasting.ladder import run_ladder
from tasks.rungs import choose_rungs


def feed_away(monkeypatch: pytest.MonkeyPatch, kind: str = "fmi") -> Feed:
    return open_feed(FeedSource(kind, "s3://radar/feed", "rainfall_rate", STEP, store_away(monkeypatch)))


@pytest.mark.parametrize("kind", ["fmi", "mrms"])
def test_a_feed_that_cannot_be_listed_ends_the_ingest_with_an_os_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = feed_away(monkeypatch, kind)
    domain = tiny_domain(tmp_path / "feed", tmp_path / "archive")
    with pytest.raises(OSError, match="expected an answer of the object store"):
        ingest(feed, domain, at(0), at(9), at(9))


def test_a_look_at_all_that_a_feed_holds_is_an_os_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="expected an answer of the object store"):
        stored_objects(feed_away(monkeypatch).source)


def test_an_object_in_a_store_that_is_away_is_a_failure_and_travels_between_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed = feed_away(monkeypatch)
    item = FrameObject(fmi_key(FMI_TIME), 100, "e1", FMI_TIME)
    parcel = receive(Job(feed, item, feed.packing, RegionSettings(), FMI_TIME + STEP))
    assert (parcel.rejections, parcel.frames) == ((), ())
    assert "expected an answer of the object store" in str(pickle.loads(pickle.dumps(parcel)).failure)


def test_an_object_that_cannot_be_found_just_now_is_no_rejection_and_a_later_run_takes_it(tmp_path: Path) -> None:
    root, times = tmp_path / "feed", (FMI_TIME, FMI_TIME + STEP)
    paths = [root / fmi_key(time) for time in times]
    paths[0].parent.mkdir(parents=True)
    paths[0].write_bytes(fmi_pgm(fmi_codes(), times[0]))
    paths[1].symlink_to(tmp_path / "nowhere")  # listed, and not there when it is read
    feed = open_feed(FeedSource("fmi", str(root), "rainfall_rate", STEP))
    domain = tiny_domain(root, tmp_path / "archive", kind="fmi")

    def run(now: datetime = times[1] + STEP) -> IngestReport:
        return ingest(feed, domain, times[0], times[1], now, backfill=True)

    first = run()
    assert (first.written, first.failed, first.rejected) == (1, (fmi_key(times[1]),), ())
    assert Archive.open(domain.archive.url, {}).rejections(times[0], times[1]) == []
    again = run(
        times[1] + timedelta(days=1)
    )  # all that is asked for: still no accident, and the slot says what is missing
    assert (again.skipped, again.failed) == (1, first.failed)
    status = Archive.open(domain.archive.url, {}).read(times[0], times[1])["status"]
    assert status.values.tolist() == [Status.PRESENT, Status.MISSING]
    (tmp_path / "nowhere").write_bytes(fmi_pgm(fmi_codes(), times[1]))
    later = run()
    assert (later.skipped, later.written, later.failed) == (1, 1, ())


def test_a_product_store_that_is_away_costs_a_nowcast_no_more_than_the_known_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = small_domain(tmp_path, lead_times=3)
    context = newest_context(domain, write_archive(domain, moving_rain(8, (32, 32))), 7)
    endpoint = str(store_away(monkeypatch)["endpoint_url"])
    settings = Settings(home=tmp_path, s3_endpoint=endpoint, s3_key="key", s3_secret="secret", _env_file=None)
    product = domain.product.model_copy(update={"url": "s3://bucket/store"})
    rungs = choose_rungs(domain.model_copy(update={"product": product}), settings, context)
    assert [(rung.name, rung.expected_s) for rung in rungs] == [("extrapolation", None), ("persistence", None)]
    assert run_ladder(context, rungs, domain, deadline=timedelta(minutes=1), seed=0).rung == "extrapolation"
