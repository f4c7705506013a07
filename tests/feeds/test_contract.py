"""Every feed keeps one contract: what is listed, what is decoded, what is stored without loss, what is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyproj
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import feeds_datasets, feeds_gridded, feeds_national
from builders.feed_case import FeedCase
from tasks.feeds import KINDS, Feed, FeedSource, FrameRejected, open_feed

CASES: dict[str, FeedCase] = {**feeds_national.CASES, **feeds_datasets.CASES, **feeds_gridded.CASES}
REASONS = {"truncated", "corrupt", "wrong_grid", "wrong_quantity", "oversized", "unreadable", "no_data"}
UNITS = {"rainfall_rate": "mm h-1", "equivalent_reflectivity_factor": "dBZ", "vil": "kg m-2"}
DAY = timedelta(days=1)


@dataclass(frozen=True, repr=False)
class Opened:
    """A case with its feed, its bytes and their frames."""

    case: FeedCase
    feed: Feed
    data: bytes
    frames: list[xr.DataArray]


@pytest.fixture(scope="module", params=sorted(CASES))
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    case = CASES[request.param]
    feed = case.open(tmp_path_factory.mktemp("feed"))
    data = case.build()
    return Opened(case, feed, data, feed.decode(data, case.key))


def rejection(decode: Callable[[bytes, str], object], data: bytes, key: str) -> FrameRejected:
    with pytest.raises(FrameRejected) as raised:
        decode(data, key)
    assert raised.value.reason in REASONS
    assert str(raised.value).startswith(f"{raised.value.reason}: ")
    return raised.value


def packed(feed: Feed, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Codes as the archive stores them."""
    packing = feed.packing
    codes = np.round((values.astype(np.float64) - packing.add_offset) / packing.scale_factor)
    return np.where(np.isnan(values), packing.fill, codes)


def unpacked(feed: Feed, codes: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Values as a CF reader sees them."""
    packing = feed.packing
    values = codes * packing.scale_factor + packing.add_offset
    return np.where(codes == packing.fill, np.nan, values).astype(np.float32)


def same(one: list[xr.DataArray], other: list[xr.DataArray]) -> bool:
    return len(one) == len(other) and all(a.identical(b) for a, b in zip(one, other, strict=True))


def test_every_kind_is_held_to_the_contract() -> None:
    assert {case.kind for case in CASES.values()} == set(KINDS)


# --- what is listed


def test_a_listing_is_sorted_within_its_window_and_reads_nothing(opened: Opened, tmp_path: Path) -> None:
    case = opened.case
    if case.spans:
        pytest.skip("many frames in one object: see the listing of spans")
    moments = [case.time + step * case.cadence for step in (2, -2, 1, 0, -1)]
    feed = case.open(tmp_path)
    for moment in moments:
        case.put(tmp_path, case.key_of(moment), b"no frame at all")
    for noise in ("README.txt", f"{case.key}.part", "20160928/.hidden", "frame_LATEST.bin"):
        case.put(tmp_path, noise, b"")
    found = feed.list(case.time - case.cadence, case.time + case.cadence)
    assert [item.time for item in found] == sorted(moments)[1:4]
    assert [item.key for item in found] == [case.key_of(moment) for moment in sorted(moments)[1:4]]
    assert {item.size for item in found} == {15}
    assert all(item.etag for item in found)
    assert len(feed.list(case.time - DAY, case.time + DAY)) == 5


def test_an_object_of_many_frames_is_listed_where_its_span_meets_the_window(opened: Opened, tmp_path: Path) -> None:
    case = opened.case
    if not case.spans:
        pytest.skip("one frame in an object")
    feed = case.open(tmp_path)
    case.put(tmp_path, case.key, b"no frame at all")
    assert [item.key for item in feed.list(case.times[0], case.times[0])] == [case.key]
    assert [item.time for item in feed.list(case.times[-1], case.times[-1])] == [case.time]
    assert feed.list(case.times[0] - timedelta(days=40), case.times[0] - timedelta(days=30)) == []


def test_nothing_is_listed_where_nothing_has_arrived(opened: Opened, tmp_path: Path) -> None:
    case = opened.case
    feed = case.open(tmp_path)
    assert feed.list(case.time - DAY, case.time + DAY) == []


def test_what_is_listed_is_read_whole_and_changes_its_etag_when_replaced(opened: Opened, tmp_path: Path) -> None:
    case = opened.case
    feed = case.open(tmp_path)
    case.put(tmp_path, case.key, opened.data)
    (item,) = feed.list(case.time - DAY, case.time + DAY)
    assert feed.read(item) == opened.data
    case.put(tmp_path, case.key, opened.data + b"more")
    (later,) = feed.list(case.time - DAY, case.time + DAY)
    assert later.etag != item.etag
    with pytest.raises(FrameRejected, match="truncated"):
        feed.read(item)


def test_an_object_above_the_ceiling_is_not_read(opened: Opened, tmp_path: Path) -> None:
    case = opened.case
    feed = case.open(tmp_path, max_bytes=1_000_000)
    case.put(tmp_path, case.key, bytes(1_000_001))
    (item,) = feed.list(case.time - DAY, case.time + DAY)
    with pytest.raises(FrameRejected, match="oversized"):
        feed.read(item)


def test_an_object_that_has_gone_is_no_bad_frame(opened: Opened, tmp_path: Path) -> None:
    case = opened.case
    feed = case.open(tmp_path)
    case.put(tmp_path, case.key, opened.data)
    (item,) = feed.list(case.time - DAY, case.time + DAY)
    (tmp_path / item.key).unlink()
    with pytest.raises(FileNotFoundError, match="under the feed's root"):
        feed.read(item)


# --- what is decoded


def test_values_are_those_written_down_by_hand(opened: Opened) -> None:
    expected = opened.case.expected()
    assert np.isnan(expected).any()
    assert np.nanmax(expected) > opened.case.dry
    values = np.stack([frame.values for frame in opened.frames])
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))
    np.testing.assert_array_equal(values == np.float32(opened.case.dry), expected == np.float32(opened.case.dry))
    np.testing.assert_allclose(values, expected, rtol=2e-6, atol=0)


def test_frames_carry_what_the_protocol_promises(opened: Opened) -> None:
    case = opened.case
    for frame in opened.frames:
        assert frame.dtype == np.float32
        assert frame.dims == ("y", "x")
        assert frame.name == case.quantity
        assert frame.attrs["units"] == UNITS[case.quantity]
        assert frame.attrs["standard_name"]
        assert frame.attrs["long_name"]
        assert frame.attrs["grid_mapping"] == "spatial_ref"
        assert isinstance(frame.attrs["clipped_cells"], int)
        assert isinstance(json.loads(frame.attrs["quality"]), dict)
        assert ("no_echo" in frame.attrs) == (case.quantity == "equivalent_reflectivity_factor")
        assert frame.attrs.get("no_echo", 0.0) == pytest.approx(case.dry)


def test_frames_are_in_the_order_of_their_true_times(opened: Opened) -> None:
    case = opened.case
    times = [np.datetime64(time.replace(tzinfo=None), "ns") for time in case.times]
    assert [frame["time"].values[()] for frame in opened.frames] == times
    assert {frame["time"].dtype for frame in opened.frames} == {np.dtype("datetime64[ns]")}
    leads = case.leads or (timedelta(0),) * len(times)
    assert [frame["lead_time"].values[()] for frame in opened.frames] == [np.timedelta64(lead, "ns") for lead in leads]
    assert {int(frame["member"]) for frame in opened.frames} == {0}


def test_coordinates_are_cell_centres_in_a_projection_a_stranger_can_read(opened: Opened) -> None:
    for frame in opened.frames[:1]:
        crs = pyproj.CRS.from_wkt(frame["spatial_ref"].attrs["crs_wkt"])
        assert frame["spatial_ref"].attrs["grid_mapping_name"] != "unknown"
        unit = {True: ("degrees_east", "degrees_north"), False: ("m", "m")}[crs.is_geographic]
        assert (frame["x"].attrs["units"], frame["y"].attrs["units"]) == unit
        for axis in ("x", "y"):
            steps = np.diff(frame[axis].values)
            assert frame[axis].dtype == np.float64
            assert frame[axis].attrs["axis"] == axis.upper()
            np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_frames_of_one_feed_do_not_share_what_a_caller_may_change(opened: Opened) -> None:
    frame = opened.feed.decode(opened.data, opened.case.key)[0]
    frame.attrs["mine"] = frame["x"].attrs["mine"] = frame["spatial_ref"].attrs["mine"] = "yes"
    frame.values[:] = 7.0
    assert same(opened.feed.decode(opened.data, opened.case.key), opened.frames)


def test_a_feed_travels_to_another_process(opened: Opened) -> None:
    twin: Feed = pickle.loads(pickle.dumps(opened.feed))
    assert twin.source == opened.feed.source
    assert twin.packing == opened.feed.packing
    assert same(twin.decode(opened.data, opened.case.key), opened.frames)


def test_licence_and_latency_are_stated(opened: Opened) -> None:
    assert opened.feed.licence.strip() == opened.feed.licence != ""
    assert timedelta(0) <= opened.feed.latency < timedelta(hours=1)


def test_a_quantity_that_the_source_does_not_have_is_refused(opened: Opened) -> None:
    source = opened.case.open(Path("nowhere-yet") if not opened.case.spans else Path(opened.feed.source.url)).source
    with pytest.raises(ValueError, match="sea_surface_temperature"):
        open_feed(FeedSource(source.kind, source.url, "sea_surface_temperature", source.cadence))


# --- what is stored without loss


def test_packing_gives_every_value_back_and_keeps_wet_dry_and_missing_apart(opened: Opened) -> None:
    feed, dry = opened.feed, np.float32(opened.case.dry)
    values = np.stack([frame.values for frame in opened.frames])
    codes = packed(feed, values)
    assert feed.packing.fill != 0
    assert codes.min() >= 0
    assert codes.max() <= np.iinfo(feed.packing.dtype).max
    assert not np.any((codes == feed.packing.fill) & ~np.isnan(values))
    back = unpacked(feed, codes)
    np.testing.assert_array_equal(np.isnan(back), np.isnan(values))
    np.testing.assert_array_equal(back > dry, values > dry)
    np.testing.assert_array_equal(back[values == dry], dry)
    levels = np.unique(values[~np.isnan(values)]).astype(np.float64)
    nearest = levels[np.abs(np.unique(back[~np.isnan(back)])[:, None] - levels).argmin(axis=1)]
    np.testing.assert_array_equal(nearest, levels)


# --- what is refused


@pytest.mark.parametrize("share", [0.0, 0.002, 0.1, 0.37, 0.6, 0.9, 0.999])
def test_a_truncated_object_is_rejected(opened: Opened, share: float) -> None:
    reason = rejection(opened.feed.decode, opened.data[: int(share * len(opened.data))], opened.case.key).reason
    assert reason in (("truncated", "corrupt") if share > 0.01 else ("truncated", "corrupt", "no_data", "unreadable"))


@pytest.mark.parametrize("missing", [1, 4, 9])
def test_an_object_without_its_last_bytes_is_rejected(opened: Opened, missing: int) -> None:
    rejection(opened.feed.decode, opened.data[:-missing], opened.case.key)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(noise=st.binary(max_size=300), head=st.integers(0, 40))
def test_random_bytes_are_rejected(opened: Opened, noise: bytes, head: int) -> None:
    rejection(opened.feed.decode, noise, opened.case.key)
    rejection(opened.feed.decode, opened.data[:head] + noise, opened.case.key)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=3))
def test_flipped_bits_are_rejected_or_change_nothing_that_a_checksum_covers(
    opened: Opened, flips: list[tuple[float, int]]
) -> None:
    broken = bytearray(opened.data)
    for share, bit in flips:
        broken[int(share * len(broken))] ^= 1 << bit
    try:
        frames = opened.feed.decode(bytes(broken), opened.case.key)
    except FrameRejected:
        return
    assert not opened.case.checksummed or same(frames, opened.frames)


def test_another_quantity_is_rejected(opened: Opened) -> None:
    assert rejection(opened.feed.decode, opened.case.wrong_quantity(), opened.case.key).reason == "wrong_quantity"


def test_another_grid_is_rejected(opened: Opened) -> None:
    assert rejection(opened.feed.decode, opened.case.wrong_grid(), opened.case.key).reason == "wrong_grid"


def test_a_decompression_bomb_is_rejected_before_it_is_inflated(opened: Opened, tmp_path: Path) -> None:
    case = opened.case
    feed = case.open(tmp_path, max_bytes=case.bomb_ceiling)
    bomb = case.bomb()
    assert len(bomb) < case.bomb_ceiling / 2
    assert rejection(feed.decode, bomb, case.key).reason == "oversized"
    assert same(feed.decode(opened.data, case.key), opened.frames)


def test_bytes_under_the_key_of_another_day_are_rejected(opened: Opened) -> None:
    case = opened.case
    if case.spans:
        pytest.skip("the key tells days or a sheet, not one time")
    rejection(opened.feed.decode, opened.data, case.key_of(case.time + timedelta(days=1)))
