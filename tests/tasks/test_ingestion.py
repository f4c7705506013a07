"""Ingestion: every good object once, every bad one recorded, and nothing lost when it is killed or repeated."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from builders.archives import STEP, at
from builders.tiny_feed import TinyFeed, put, tiny_domain, tiny_feed
from infra.settings import Domain, RegionSettings, Settings
from tasks.archive.archive import Archive, EpochMismatch, Status
from tasks.archive.ingestion import IngestReport, ingest
from tasks.archive.receiving import Job, receive

NOW = at(1000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "feed"


@pytest.fixture
def domain(folder: Path, tmp_path: Path) -> Domain:
    return tiny_domain(folder, tmp_path / "archive")


def run(folder: Path, domain: Domain, now: datetime = NOW, **options: object) -> IngestReport:
    """Everything in the feed up to `now`."""
    return ingest(tiny_feed(folder), domain, at(-10_000), now, now, **options)  # type: ignore[arg-type]


def opened(domain: Domain) -> Archive:
    return Archive.open(domain.archive.url, {})


def test_every_object_is_archived_once(folder: Path, domain: Domain) -> None:
    for number in range(10):
        put(folder, at(number), number + 1)
    first = run(folder, domain, backfill=True, batch=4)
    assert (first.found, first.skipped, first.written, first.rejected) == (10, 0, 10, ())
    assert (first.first, first.last) == (at(0), at(9))
    assert len(opened(domain).snapshots()) == 2 + 3 + 1  # initial, layout; 4 + 4 + 2 frames; slots marked missing
    again = run(folder, domain, backfill=True)
    assert (again.found, again.skipped, again.written, again.snapshot) == (10, 10, 0, first.snapshot)
    rain = opened(domain).read(at(0), at(9)).rainfall_rate.values[:, 1, 1]
    assert rain.tolist() == list(range(1, 11))


def test_a_bad_object_is_recorded_the_rest_goes_on_and_only_a_new_version_is_tried_again(
    folder: Path, domain: Domain
) -> None:
    put(folder, at(1))
    bad = put(folder, at(2), text="2026-01-01T00:10:00+00:00 1")
    put(folder, at(3))
    report = run(folder, domain)
    assert report.written == 2
    assert [(item.source_key, item.reason) for item in report.rejected] == [(bad.name, "truncated")]
    assert opened(domain).read(at(2), at(2)).status.values[0] == Status.REJECTED
    assert run(folder, domain).skipped == 3
    put(folder, at(2), 5.0)
    assert run(folder, domain).written == 1
    assert opened(domain).read(at(2), at(2)).rainfall_rate.values[0, 1, 1] == 5.0


def test_a_feed_of_bad_objects_alone_makes_no_archive_and_says_so(folder: Path, domain: Domain) -> None:
    put(folder, at(2), text="nonsense")
    report = run(folder, domain)
    assert (report.written, report.snapshot) == (0, None)
    assert [item.reason for item in report.rejected] == ["truncated"]


def test_a_frame_from_the_future_is_rejected_and_taken_when_its_time_has_come(folder: Path, domain: Domain) -> None:
    put(folder, at(1))
    put(folder, at(9), name=at(2))
    report = run(folder, domain, now=at(3))
    assert [item.reason for item in report.rejected] == ["future"]
    assert report.written == 1
    assert run(folder, domain, now=at(4)).skipped == 2
    assert run(folder, domain, now=at(9)).written == 1


def test_forecasts_are_never_archived_as_observations(folder: Path, domain: Domain) -> None:
    put(folder, at(1), text=f"{at(1).isoformat()} 1;{at(2).isoformat()} 2 lead=5.")
    put(folder, at(3), text=f"{at(3).isoformat()} 1 lead=5.")
    report = run(folder, domain)
    assert (report.written, [item.reason for item in report.rejected]) == (1, ["no_data"])


def test_all_frames_of_an_object_land_in_one_commit(folder: Path, domain: Domain) -> None:
    lines = ";".join(f"{at(number).isoformat()} {number}" for number in range(1, 30))
    put(folder, at(1), text=f"{lines}.")
    put(folder, at(50))
    report = run(folder, domain, batch=10, backfill=True)
    assert report.written == 30
    assert [len(s.message) > 0 for s in opened(domain).snapshots()] == [True] * 5
    assert run(folder, domain).skipped == 2


def test_a_replayed_past_shows_a_frame_when_it_would_have_come(folder: Path, domain: Domain) -> None:
    for number in range(4):
        put(folder, at(number))
    late = timedelta(minutes=7)
    assert run(folder, domain, now=at(2), latency=late).found == 1
    assert run(folder, domain, now=at(3), latency=late).written == 1
    received = opened(domain).read(at(1), at(1)).received_at.values[0]
    assert received == np.datetime64("2026-01-01T00:12", "ns")
    assert opened(domain).read(at(1), at(1)).status.values[0] == Status.PRESENT


def test_live_frames_carry_their_receipt_and_old_ones_are_late(folder: Path, domain: Domain) -> None:
    put(folder, at(1))
    put(folder, at(9))
    report = run(folder, domain, now=at(10))
    assert (report.written, report.late) == (2, 1)
    assert report.missing == 7  # slots 0 and 2 to 7; 8 and 10 are not due yet
    assert opened(domain).read(at(9), at(9)).received_at.values[0] == np.datetime64("2026-01-01T00:50", "ns")


def test_a_backfill_before_the_first_frame_lands(folder: Path, domain: Domain) -> None:
    put(folder, at(1))
    run(folder, domain, backfill=True)
    put(folder, at(-500), 7.0)
    assert run(folder, domain, backfill=True).written == 1
    assert opened(domain).read(at(-500), at(-500)).rainfall_rate.values[0, 1, 1] == 7.0


def test_a_region_is_cut_out_and_block_means_stay_lossless(folder: Path, domain: Domain) -> None:
    put(folder, at(1), 0.1)
    region = RegionSettings(coarsen=2)
    run(folder, domain.model_copy(update={"region": region}))
    data = opened(domain).read(at(1), at(1)).rainfall_rate
    assert data.shape == (1, 2, 2)
    # (NaN, 0, 0.1, 0.1) has three observed cells: their mean, neither dry nor missing
    assert data.values[0, 0, 0] == pytest.approx(0.2 / 3, abs=0.0126)
    assert data.values[0, 0, 0] > 0


def test_another_grid_is_refused_unless_the_domain_allows_an_epoch(
    folder: Path, domain: Domain, tmp_path: Path
) -> None:
    put(folder, at(1))
    run(folder, domain)
    put(folder, at(2), text=f"{at(2).isoformat()} 1 cell=500.")
    assert [item.reason for item in run(folder, domain).rejected] == ["wrong_grid"]
    put(folder, at(3), text=f"{at(3).isoformat()} 6 cell=500.")
    put(folder, at(4), text=f"{at(4).isoformat()} 7 cell=500.")
    allowed = tiny_domain(folder, domain.archive.url, options={"on_grid_change": "open_epoch"})
    report = run(folder, allowed)
    assert report.written == 2
    assert opened(domain).read(at(3), at(4)).rainfall_rate.values[:, 1, 1].tolist() == [6.0, 7.0]
    assert len(opened(domain).epochs()) == 2
    with pytest.raises(EpochMismatch):
        opened(domain).read(at(1), at(4))


def test_another_cadence_is_refused_unless_the_domain_allows_an_epoch(folder: Path, domain: Domain) -> None:
    put(folder, at(1))
    run(folder, domain)
    put(folder, at(2) + timedelta(minutes=1), 3.0)
    faster = {"cadence": timedelta(minutes=1), "tolerance": timedelta(seconds=20)}
    with pytest.raises(ValueError, match="cadence"):
        run(folder, tiny_domain(folder, domain.archive.url, **faster))
    allowed = tiny_domain(folder, domain.archive.url, **faster, options={"on_grid_change": "open_epoch"})
    assert run(folder, allowed).written == 1
    assert opened(domain).spec.cadence == timedelta(minutes=1)


class Unreachable(TinyFeed):
    """Some objects cannot be read just now."""

    def read(self, item: object) -> bytes:
        if "000500" in item.key:  # type: ignore[attr-defined]
            raise OSError("connection reset")
        return super().read(item)  # type: ignore[arg-type]


def test_an_unreachable_object_is_neither_stored_nor_rejected(folder: Path, domain: Domain) -> None:
    put(folder, at(1))
    feed = Unreachable(tiny_feed(folder).source)
    with pytest.raises(OSError, match="reset"):
        ingest(feed, domain, at(0), at(9), NOW)
    put(folder, at(2))
    report = ingest(feed, domain, at(0), at(9), NOW)
    assert (report.written, report.failed) == (1, ("20260101-000500.txt",))
    assert run(folder, domain).written == 1


def test_the_projects_parallel_map_is_taken(folder: Path, domain: Domain) -> None:
    from infra.compute import mapper

    for number in range(5):
        put(folder, at(number))
    with mapper(Settings()) as parallel:
        assert run(folder, domain, map=parallel).written == 5


def test_what_a_worker_gets_and_gives_travels_between_processes(folder: Path, domain: Domain) -> None:
    put(folder, at(1), 2.0)
    feed = tiny_feed(folder)
    job = Job(feed, feed.list(at(0), at(9))[0], feed.packing, domain.region, NOW)
    parcel = pickle.loads(pickle.dumps(receive(pickle.loads(pickle.dumps(job)))))
    assert [frame.time for frame in parcel.frames] == [at(1)]
    assert parcel.nbytes < 200
    assert job.key == parcel.item.key


def _ingest_in_a_process(folder: str, url: str, first: int, last: int) -> int:
    domain = tiny_domain(Path(folder), url)
    return ingest(tiny_feed(Path(folder)), domain, at(first), at(last), NOW, backfill=True, batch=5).written


@pytest.mark.slow
def test_three_processes_that_start_at_once_lose_nothing(folder: Path, domain: Domain) -> None:
    for number in range(60):
        put(folder, at(number), 1 + number)
    windows = [(0, 25), (20, 45), (15, 59)]
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_ingest_in_a_process, str(folder), domain.archive.url, *window) for window in windows]
        written = sum(job.result(timeout=120) for job in jobs)
    assert written == 60
    data = opened(domain).read(at(0), at(59))
    assert data.rainfall_rate.values[:, 1, 1].tolist() == [1 + number for number in range(60)]
    assert (data.status == Status.PRESENT).all()
    assert len(set(data.source_key.values.tolist())) == 60


def test_a_feed_that_has_nothing_reports_nothing(folder: Path, domain: Domain) -> None:
    folder.mkdir()
    report = run(folder, domain)
    assert (report.found, report.written, report.snapshot) == (0, 0, None)


@pytest.mark.data
def test_real_frames_come_back_exactly_as_decoded(tmp_path: Path) -> None:
    from tasks.feeds import FeedSource, open_feed

    root = Settings().data / "radar" / "fmi_pgm"
    if not root.exists():
        pytest.skip(f"no real observations under {root.parent} (SQUALL_DATA)")
    feed = open_feed(FeedSource("fmi", str(root.resolve()), "rainfall_rate", STEP))
    domain = tiny_domain(root, tmp_path / "archive", kind="fmi")
    start = datetime(2016, 9, 28, 14, 45, tzinfo=UTC)
    report = ingest(feed, domain, start, start + 2 * STEP, NOW, backfill=True)
    assert (report.found, report.written, report.rejected) == (3, 3, ())
    stored = opened(domain).read(start, start + 2 * STEP).rainfall_rate.values
    for number, item in enumerate(feed.list(start, start + 2 * STEP)):
        decoded = feed.decode(feed.read(item), item.key)[0].values
        assert np.array_equal(np.isnan(stored[number]), np.isnan(decoded))
        assert np.array_equal(stored[number] > 0, decoded > 0)
        np.testing.assert_allclose(stored[number], decoded, atol=2.0**-23)
