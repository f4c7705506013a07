"""RADOLAN: header, flag bits, grid, and a run of leads as a rival forecast."""

from __future__ import annotations

import bz2
import io
import json
import tarfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from builders.feeds_gridded import CASES, RUN, radolan, radolan_codes, radolan_rain, run_tar, tar_bz2
from tasks.feeds import FeedSource, FrameRejected, open_feed
from tasks.feeds.frames import Frames
from tasks.feeds.radolan import read_member
from tasks.grid import latlon

KEY = "DE1200_RV2210180700.tar.bz2"
NAME = "DE1200_RV2210180700_000"


def decode(data: bytes, key: str = KEY, max_bytes: int = 100_000_000) -> Frames:
    source = FeedSource("radolan", "unused", "rainfall_rate", timedelta(minutes=5), max_bytes=max_bytes)
    return open_feed(source).decode(data, key)


def link_tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo(NAME)
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    return bz2.compress(stream.getvalue())


def test_a_run_gives_one_frame_a_lead_and_only_lead_zero_observes() -> None:
    frames = decode(run_tar())
    assert [int(f["lead_time"].values / np.timedelta64(1, "m")) for f in frames] == [0, 5, 10]
    for frame, lead in zip(frames, (0, 5, 10), strict=True):
        assert frame["time"].values == np.datetime64((RUN + timedelta(minutes=lead)).replace(tzinfo=None), "ns")
        np.testing.assert_array_equal(frame.values, radolan_rain(lead))


def test_flag_bits_are_read_and_counted() -> None:
    quality = json.loads(decode(run_tar())[0].attrs["quality"])
    assert quality["secondary_cells"] == quality["clutter_cells"] == 1
    assert quality["radars"] == 2


def test_a_single_member_is_readable_by_itself() -> None:
    (frame,) = decode(radolan(radolan_codes(5), 5), NAME)
    np.testing.assert_array_equal(frame.values, radolan_rain(5))


def test_the_grids_corners_lie_where_dwd_puts_them() -> None:
    # Centres of the corner cells of DE1200 on WGS 84.
    lat, lon = latlon(decode(radolan(radolan_codes(0)), NAME)[0])
    assert (float(lon[-1, 0]), float(lat[-1, 0])) == pytest.approx((3.57220017, 45.70099971), abs=1e-6)
    assert (float(lon[0, -1]), float(lat[0, -1])) == pytest.approx((18.72270377, 55.84175857), abs=1e-6)


def test_formats_before_version_5_are_on_the_sphere() -> None:
    old, new = (decode(radolan(radolan_codes(0), version=v), NAME)[0] for v in (4, 5))
    assert old["spatial_ref"].attrs["semi_major_axis"] == 6_370_040.0
    assert new["spatial_ref"].attrs["semi_major_axis"] == 6_378_137.0
    gap = np.hypot(*(a.values - b.values for a, b in zip(latlon(old), latlon(new), strict=True)))
    assert 0.01 < gap.max() < 0.05


def test_the_header_is_parsed() -> None:
    header, codes = read_member(radolan(np.zeros((2, 3), np.uint16), 15))
    assert (header.product, header.init_time, header.shape) == ("RV", RUN, (2, 3))
    assert (header.lead, header.interval) == (timedelta(minutes=15), timedelta(minutes=5))
    assert header.depth == pytest.approx(0.01)
    assert header.radars == ("deasb", "deboo")
    assert codes.shape == (2, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: b"", "unreadable"),
        (lambda: b"anything else", "unreadable"),
        (lambda: run_tar()[:-30], "truncated"),
        (lambda: radolan(radolan_codes(0))[:-2], "truncated"),
        (lambda: radolan(radolan_codes(0)) + b"xx", "corrupt"),
        (lambda: radolan(radolan_codes(0), shape=(1200, 1000)), "corrupt"),
        (lambda: bz2.compress(b"no tar " * 1000), "corrupt"),
        (lambda: bz2.compress(bytes(10_240)), "no_data"),
        (lambda: tar_bz2([(NAME, radolan(radolan_codes(0)))] * 2), "corrupt"),
        (lambda: tar_bz2([(f"{k}", b"x") for k in range(70)]), "corrupt"),
        (link_tar, "corrupt"),
        (lambda: run_tar(exponent=-1), "wrong_quantity"),
        (lambda: run_tar(time=RUN + timedelta(minutes=5)), "corrupt"),
    ],
)
def test_bytes_that_are_no_run_are_rejected_with_the_reason(data: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(FrameRejected) as caught:
        decode(data())
    assert caught.value.reason == reason


def test_a_bomb_is_rejected_before_it_inflates() -> None:
    with pytest.raises(FrameRejected) as caught:
        decode(bz2.compress(bytes(50_000_000)), max_bytes=1_000_000)
    assert caught.value.reason == "oversized"


def test_the_packing_holds_every_code_exactly() -> None:
    packing = CASES["radolan"].open(Path("unused")).packing
    values = (np.arange(4096) * 0.12).astype(np.float32)
    codes = np.rint(values.astype(np.float64) / packing.scale_factor)
    np.testing.assert_array_equal(codes, np.arange(4096))
    np.testing.assert_array_equal((codes * packing.scale_factor).astype(np.float32), values)
