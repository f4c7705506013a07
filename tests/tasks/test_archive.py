"""The archive's promises on a local path: slots, statuses, snapshots, epochs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from builders.archives import START, STEP, at, frame, received, spec, tiny_archive
from tasks.archive.archive import (
    Archive,
    ArchiveDamaged,
    ArchiveExists,
    ArchiveMissing,
    Rejection,
    SnapshotMissing,
    Status,
)
from tasks.archive.chunks import put_chunks
from tasks.archive.epochs import BLOCK, EpochMismatch


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return tiny_archive(tmp_path / "archive")


def test_a_frame_is_read_back_with_nan_where_unobserved_and_zero_where_dry(archive: Archive) -> None:
    archive.write([received(at(1), 2.5)])
    rain = archive.read(at(1), at(1)).rainfall_rate
    assert np.array_equal(rain.values[0], frame(at(1), 2.5).values, equal_nan=True)
    assert rain.dtype == np.float32
    assert rain.attrs["units"] == "mm h-1"


def test_slots_without_a_frame_are_nan_and_say_why(archive: Archive) -> None:
    archive.write([received(at(1))])
    data = archive.read(at(0), at(3))
    assert np.isnan(data.rainfall_rate.values[[0, 2, 3]]).all()
    assert data.status.values.tolist() == [Status.EXPECTED, Status.PRESENT, Status.EXPECTED, Status.EXPECTED]
    assert np.isnat(data.valid_time.values[[0, 2, 3]]).all()
    assert data.source_key.values.tolist() == ["", "20260101-000500.bin", "", ""]


def test_writing_the_same_bytes_again_makes_no_snapshot(archive: Archive) -> None:
    first = archive.write([received(at(0)), received(at(1))])
    assert first.snapshot == archive.snapshot()
    again = archive.write([received(at(0)), received(at(1))])
    assert (again.snapshot, again.written, again.unchanged) == (None, 0, 2)
    assert archive.snapshot() == first.snapshot


def test_the_true_time_is_kept_beside_the_slot(archive: Archive) -> None:
    archive.write([received(at(3, 40), arrived=at(3, 100))])
    data = archive.read(at(3), at(3))
    assert data.time.values[0] == np.datetime64("2026-01-01T00:15:00", "ns")
    assert data.valid_time.values[0] == np.datetime64("2026-01-01T00:15:40", "ns")
    assert data.received_at.values[0] == np.datetime64("2026-01-01T00:16:40", "ns")


def test_a_frame_off_the_grid_is_turned_away_and_recorded_once(archive: Archive) -> None:
    report = archive.write([received(at(3, 91))])
    assert [item.reason for item in report.rejected] == ["off_grid"]
    assert report.snapshot is not None
    assert archive.write([received(at(3, 91))]).snapshot is None
    assert len(archive.rejections(at(0), at(10))) == 1
    assert archive.latest() is None


def test_a_late_frame_goes_into_its_own_slot(archive: Archive) -> None:
    archive.write([received(at(5), arrived=at(5, 60))])
    report = archive.write([received(at(2), arrived=at(2, 901))])
    assert (report.written, report.late) == (1, 1)
    assert archive.read(at(2), at(5)).status.values.tolist() == [
        Status.LATE,
        Status.EXPECTED,
        Status.EXPECTED,
        Status.PRESENT,
    ]


def test_other_bytes_of_the_same_object_correct_the_slot_and_as_of_keeps_the_old(archive: Archive) -> None:
    before = archive.write([received(at(2), 1.0, key="k")])
    after = archive.write([received(at(2), 3.0, key="k", etag="e2")])
    assert (after.written, after.corrected) == (1, 1)
    assert archive.read(at(2), at(2)).status.values[0] == Status.CORRECTED
    assert archive.read(at(2), at(2)).rainfall_rate.values[0, 1, 1] == 3.0
    old = archive.read(at(2), at(2), as_of=before.snapshot)
    assert old.rainfall_rate.values[0, 1, 1] == 1.0
    assert old.attrs["archive_snapshot"] == before.snapshot
    assert archive.known(at(0), at(9)) == {("k", "e2")}


def test_of_two_frames_for_a_slot_the_nearer_wins_and_the_other_is_remembered(archive: Archive) -> None:
    report = archive.write([received(at(4, -80), 1.0, key="far"), received(at(4, 20), 2.0, key="near")])
    assert report.written == 1
    assert [(item.source_key, item.reason) for item in report.rejected] == [("far", "duplicate")]
    assert archive.read(at(4), at(4)).source_key.values[0] == "near"
    assert archive.known(at(0), at(9)) == {("near", "e1"), ("far", "e1")}


def test_a_farther_frame_never_displaces_a_nearer_one_but_a_nearer_does(archive: Archive) -> None:
    archive.write([received(at(4, 30), 1.0, key="middle")])
    archive.write([received(at(4, 60), 2.0, key="far")])
    assert archive.read(at(4), at(4)).source_key.values[0] == "middle"
    report = archive.write([received(at(4, 5), 3.0, key="near")])
    assert report.corrected == 1
    assert archive.read(at(4), at(4)).source_key.values[0] == "near"
    assert archive.known(at(0), at(9)) == {("near", "e1"), ("far", "e1"), ("middle", "e1")}
    assert archive.write([received(at(4, 5), 3.0, key="near")]).snapshot is None


def test_the_same_bytes_under_another_key_are_remembered_once(archive: Archive) -> None:
    archive.write([received(at(4), key="first")])
    report = archive.write([received(at(4), key="copy")])
    assert (report.written, report.unchanged) == (0, 1)
    assert ("copy", "e1") in archive.known(at(0), at(9))
    assert archive.write([received(at(4), key="copy")]).snapshot is None
    assert archive.write([received(at(4), key="first", etag="touched")]).snapshot is None


def test_a_rejected_object_marks_its_empty_slot_until_a_good_one_comes(archive: Archive) -> None:
    bad = Rejection("bad.bin", "e1", at(2), "truncated", "expected 10 bytes; got 3")
    archive.write([], [bad])
    assert archive.read(at(2), at(2)).status.values[0] == Status.REJECTED
    assert ("bad.bin", "e1") in archive.known(at(0), at(3))
    assert archive.write([], [bad]).snapshot is None
    archive.write([received(at(2), key="bad.bin", etag="e2")])
    assert archive.read(at(2), at(2)).status.values[0] == Status.PRESENT


def test_a_rejection_never_touches_a_slot_that_holds_a_frame(archive: Archive) -> None:
    archive.write([received(at(2))])
    archive.write([], [Rejection("other", "e", at(2), "corrupt", "")])
    assert archive.read(at(2), at(2)).status.values[0] == Status.PRESENT


def test_a_rejection_without_a_time_or_with_an_endless_message_is_kept(archive: Archive) -> None:
    archive.write([], [Rejection("a", "e", None, "corrupt", "ä" * 5000), Rejection("b", "e", at(1), "future", "")])
    assert [(item.source_key, item.time) for item in archive.rejections(at(0), at(9))] == [("a", None), ("b", at(1))]
    assert archive.read(at(1), at(1)).status.values[0] == Status.EXPECTED


def test_the_log_of_rejections_grows_past_its_first_block(archive: Archive) -> None:
    archive.write([], [Rejection(f"{n}", "e", at(n), "corrupt", "x") for n in range(5000)])
    archive.write([], [Rejection(f"{n}", "e", at(n), "corrupt", "x") for n in range(4990, 5010)])
    assert len(archive.rejections(at(0), at(6000))) == 5010
    assert [item.source_key for item in archive.rejections(at(4998), at(4999))] == ["4998", "4999"]


def test_a_frame_of_another_grid_or_quantity_is_turned_away(archive: Archive) -> None:
    other = received(at(1), shape=(4, 6), key="wide")
    moved = received(at(2), cell=500.0, key="fine")
    vil = replace(received(at(3), key="vil"), frame=frame(at(3)).rename("vil"))
    report = archive.write([other, moved, vil])
    assert [item.reason for item in report.rejected] == ["wrong_grid", "wrong_grid", "wrong_quantity"]
    assert report.written == 0


def test_a_value_without_a_code_rejects_its_frame_alone(archive: Archive) -> None:
    report = archive.write([received(at(1), 0.04, key="drizzle"), received(at(2), 1.0, key="good")])
    assert [item.reason for item in report.rejected] == ["out_of_range"]
    assert report.slots == (at(2),)


def test_a_key_too_long_to_store_rejects_its_frame(archive: Archive) -> None:
    report = archive.write([received(at(1), key="k" * 193)])
    assert [item.reason for item in report.rejected] == ["unreadable"]


def test_slots_whose_deadline_passed_are_marked_missing_and_a_frame_still_lands_late(archive: Archive) -> None:
    archive.write([received(at(1))])
    assert archive.mark(at(0), at(9), now=at(6)) == (at(0), at(2), at(3))
    assert archive.mark(at(0), at(9), now=at(6)) == ()
    status, times = archive.statuses(at(0), at(4))
    expected = [Status.MISSING, Status.PRESENT, Status.MISSING, Status.MISSING, Status.EXPECTED]
    assert status.tolist() == expected
    assert times[1] == np.datetime64("2026-01-01T00:05", "ns")
    assert archive.write([received(at(2))]).late == 1


def test_gaps_presence_and_ends(archive: Archive) -> None:
    assert archive.latest() is None
    assert archive.earliest() is None
    archive.write([received(at(n)) for n in (300, 301, 305, 900)])
    assert archive.latest() == at(900)
    assert archive.earliest() == at(300)
    assert archive.gaps(at(300), at(306)) == [(at(302), at(304)), (at(306), at(306))]
    present, times = archive.present(at(299), at(301))
    assert present.tolist() == [False, True, True]
    assert len(times) == 3


def test_a_window_off_the_axis_reads_as_expected(archive: Archive) -> None:
    data = archive.read(at(-3), at(-1))
    assert data.sizes["time"] == 3
    assert (data.status == Status.EXPECTED).all()
    far = archive.end()
    assert archive.read(far - STEP, far + 2 * STEP).sizes["time"] == 4


def test_the_axis_grows_for_a_frame_past_its_end_and_by_request(archive: Archive) -> None:
    end = archive.end()
    archive.extend(end + STEP)
    assert archive.end() == end + BLOCK * STEP
    snapshot = archive.snapshot()
    archive.extend(end)
    assert archive.snapshot() == snapshot
    beyond = archive.end() + 3 * STEP
    archive.write([received(at(0)), received(beyond, 4.0)])
    assert archive.latest() == beyond
    assert archive.read(beyond, beyond).rainfall_rate.values[0, 1, 1] == 4.0
    group = zarr.open_group(archive.repository.readonly_session("main").store, mode="r")
    times = np.asarray(group["epoch-0/time"][:])
    assert (np.diff(times) == 300).all()
    assert times.size % BLOCK == 0


def test_a_frame_before_the_axis_opens_an_epoch_in_front_and_reads_are_seamless(archive: Archive) -> None:
    archive.write([received(at(0), 1.0), received(at(1), 2.0)])
    archive.write([received(at(-2), 3.0), received(at(-BLOCK - 5), 4.0)])
    data = archive.read(at(-2), at(1))
    assert data.rainfall_rate.values[:, 1, 1].tolist()[0] == 3.0
    assert data.time.values[0] == np.datetime64("2025-12-31T23:50", "ns")
    assert (np.diff(data.time.values) == np.timedelta64(5, "m")).all()
    assert data.status.values.tolist() == [Status.PRESENT, Status.EXPECTED, Status.PRESENT, Status.PRESENT]
    assert archive.earliest() == at(-BLOCK - 5)
    assert len(archive.epochs()) == 2


def test_a_clock_gone_wild_does_not_grow_the_axis_by_centuries(archive: Archive) -> None:
    report = archive.write([received(datetime(2999, 1, 1, tzinfo=UTC))])
    assert [item.reason for item in report.rejected] == ["off_grid"]


def test_a_new_grid_opens_a_new_epoch_beside_the_old_one(archive: Archive) -> None:
    archive.write([received(at(1), 1.0)])
    fine = frame(at(10), cell=500.0)
    archive.open_epoch(spec(start=at(10), cadence=timedelta(minutes=1), y=fine.y.values, x=fine.x.values))
    new = at(10) + timedelta(minutes=1)
    report = archive.write([received(at(2), 2.0), received(new, 3.0, cell=500.0), received(new, 9.0, key="old grid")])
    assert (report.written, [item.reason for item in report.rejected]) == (2, ["wrong_grid"])
    assert archive.read(at(1), at(2)).rainfall_rate.values[:, 1, 1].tolist() == [1.0, 2.0]
    assert archive.read(at(10), new).x.values[1] - archive.read(at(10), new).x.values[0] == 500.0
    with pytest.raises(EpochMismatch, match="one grid and cadence"):
        archive.read(at(1), new)
    with pytest.raises(EpochMismatch, match="start after"):
        archive.open_epoch(spec(start=at(5)))
    _, times = archive.statuses(at(8), at(11))
    assert times.size == 2 + 6


def test_there_is_no_archive_until_one_is_created_and_then_only_one(tmp_path: Path) -> None:
    with pytest.raises(ArchiveMissing):
        Archive.open(str(tmp_path / "none"), {})
    tiny_archive(tmp_path / "a")
    with pytest.raises(ArchiveExists):
        tiny_archive(tmp_path / "a")
    assert Archive.open(f"file://{tmp_path / 'a'}", {}).spec.domain == "tiny"


def test_a_creation_that_died_half_way_is_finished(tmp_path: Path) -> None:
    from infra.repository import create_repository

    create_repository(str(tmp_path / "a"), {}, ("rainfall_rate",))
    with pytest.raises(ArchiveMissing, match="laid out"):
        Archive.open(str(tmp_path / "a"), {})
    tiny_archive(tmp_path / "a").write([received(at(0))])
    assert Archive.open(str(tmp_path / "a"), {}).latest() == at(0)


def test_the_spec_survives_the_store(tmp_path: Path) -> None:
    tiny_archive(tmp_path / "a", no_echo=-32.0)
    stored, given = Archive.open(str(tmp_path / "a"), {}).spec, spec(no_echo=-32.0)
    assert np.array_equal(stored.y, given.y)
    assert stored.grid.equals(given.grid)
    for name in ("domain", "cadence", "tolerance", "start", "packing", "licence", "no_echo", "late_after", "attrs"):
        assert getattr(stored, name) == getattr(given, name)


def test_a_snapshot_is_found_by_id_and_by_tag_and_a_wrong_one_is_named(archive: Archive) -> None:
    report = archive.write([received(at(0))])
    assert report.snapshot is not None
    archive.tag("train-1", report.snapshot)
    archive.write([received(at(1))])
    assert archive.latest(as_of="train-1") == at(0)
    assert archive.latest(as_of=report.snapshot) == at(0)
    with pytest.raises(SnapshotMissing, match="nothing-here"):
        archive.read(at(0), at(1), as_of="nothing-here")


def test_a_lost_chunk_is_an_error_not_a_dry_frame(archive: Archive) -> None:
    archive.write([received(at(0))])
    session = archive.repository.writable_session("main")
    zarr.core.sync.sync(session.store.delete("epoch-0/rainfall_rate/c/0/0/0"))
    session.commit("lose a chunk")
    with pytest.raises(ArchiveDamaged):
        archive.read(at(0), at(0))


def test_nothing_is_visible_before_the_commit(archive: Archive) -> None:
    session = archive.repository.writable_session("main")
    put_chunks(session.store, {"epoch-0/rainfall_rate/c/0/0/0": b"half"})
    assert archive.latest() is None


def test_anyone_with_xarray_can_read_it(archive: Archive) -> None:
    archive.write([received(at(0), 1.5), received(at(1), 2.5)])
    store = archive.repository.readonly_session("main").store
    data = xr.open_zarr(store, group="epoch-0", consolidated=False, chunks=None, zarr_format=3).isel(time=slice(0, 3))
    assert data.rainfall_rate.values[:2, 1, 1].tolist() == pytest.approx([1.5, 2.5])
    assert np.isnan(data.rainfall_rate.values[2]).all()
    assert data.time.values[1] == np.datetime64("2026-01-01T00:05", "ns")
    assert np.isnat(data.received_at.values[0])
    assert data.attrs["Conventions"] == "CF-1.11"
    assert data.status.attrs["flag_meanings"].split()[:2] == ["expected", "present"]
    assert data.spatial_ref.attrs["crs_wkt"]
    assert data.attrs["squall_schema"] == 1


def test_info_counts_gaps_and_snapshots(archive: Archive) -> None:
    archive.write([received(at(0)), received(at(3))])
    info = archive.info()
    assert (info.first, info.last) == (at(0), at(3))
    assert info.counts == {"present": 2, "expected": 2}
    assert info.gaps == ((at(1), at(2)),)
    assert info.bytes > 1000
    assert info.snapshots == len(archive.snapshots()) == 3
    assert info.snapshot == archive.snapshots(1)[0].id


def test_history_younger_than_a_day_is_never_collected(archive: Archive) -> None:
    now = datetime.now(UTC)
    for moment, keep in ((now, timedelta(hours=23)), (now + timedelta(days=10), timedelta(days=2))):
        with pytest.raises(ValueError, match="at least 1 day"):
            archive.expire(moment, keep)


def test_expiry_leaves_main_whole(archive: Archive) -> None:
    for number in range(3):
        archive.write([received(at(number))])
    assert archive.expire(START, timedelta(days=14)).snapshots == 0
    assert archive.expire(datetime.now(UTC), timedelta(hours=24)).snapshots == 0
    assert archive.read(at(0), at(2)).status.values.tolist() == [Status.PRESENT] * 3
