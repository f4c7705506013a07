"""Every real MRMS, OPERA and DWD file: the feed's frames equal a decode written here, cell by cell."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import re
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import eccodes
import h5py
import numpy as np
import numpy.typing as npt
import pyproj
import pytest

from infra.settings import Settings
from tasks.feeds import Feed, FeedSource, open_feed
from tasks.grid import cell_size_m

RADAR = Settings().data / "radar"
pytestmark = [
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif(not RADAR.is_dir(), reason=f"no real observations under {RADAR} (SQUALL_DATA)"),
]
EVER = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC))


def feed(kind: str, folder: str, minutes: int, quantity: str = "rainfall_rate", **options: str) -> Feed:
    return open_feed(FeedSource(kind, str(RADAR / folder), quantity, timedelta(minutes=minutes), options=options))


def raw_grib(path: Path) -> tuple[npt.NDArray[np.float64], datetime]:
    data = path.read_bytes()
    handle = eccodes.codes_new_from_message(gzip.decompress(data) if path.suffix == ".gz" else data)
    ni, nj = (eccodes.codes_get(handle, key) for key in ("Ni", "Nj"))
    stamp = [eccodes.codes_get(handle, key) for key in ("year", "month", "day", "hour", "minute", "second")]
    values = eccodes.codes_get_array(handle, "values").reshape(nj, ni)
    eccodes.codes_release(handle)
    return values, datetime(*stamp, tzinfo=UTC)


def packed_and_back(feed: Feed, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    packing, exact = feed.packing, values.astype(np.float64)
    codes = np.where(np.isnan(values), packing.fill, np.rint((exact - packing.add_offset) / packing.scale_factor))
    codes = codes.astype(packing.dtype)
    back = codes * packing.scale_factor + packing.add_offset
    return np.where(codes == packing.fill, np.nan, back).astype(np.float32)


def test_mrms_rain_rate() -> None:
    source = feed("mrms", "mrms_grib2", 2, shape="3500x7000")
    found = source.list(*EVER)
    assert len(found) == 6
    for item in found:
        (frame,) = source.decode(source.read(item), item.key)
        values, time = raw_grib(RADAR / "mrms_grib2" / item.key)
        # Tenths of mm/h, as the file's decimal scale says; -3 is no coverage, and no other flag occurs.
        tenths = np.rint(values * 10)
        assert set(np.unique(tenths[tenths < 0])) == {-30}
        expected = np.where(tenths < 0, np.nan, tenths / 10).astype(np.float32)
        np.testing.assert_array_equal(frame.values, expected)
        np.testing.assert_array_equal(packed_and_back(source, frame.values), frame.values)
        assert frame["time"].values == np.datetime64(time.replace(tzinfo=None), "ns")
        assert item.time == time
    assert frame["y"].values[[0, -1]] == pytest.approx([54.995, 20.005])
    assert frame["x"].values[[0, -1]] == pytest.approx([-129.995, -60.005])


def test_mrms_reflectivity_at_the_lowest_altitude() -> None:
    name = "ReflectivityAtLowestAltitude"
    source = feed("mrms", "mrms_misc", 2, "equivalent_reflectivity_factor", product=name)
    (item,) = source.list(*EVER)
    (frame,) = source.decode(source.read(item), item.key)
    values, time = raw_grib(RADAR / "mrms_misc" / item.key)
    tenths = np.rint(values * 10)
    expected = np.where(tenths == -9990, np.nan, np.where(tenths == -990, -33.0, tenths / 10)).astype(np.float32)
    np.testing.assert_array_equal(frame.values, expected)
    np.testing.assert_array_equal(packed_and_back(source, frame.values), frame.values)
    assert time == item.time == datetime(2023, 4, 6, 12, 0, 39, tzinfo=UTC)
    # The weakest echo of the file is -31 dBZ: the value for "no echo" is below all of them.
    assert values[values > -99].min() == -31.0


def test_opera_rain_rate() -> None:
    source = feed("odim", "opera_odim", 15)
    found = source.list(*EVER)
    assert [f"{item.time:%H%M}" for item in found] == ["1800", "1815"]
    clipped = 0
    for item in found:
        (frame,) = source.decode(source.read(item), item.key)
        with h5py.File(RADAR / "opera_odim" / item.key) as file:
            raw = file["dataset1/data1/data"][()]
            where = dict(file["where"].attrs)
            end = file["dataset1/what"].attrs["endtime"].decode()
        expected = np.where(raw == -9999000.0, np.nan, np.where(raw == -8888000.0, 0.0, raw)).astype(np.float32)
        clipped += int((expected > 1000).sum())
        np.testing.assert_array_equal(frame.values, np.minimum(expected, np.float32(1000)))
        assert frame.attrs["clipped_cells"] == int((expected > 1000).sum())
        np.testing.assert_array_equal(packed_and_back(source, frame.values), frame.values)
        assert str(frame["time"].values)[11:19].replace(":", "") == end
        check_corners(frame["x"].values, frame["y"].values, where)
        assert 0 < json.loads(frame.attrs["quality"])["qind_mean"] < 1
    # One cell of 1205.22 mm/h at 18:00.
    assert clipped == 1
    assert cell_size_m(frame) == 2000.0


def check_corners(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], where: dict[str, object]) -> None:
    to_degrees = pyproj.Proj(where["projdef"].decode())  # type: ignore[attr-defined]
    for name, east, north in (("UL", -1, 1), ("UR", 1, 1), ("LL", -1, -1), ("LR", 1, -1)):
        corner = x[0 if east < 0 else -1] + east * 1000.0, y[0 if north > 0 else -1] + north * 1000.0
        lon, lat = to_degrees(*corner, inverse=True)
        assert (lon, lat) == pytest.approx((where[f"{name}_lon"], where[f"{name}_lat"]), abs=1e-6)


def test_dwd_rv_run_is_a_forecast_of_25_leads() -> None:
    source = feed("radolan", "dwd_radolan", 5)
    (item,) = source.list(*EVER)
    assert item.time == datetime(2022, 10, 18, 7, 0, tzinfo=UTC)
    frames = source.decode(source.read(item), item.key)
    archive = tarfile.open(fileobj=io.BytesIO(bz2.decompress((RADAR / "dwd_radolan" / item.key).read_bytes())))  # noqa: SIM115
    members = sorted(archive.getmembers(), key=lambda member: member.name)
    assert len(frames) == len(members) == 25
    for frame, member in zip(frames, members, strict=True):
        minutes = int(re.search(r"_(\d{3})$", member.name)[1])  # type: ignore[index]
        header, payload = archive.extractfile(member).read().split(b"\x03", 1)  # type: ignore[union-attr]
        assert b"PR E-02" in header
        assert f"VV {minutes:03d}".encode() in header
        low, high = np.frombuffer(payload, np.uint8).reshape(1200, 1100, 2).transpose(2, 0, 1).astype(np.int64)
        code = low + 256 * (high % 16)
        rate = np.where(high // 16 == 2, np.nan, code / 100 * 12)
        assert set(np.unique(high // 16)) == {0, 2}
        np.testing.assert_array_equal(frame.values, np.flipud(rate).astype(np.float32))
        np.testing.assert_array_equal(packed_and_back(source, frame.values), frame.values)
        assert frame["lead_time"].values == np.timedelta64(minutes, "m")
        assert frame["time"].values == np.datetime64("2022-10-18T07:00") + np.timedelta64(minutes, "m")
    assert int(np.isnan(frames[0].values).sum()) == 619_706
