"""What only one feed does: its scale to the last code, its clock, its words, and its traps."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyproj
import pytest
import xarray as xr

from builders import feeds_datasets as datasets
from builders import feeds_national as national
from builders.feed_case import FeedCase
from builders.feeds_national import FIVE
from tasks.feeds import Feed, FrameRejected
from tasks.feeds.frames import build_frame, ceiling_of, clip
from tasks.grid import latlon

CASES = {**national.CASES, **datasets.CASES}


def opened(name: str, root: Path) -> tuple[Feed, FeedCase]:
    return CASES[name].open(root), CASES[name]


def back(feed: Feed, frame: xr.DataArray) -> np.ndarray:
    """A frame through the archive's packing."""
    packing = feed.packing
    codes = np.round((frame.values.astype(float) - packing.add_offset) / packing.scale_factor)
    assert np.nanmax(codes) < packing.fill <= np.iinfo(packing.dtype).max
    return (codes * packing.scale_factor + packing.add_offset).astype(np.float32)


# --- every code


@pytest.mark.parametrize("name", ["fmi-reflectivity", "mch-reflectivity", "taasrad19"])
def test_every_code_of_a_byte_scale_comes_back_from_the_archive_bit_by_bit(name: str, tmp_path: Path) -> None:
    feed, case = opened(name, tmp_path)
    for frame in feed.decode(case.build(), case.key):
        np.testing.assert_array_equal(back(feed, frame), frame.values)


def test_every_knmi_code_below_the_ceiling_comes_back_bit_by_bit(tmp_path: Path) -> None:
    feed, case = opened("knmi", tmp_path)
    codes = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    (frame,) = feed.decode(national.knmi_h5(shape=(256, 256), codes=codes), case.key)
    np.testing.assert_array_equal(back(feed, frame), frame.values)
    assert len(np.unique(frame.values[~np.isnan(frame.values)])) == 8334
    assert frame.attrs["clipped_cells"] == 65_535 - 8334
    assert np.isnan(frame.values).sum() == 1


def test_every_bom_code_below_the_ceiling_comes_back_bit_by_bit(tmp_path: Path) -> None:
    feed, case = opened("bom", tmp_path)
    codes = np.arange(65_536).astype(np.uint16).view(np.int16).reshape(256, 256)
    (frame,) = feed.decode(national.bom_nc(side=256, codes=codes), case.key)
    np.testing.assert_array_equal(back(feed, frame), frame.values)
    assert np.isnan(frame.values).sum() == 32_768
    assert json.loads(frame.attrs["quality"])["negative_cells"] == 32_767


def test_the_weakest_echo_is_wet_in_rain_too(tmp_path: Path) -> None:
    weakest = {"fmi": 2.5e-4, "mch": 1.25e-3, "taasrad19-rain": 3.7e-2}
    for name, rain in weakest.items():
        feed, case = opened(name, tmp_path / name)
        values = feed.decode(case.build(), case.key)[0].values
        assert values[values > 0].min() == pytest.approx(rain, rel=0.03)
        assert round(float(values[values > 0].min()) / feed.packing.scale_factor) >= 1


# --- clocks


def test_a_day_of_the_year_becomes_its_date_and_the_files_own_stamp_wins(tmp_path: Path) -> None:
    feed, case = opened("mch", tmp_path)
    (frame,) = feed.decode(case.build(), "AQC161940000V_00005.801.gif")
    assert frame["time"].values == np.datetime64("2016-07-12T00:00")
    (frame,) = feed.decode(case.build(), "renamed.gif")
    assert frame["time"].values == np.datetime64("2016-07-12T00:00")
    for stranger in ("AQC164000000V_00005.801.gif", "AQC150000000F_00005.801.gif"):
        case.put(tmp_path, stranger, b"")
    assert feed.list(datetime(2014, 1, 1, tzinfo=UTC), datetime(2018, 1, 1, tzinfo=UTC)) == []


@pytest.mark.parametrize("name", ["fmi", "mch", "knmi", "bom"])
def test_half_a_cadence_between_key_and_bytes_is_too_much(name: str, tmp_path: Path) -> None:
    feed, case = opened(name, tmp_path)
    with pytest.raises(FrameRejected, match="its bytes"):
        feed.decode(case.build(), case.key_of(case.time + case.cadence))


def test_depths_of_another_interval_are_another_quantity(tmp_path: Path) -> None:
    case = CASES["knmi"]
    feed = CASES["knmi"].open(tmp_path)
    feed.source = type(feed.source)("knmi", str(tmp_path), case.quantity, timedelta(minutes=10))
    with pytest.raises(FrameRejected, match="wrong_quantity"):
        feed.decode(case.build(), case.key)


def test_month_names_are_english_and_whole(tmp_path: Path) -> None:
    feed, case = opened("knmi", tmp_path)
    with pytest.raises(FrameRejected, match="DD-MON-YYYY"):
        feed.decode(case.build().replace(b"26-AUG-2010", b"26-AOU-2010"), case.key)
    with pytest.raises(FrameRejected):
        feed.decode(case.build().replace(b"26-AUG-2010", b"36-AUG-2010"), case.key)


# --- places


def test_radars_lie_where_they_stand(tmp_path: Path) -> None:
    feed, case = opened("taasrad19", tmp_path / "t")
    lat, lon = latlon(feed.decode(case.build(), case.key)[0])
    assert float(lat[31:33, 31:33].mean()) == pytest.approx(46.4883, abs=1e-3)
    assert float(lon[31:33, 31:33].mean()) == pytest.approx(11.2106, abs=1e-3)
    assert float(lat[0, 31]) > float(lat[-1, 31])
    feed, case = opened("bom", tmp_path / "b")
    lat, lon = latlon(feed.decode(case.build(), case.key)[0])
    assert (float(lat.mean()), float(lon.mean())) == (
        pytest.approx(-27.7178, abs=1e-2),
        pytest.approx(153.24, abs=1e-2),
    )


def test_switzerland_and_the_netherlands_hold_their_capitals(tmp_path: Path) -> None:
    cities = {"mch": (7.4474, 46.9480, 600.0e3, 199.6e3), "knmi": (4.9041, 52.3676, None, None)}
    for name, (lon, lat, east, north) in cities.items():
        feed, case = opened(name, tmp_path / name)
        (frame,) = feed.decode(case.build(), case.key)
        crs = pyproj.CRS.from_wkt(frame["spatial_ref"].attrs["crs_wkt"])
        x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
        assert frame["x"].values.min() - 1000 < x
        assert frame["y"].values.max() + 1000 > y
        if east is not None:
            assert (x, y) == (pytest.approx(east, abs=1500), pytest.approx(north, abs=1500))


# --- words


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("mch", lambda: national.mch_gif(product="RZC")),
        ("knmi", lambda: national.knmi_h5(parameter="REFLECTIVITY_[DBZ]")),
        ("knmi", lambda: national.knmi_h5(formula="GEO=__import__('os')*PV+0")),
        ("bom", lambda: national.bom_nc(name="reflectivity")),
        ("fmi", lambda: national.fmi_pgm(national.fmi_codes(), maximum=65535)),
    ],
)
def test_other_words_are_another_quantity(name: str, data: object, tmp_path: Path) -> None:
    feed, case = opened(name, tmp_path)
    assert callable(data)
    with pytest.raises(FrameRejected, match="wrong_quantity"):
        feed.decode(data(), case.key)


def test_a_station_option_keeps_one_radars_files(tmp_path: Path) -> None:
    feed, case = opened("bom", tmp_path)
    for station in ("66", "2"):
        case.put(tmp_path, case.key.replace("66_", f"{station}_"), b"")
    assert [item.key for item in feed.list(case.time, case.time)] == [case.key]


# --- data sets of many frames


def test_meteonet_without_its_coordinates_knows_the_north_west_only(tmp_path: Path) -> None:
    case = CASES["meteonet"]
    feed = case.open(tmp_path)
    (tmp_path / "radar_coords_NW.npz").unlink()
    with pytest.raises(FrameRejected, match=r"expected frames of \(565, 784\)"):
        feed.decode(case.build(), case.key)
    south = type(feed)(type(feed.source)("meteonet", str(tmp_path), case.quantity, FIVE, options={"area": "SE"}))
    with pytest.raises(FrameRejected, match="wrong_grid"):
        south.list(case.time, case.time)


def test_meteonet_counts_its_listed_gaps_and_makes_up_no_frame(tmp_path: Path) -> None:
    feed, case = opened("meteonet", tmp_path)
    frames = feed.decode(case.build(), case.key)
    assert len(frames) == 3
    assert {json.loads(frame.attrs["quality"])["slots_listed_missing"] for frame in frames} == {2}


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1, 1)])
def test_meteonet_dates_must_increase(order: tuple[int, ...], tmp_path: Path) -> None:
    feed, case = opened("meteonet", tmp_path)
    times = tuple(datasets.METEONET_TIMES[index] for index in order)
    with pytest.raises(FrameRejected, match="do not increase"):
        feed.decode(datasets.meteonet_npz(times=times), case.key)


def test_meteonet_dates_must_be_of_the_files_ten_days(tmp_path: Path) -> None:
    feed, case = opened("meteonet", tmp_path)
    with pytest.raises(FrameRejected, match="outside"):
        feed.decode(case.build(), "rainfall_NW_2016_08.2.npz")


def test_taasrad19_puts_dates_in_order_and_counts_those_that_repeat(tmp_path: Path) -> None:
    feed, case = opened("taasrad19", tmp_path)
    texts = ["2015-10-05 09:30:00", "2015-10-05 09:25:00", "2015-10-05 09:30:00"]
    case.put(tmp_path, "umap_train_dates.json", json.dumps(texts).encode())
    frames = feed.decode(case.build(), case.key)
    quality = [json.loads(frame.attrs["quality"]) for frame in frames]
    assert [(q["index"], q["others_of_this_date"]) for q in quality] == [(1, 0), (0, 1)]


def test_a_taasrad19_sheet_without_dates_is_no_data(tmp_path: Path) -> None:
    feed, case = opened("taasrad19", tmp_path)
    with pytest.raises(FrameRejected, match="no_data"):
        feed.decode(case.build(), "meteotn_tile_solid_7.png")


def test_a_broken_list_of_dates_is_told(tmp_path: Path) -> None:
    for text in (b"", b"{}", b'["yesterday"]', b"[[]]"):
        feed, case = opened("taasrad19", tmp_path)
        case.put(tmp_path, "umap_train_dates.json", text)
        with pytest.raises(FrameRejected, match="umap_train_dates"):
            feed.list(case.time, case.time)


def test_an_echo_beyond_the_radars_circle_is_no_taasrad19_sheet(tmp_path: Path) -> None:
    feed, case = opened("taasrad19", tmp_path)
    shifted = np.roll(datasets.taasrad19_codes()[:1], 20, axis=2)
    assert shifted[0, 31, 0] != 0 or shifted[0, 0].any()
    tiles = np.repeat(shifted, 1024, axis=0).reshape(32, 32, 64, 64).transpose(0, 2, 1, 3).reshape(2048, 2048)
    with pytest.raises(FrameRejected, match="beyond the radar's circle"):
        feed.decode(datasets.png(tiles), case.key)


# --- frames


def test_clutter_is_clipped_to_what_can_fall_and_counted() -> None:
    values = np.array([[0.0, 8647.0], [np.nan, 1000.0]], np.float32)
    clipped, count = clip(values, 1000.0)
    np.testing.assert_array_equal(clipped, np.array([[0, 1000], [np.nan, 1000]], np.float32))
    assert count == 1


def test_a_frame_that_does_not_fit_its_coordinates_is_a_mistake() -> None:
    axis = np.arange(3.0)
    crs = pyproj.CRS.from_epsg(3035)
    with pytest.raises(ValueError, match="expected values of shape"):
        build_frame(
            np.zeros((2, 3), np.float32), quantity="vil", time=datetime(2020, 1, 1, tzinfo=UTC), crs=crs, x=axis, y=axis
        )


def test_a_ceiling_is_a_value_that_the_packing_holds(tmp_path: Path) -> None:
    feed, case = opened("bom", tmp_path)
    assert ceiling_of(case.quantity, feed.packing) == pytest.approx(999.9)
