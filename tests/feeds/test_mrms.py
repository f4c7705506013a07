"""MRMS: flags, grid, keys, layouts, and every way that its bytes may be broken."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from builders.feeds_gridded import CASES, MOMENT, RAIN, RAIN_CODES, RATE, VIL_CODES, grib2
from tasks.feeds import Feed, FeedSource, FrameRejected, open_feed
from tasks.feeds.mrms import PRODUCTS, product_of, time_of_key
from tasks.grid import cell_size_m

KEY = CASES["mrms"].key
FLAT = "PrecipRate_00.00_20240506-235840.grib2"


def feed(root: Path | str = "unused", **options: str) -> Feed:
    cadence = timedelta(minutes=2)
    return open_feed(FeedSource("mrms", str(root), "rainfall_rate", cadence, options=options, max_bytes=10_000_000))


def rejection(data: bytes, key: str = KEY, **options: str) -> str:
    with pytest.raises(FrameRejected) as caught:
        feed(**options).decode(data, key)
    return caught.value.reason


def rain(**changes: object) -> bytes:
    return grib2(RAIN_CODES, RATE, reference=-30.0, **changes)  # type: ignore[arg-type]


def test_plain_and_gzipped_bytes_give_the_same_frame() -> None:
    plain, packed = (feed().decode(data, KEY)[0] for data in (rain(), gzip.compress(rain())))
    assert plain.identical(packed)
    np.testing.assert_array_equal(plain.values, RAIN)


def test_coordinates_are_cell_centres_from_north_to_south_and_west_to_east() -> None:
    frame = feed().decode(rain(), KEY)[0]
    np.testing.assert_allclose(frame["y"].values, [54.995, 54.985, 54.975], atol=1e-9)
    np.testing.assert_allclose(frame["x"].values, [-129.995, -129.985, -129.975, -129.965], atol=1e-9)
    assert frame["spatial_ref"].attrs["grid_mapping_name"] == "latitude_longitude"
    assert frame["spatial_ref"].attrs["semi_major_axis"] == 6_378_160.0
    assert frame["time"].values == np.datetime64("2024-05-06T23:58:40", "ns")


def test_a_cell_is_its_ground_size_at_the_grids_latitude() -> None:
    # 0.01 degrees at 54.985 N: 1113.4 m north, 640.3 m east; the square with that area has 844 m.
    assert cell_size_m(feed().decode(rain(), KEY)[0]) == pytest.approx(844.4, abs=1.0)


def test_missing_reflectivity_is_no_echo_and_no_coverage_is_not_observed() -> None:
    case = CASES["mrms composite"]
    frame = case.open(Path("unused")).decode(case.build(), case.key)[0]
    assert frame.attrs["no_echo"] == -33.0
    assert int(np.isnan(frame.values).sum()) == 2
    assert int((frame.values == -33.0).sum()) == 2


def test_missing_vil_is_unknown_not_zero() -> None:
    case = CASES["mrms vil"]
    frame = case.open(Path("unused")).decode(case.build(), case.key)[0]
    assert np.isnan(frame.values[VIL_CODES == 20]).all()


def test_joined_messages_give_their_frames_oldest_first() -> None:
    later = rain(time=MOMENT + timedelta(minutes=2))
    frames = feed().decode(later + rain(), "joined")
    assert [str(f["time"].values)[11:19] for f in frames] == ["23:58:40", "00:00:40"]
    assert rejection(rain() + rain()) == "corrupt"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: b"", "no_data"),
        (lambda: b"not a GRIB file at all", "unreadable"),
        (lambda: rain()[:100], "truncated"),
        (lambda: rain()[:10], "truncated"),
        (lambda: gzip.compress(rain())[:-20], "truncated"),
        (lambda: rain() + b"trailing bytes...", "corrupt"),
        (lambda: rain()[:-4] + b"7778", "corrupt"),
        (lambda: rain(time=MOMENT + timedelta(days=1)), "corrupt"),
        (lambda: rain(lead=2), "wrong_quantity"),
        (lambda: rain(decimals=2), "corrupt"),
        (lambda: rain(step=9_999, last_off=100), "wrong_grid"),
        (lambda: rain(scanning=64), "wrong_grid"),
        (lambda: rain(declared=(3500, 7000)), "oversized"),
        (lambda: rain(declared=(4, 3)), "corrupt"),
        (lambda: grib2(RAIN_CODES, RATE, reference=-9990.0), "corrupt"),
        (lambda: grib2(RAIN_CODES, RATE, reference=-30.4), "corrupt"),
        (lambda: gzip.compress(bytes(20_000_000)), "oversized"),
    ],
)
def test_bytes_that_are_no_frame_are_rejected_with_the_reason(data: Callable[[], bytes], reason: str) -> None:
    assert rejection(data()) == reason


def test_a_declared_grid_is_held_to() -> None:
    assert len(feed(shape="3x4").decode(rain(), KEY)) == 1
    assert rejection(rain(), shape="3500x7000") == "wrong_grid"


def test_no_flipped_bit_crashes_the_process_or_escapes_as_another_error() -> None:
    # ecCodes aborts the process on some of these: the sections are checked before it sees them.
    chance, good = random.Random(7), rain()
    reasons = set()
    for _ in range(1500):
        broken = bytearray(good)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        try:
            feed().decode(bytes(broken), KEY)
        except FrameRejected as error:
            reasons.add(error.reason)
    assert {"corrupt", "wrong_grid", "unreadable", "truncated", "wrong_quantity"} <= reasons


def test_every_flipped_bit_of_the_values_is_noticed() -> None:
    good = rain()
    start = good.index(b"\x89PNG")
    for place in range(start, len(good) - 4):
        broken = bytearray(good)
        broken[place] ^= 4
        assert rejection(bytes(broken)) == "corrupt"


def test_threads_decode_what_one_thread_decodes() -> None:
    codes = np.random.default_rng(3).integers(0, 400, (200, 300)).astype(np.uint16)
    data = [grib2(np.roll(codes, k, axis=0), RATE, reference=-30.0) for k in range(16)]
    alone = [feed().decode(d, "k")[0].values for d in data]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda d: feed().decode(d, "k")[0].values, data * 4))
    for k, values in enumerate(together):
        np.testing.assert_array_equal(values, alone[k % len(data)])


def put(root: Path, key: str) -> None:
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rain())


def test_the_buckets_layout_is_listed_by_day_and_other_products_are_left(tmp_path: Path) -> None:
    put(tmp_path, KEY)
    put(tmp_path, KEY.replace("20240506", "20240507").replace("235840", "000041"))
    put(tmp_path, KEY.replace("PrecipRate", "RadarOnly_QPE_01H"))
    put(tmp_path, "CONUS/PrecipRate_00.00/MRMS_PrecipRate_00.00.latest.grib2.gz")
    put(tmp_path, "ALASKA/PrecipRate_00.00/20240506/MRMS_PrecipRate_00.00_20240506-235840.grib2.gz")
    found = feed(tmp_path).list(MOMENT - timedelta(hours=1), MOMENT + timedelta(hours=1))
    assert [item.time for item in found] == [MOMENT, datetime(2024, 5, 7, 0, 0, 41, tzinfo=UTC)]
    assert all(item.key.startswith("CONUS/PrecipRate_00.00/") for item in found)
    assert len(feed(tmp_path, region="ALASKA").list(MOMENT, MOMENT)) == 1


@pytest.mark.parametrize("root", ["", "CONUS"])
def test_the_bucket_and_its_folder_of_one_region_are_searched_in_the_days_of_the_window_alone(
    tmp_path: Path, root: str
) -> None:
    put(tmp_path, KEY)
    put(tmp_path, KEY.replace("/20240506/", "/20200101/"))  # the window's time in another day's folder: never seen
    put(tmp_path, KEY.replace("PrecipRate", "RadarOnly_QPE_01H"))
    found = feed(tmp_path / root).list(MOMENT - timedelta(hours=1), MOMENT + timedelta(hours=1))
    assert [item.key for item in found] == [KEY.removeprefix(f"{root}/" if root else "")]
    assert len(feed(tmp_path / root).read(found[0])) == found[0].size


def test_a_folder_named_after_the_product_that_has_no_days_is_searched_whole(tmp_path: Path) -> None:
    put(tmp_path, "PrecipRate_00.00/MRMS_PrecipRate_00.00_20240506-235840.grib2.gz")
    (item,) = feed(tmp_path).list(MOMENT, MOMENT)
    assert item.time == MOMENT


def test_a_flat_folder_with_names_from_before_version_12_is_listed(tmp_path: Path) -> None:
    put(tmp_path, f"20240506/{FLAT}")
    (item,) = feed(tmp_path).list(MOMENT, MOMENT)
    assert item.time == MOMENT
    assert feed(tmp_path).decode(feed(tmp_path).read(item), item.key)[0].shape == (3, 4)


@pytest.mark.parametrize(
    "key",
    [
        "MRMS_PrecipRate_00.00_LATEST.grib2.gz",
        "PrecipRate_00.50_20240506-235840.grib2",
        "PrecipRate_00.00_20240532-235840.grib2",
    ],
)
def test_aliases_and_impossible_times_are_no_keys(key: str) -> None:
    assert time_of_key(key, PRODUCTS["PrecipRate"]) is None


def test_a_product_of_another_quantity_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an MRMS product"):
        product_of(FeedSource("mrms", "unused", "rainfall_rate", timedelta(minutes=2), options={"product": "VIL"}))


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_packing_gives_every_source_code_back_exactly(name: str) -> None:
    packing = PRODUCTS[name].packing
    values = (np.arange(0, 6000) / 10.0 + packing.add_offset).astype(np.float32)
    codes = np.rint((values.astype(np.float64) - packing.add_offset) / packing.scale_factor)
    assert codes.max() < packing.fill
    np.testing.assert_array_equal((codes * packing.scale_factor + packing.add_offset).astype(np.float32), values)
