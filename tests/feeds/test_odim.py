"""ODIM_H5: attributes wherever they sit, corners, intervals, and the ways a composite may be broken."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.feeds_gridded import (
    NATIONAL,
    ODIM_ECHO,
    ODIM_ECHO_CODES,
    ODIM_END,
    ODIM_NOMINAL,
    ODIM_RAIN,
    ODIM_RATES,
    OPERA,
    corners,
    odim,
)
from tasks.feeds import FeedSource, FrameRejected, open_feed
from tasks.feeds.frames import Frames

KEY = "20180824/T_PAAH21_C_EUOC_20180824180000.hdf"
STEREO_KM = "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=0 +a=6378.14 +b=6356.75 +x_0=0 +y_0=0"
REFLECTIVITY = "equivalent_reflectivity_factor"


def decode(data: bytes, quantity: str = "rainfall_rate", key: str = KEY, **options: str) -> Frames:
    source = FeedSource("odim", "unused", quantity, timedelta(minutes=15), options=options, max_bytes=10_000_000)
    return open_feed(source).decode(data, key)


def rejection(data: bytes, quantity: str = "rainfall_rate", key: str = KEY) -> str:
    with pytest.raises(FrameRejected) as caught:
        decode(data, quantity, key)
    return caught.value.reason


@pytest.mark.parametrize("place", ["dataset1/data1/what", "dataset1/what", "what"])
def test_scaling_is_found_wherever_it_sits(place: str) -> None:
    (frame,) = decode(odim(ODIM_ECHO_CODES, "TH", scaling=NATIONAL, scaling_in=place), REFLECTIVITY)
    np.testing.assert_array_equal(frame.values, ODIM_ECHO)
    assert frame.attrs["clipped_cells"] == 1
    assert frame.attrs["no_echo"] == -33.0


def test_the_nearest_scaling_wins() -> None:
    data = io.BytesIO(odim(ODIM_ECHO_CODES, "DBZH", scaling=NATIONAL, scaling_in="dataset1/data1/what"))
    with h5py.File(data, "r+") as file:
        file["dataset1/what"].attrs.update({"gain": 7.0, "offset": 7.0, "nodata": 64.0, "undetect": 65.0})
    np.testing.assert_array_equal(decode(data.getvalue(), REFLECTIVITY)[0].values, ODIM_ECHO)


def test_absent_scaling_means_values_as_they_are() -> None:
    values = np.array([[0.0, 1.5], [np.nan, 3.0]])
    np.testing.assert_array_equal(decode(odim(values))[0].values, values.astype(np.float32))


def test_a_code_that_means_both_nodata_and_undetect_is_not_observed() -> None:
    scaling = {"gain": 1.0, "offset": 0.0, "nodata": 0.0, "undetect": 0.0}
    (frame,) = decode(odim(np.array([[0, 2], [3, 4]], np.uint8), scaling=scaling))
    assert np.isnan(frame.values[0, 0])


def test_clutter_is_clipped_and_counted_and_undetect_is_dry() -> None:
    (frame,) = decode(odim(ODIM_RATES, scaling=OPERA))
    np.testing.assert_array_equal(frame.values, ODIM_RAIN)
    assert frame.attrs["clipped_cells"] == 1


def test_time_is_the_end_of_the_interval_and_the_nominal_one_where_no_interval_is_told() -> None:
    assert decode(odim(ODIM_RATES, scaling=OPERA))[0]["time"].values == np.datetime64("2018-08-24T18:05", "ns")
    alone = decode(odim(ODIM_RATES, scaling=OPERA, interval=None))
    assert alone[0]["time"].values == np.datetime64("2018-08-24T18:00", "ns")


def test_depths_become_rates_over_their_interval() -> None:
    (frame,) = decode(odim(np.array([[0.0, 0.5], [1.0, 2.0]]), "ACRR"))
    np.testing.assert_array_equal(frame.values, [[0, 2], [4, 8]])
    assert rejection(odim(np.ones((2, 2)), "ACRR", interval=None)) == "corrupt"


def test_cell_centres_lie_half_a_cell_inside_the_files_corners() -> None:
    (frame,) = decode(odim(ODIM_RATES, scaling=OPERA))
    np.testing.assert_array_equal(frame["x"].values, [1000, 3000, 5000])
    np.testing.assert_array_equal(frame["y"].values, [-1000, -3000])
    assert frame["x"].attrs["units"] == "m"


def test_corners_at_cell_centres_are_recognised() -> None:
    where = corners(
        "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84",
        0.0,
        0.0,
        40,
        30,
        2000.0,
        centres=True,
    )
    (frame,) = decode(odim(np.zeros((30, 40)), where=where))
    assert (frame["x"].values[0], frame["y"].values[0]) == (1000.0, -1000.0)


def test_a_projection_in_kilometres_becomes_one_in_metres() -> None:
    metres = STEREO_KM.replace("6378.14", "6378140").replace("6356.75", "6356750")
    where = {"projdef": STEREO_KM, "xscale": 1.0, "yscale": 1.0, **corners(metres, 0.0, -3_650_000.0, 3, 2, 1000.0)}
    (frame,) = decode(odim(ODIM_RATES, scaling=OPERA, where=where))
    np.testing.assert_allclose(frame["x"].values, [500, 1500, 2500], atol=0.01)
    np.testing.assert_allclose(frame["y"].values, [-3_650_500, -3_651_500], atol=0.01)


def test_the_quality_index_is_summarised() -> None:
    (frame,) = decode(odim(ODIM_RATES, scaling=OPERA, quality=np.array([[-1.0, 0.5, 1.0], [-1.0, -1.0, 0.0]])))
    assert json.loads(frame.attrs["quality"]) == {"odim_quantity": "RATE", "qind_coverage": 0.5, "qind_mean": 0.5}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (odim(ODIM_RATES, scaling=OPERA)[:3000], "truncated or corrupt"),
        (b"\x89HDF", "truncated"),
        (odim(ODIM_RATES, scaling=OPERA, obj="PVOL"), "wrong_quantity"),
        (odim(ODIM_RATES, "VRAD", scaling=OPERA), "wrong_quantity"),
        (odim(ODIM_RATES), "corrupt"),
        (odim(ODIM_RATES, scaling=OPERA, where={"projdef": "+proj=nowhere"}), "wrong_grid"),
        (odim(ODIM_RATES, scaling=OPERA, where={"xsize": 4}), "wrong_grid"),
        (odim(ODIM_RATES, scaling=OPERA, where={"UR_lat": 10.0}), "wrong_grid"),
        (odim(np.zeros((1500, 1500)), scaling=OPERA), "oversized"),
    ],
)
def test_bytes_that_are_no_composite_are_rejected_with_the_reason(data: bytes, reason: str) -> None:
    assert rejection(data) in reason.split(" or ")


def test_a_file_of_another_time_than_its_name_is_rejected() -> None:
    assert rejection(odim(ODIM_RATES, scaling=OPERA), key=KEY.replace("1800", "1200")) == "corrupt"


@pytest.mark.parametrize(
    ("key", "time"),
    [
        (KEY, ODIM_NOMINAL),
        ("OPERA@20240610T0005@0@DBZH.h5", datetime(2024, 6, 10, 0, 5, tzinfo=UTC)),
        ("composite_202406100005.h5", datetime(2024, 6, 10, 0, 5, tzinfo=UTC)),
        ("composite_LATEST.h5", None),
        ("20240699180000.hdf", None),
    ],
)
def test_keys_tell_their_nominal_time(key: str, time: datetime | None) -> None:
    source = FeedSource("odim", "unused", "rainfall_rate", timedelta(minutes=15))
    assert open_feed(source).time_of(key) == time  # type: ignore[attr-defined]


@given(st.integers(1, 65_000), st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.5]))
def test_packing_gives_decimal_gains_back_exactly(code: int, gain: float) -> None:
    packing = open_feed(FeedSource("odim", "unused", "rainfall_rate", timedelta(minutes=15))).packing
    value = np.float32(code * gain)
    stored = np.rint(np.float64(value) / packing.scale_factor)
    # A float32 above 8 mm/h cannot tell millionths apart: the source's code is what has to come back.
    assert round(float(stored * packing.scale_factor) / gain) == code
    assert stored > 0


def test_frames_are_not_stamped_by_the_key(tmp_path: object) -> None:
    assert decode(odim(ODIM_RATES, scaling=OPERA), key="no time")[0]["time"].values == np.datetime64(
        ODIM_END.replace(tzinfo=None), "ns"
    )
