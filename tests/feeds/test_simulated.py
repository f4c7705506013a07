"""The simulated feed: MRMS's own files and keys, read by the live decoder."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path

import eccodes
import numpy as np

from tasks.feeds import FeedSource, open_feed
from tasks.feeds.simulated import simulated_objects, write_frame
from tasks.grid import cell_size_m
from tasks.simulation import simulate

START = datetime(2026, 7, 1, 23, 56, tzinfo=UTC)
STEP = timedelta(minutes=2)


def test_a_bucket_of_simulated_files_reads_back_as_what_was_simulated(tmp_path: Path) -> None:
    for _, key, data in simulated_objects(START, 4, STEP, (40, 60), seed=9):
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    feed = open_feed(FeedSource("simulated", str(tmp_path), "rainfall_rate", STEP))
    found = feed.list(START, START + 3 * STEP)
    assert [item.time for item in found] == [START + k * STEP for k in range(4)]
    assert len(list((tmp_path / "CONUS" / "PrecipRate_00.00").iterdir())) == 2
    for item, (_, rain) in zip(found, simulate(START, 4, STEP, (40, 60), seed=9), strict=True):
        (frame,) = feed.decode(feed.read(item), item.key)
        np.testing.assert_array_equal(np.isnan(frame.values), np.isnan(rain))
        np.testing.assert_array_equal(frame.values == 0, rain == 0)
        assert np.nanmax(np.abs(frame.values - rain)) <= 0.0501


def test_the_file_is_mrms_in_every_key_that_identifies_it() -> None:
    key, data = write_frame(datetime(2026, 7, 1, 1, 2, 3, tzinfo=UTC), np.ones((20, 20), np.float32))
    assert key == "CONUS/PrecipRate_00.00/20260701/MRMS_PrecipRate_00.00_20260701-010203.grib2.gz"
    handle = eccodes.codes_new_from_message(gzip.decompress(data))
    keys = ("discipline", "parameterCategory", "parameterNumber", "centre", "shapeOfTheEarth", "scanningMode", "second")
    assert [eccodes.codes_get_long(handle, key) for key in keys] == [209, 6, 1, 161, 2, 0, 3]
    assert eccodes.codes_get_string(handle, "packingType") == "grid_png"
    eccodes.codes_release(handle)


def test_the_same_frame_gives_the_same_bytes_and_drizzle_stays_wet() -> None:
    rain = np.full((20, 20), 0.01, np.float32)
    assert write_frame(START, rain) == write_frame(START, rain)
    feed = open_feed(FeedSource("simulated", "unused", "rainfall_rate", STEP))
    key, data = write_frame(START, rain)
    (frame,) = feed.decode(data, key)
    np.testing.assert_allclose(frame.values, 0.1, rtol=1e-6)
    assert feed.latency == timedelta(0)
    for value in (0.0, np.nan, 3.7):
        key, data = write_frame(START, np.full((20, 20), value, np.float32))
        np.testing.assert_allclose(feed.decode(data, key)[0].values, value, rtol=1e-6)


def test_cells_have_the_size_that_was_asked_for() -> None:
    feed = open_feed(FeedSource("simulated", "unused", "rainfall_rate", STEP))
    for size in (500.0, 1000.0, 4000.0):
        key, data = write_frame(START, np.zeros((64, 64), np.float32), size)
        assert abs(cell_size_m(feed.decode(data, key)[0]) / size - 1.0) < 1e-3
