"""Grids: crops, block means that keep NaN and dry apart, cell sizes and positions."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from infra.settings import RegionSettings
from tasks.feeds import Packing
from tasks.grid import apply_region, cell_size_m, coarsen, crs_of, grid_coordinates, latlon, refine, region_packing
from tasks.units import NO_ECHO

LAEA = pyproj.CRS.from_user_input("EPSG:3035")
DEGREES = pyproj.CRS.from_user_input("EPSG:4326")
NAN = np.nan


def frame(values: object, crs: pyproj.CRS = LAEA, step: float = 1000.0, name: str = "rainfall_rate") -> xr.DataArray:
    array = np.asarray(values, np.float32)
    x = 4_321_000.0 + step * np.arange(array.shape[-1]) if crs is LAEA else -100.0 + step * np.arange(array.shape[-1])
    y = 3_210_000.0 - step * np.arange(array.shape[-2]) if crs is LAEA else 40.0 - step * np.arange(array.shape[-2])
    dims = ("lead_time", "y", "x")[-array.ndim :]
    return xr.DataArray(array, grid_coordinates(crs, x, y), dims, name, {"units": "mm h-1"})


def test_coordinates_follow_cf() -> None:
    coords = grid_coordinates(LAEA, np.arange(3.0), np.arange(2.0))
    assert coords["x"].attrs["standard_name"] == "projection_x_coordinate"
    assert coords["y"].attrs["units"] == "m"
    assert coords["spatial_ref"].attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"
    degrees = grid_coordinates(DEGREES, np.arange(3.0), np.arange(2.0))
    assert (degrees["y"].attrs["units"], degrees["x"].attrs["units"]) == ("degrees_north", "degrees_east")


def test_the_swiss_projection_has_no_word_in_cf_and_keeps_its_wkt() -> None:
    swiss = pyproj.CRS.from_user_input("EPSG:21781")
    data = xr.DataArray(np.zeros((2, 2)), grid_coordinates(swiss, np.arange(2.0), np.arange(2.0)), ("y", "x"))
    assert crs_of(data) == swiss


def test_a_grid_without_a_crs_is_refused() -> None:
    with pytest.raises(ValueError, match="spatial_ref"):
        crs_of(xr.DataArray(np.zeros((2, 2)), dims=("y", "x")))


def test_a_crop_keeps_the_cells_whose_centres_are_inside() -> None:
    data = frame(np.arange(20).reshape(4, 5))
    cropped = apply_region(data, RegionSettings(x=(4_322_000.0, 4_323_500.0), y=(3_208_000.0, 3_209_000.0)))
    np.testing.assert_array_equal(cropped.values, [[6, 7], [11, 12]])
    np.testing.assert_array_equal(cropped["y"].values, [3_209_000.0, 3_208_000.0])
    assert cropped.attrs == data.attrs


def test_no_region_is_no_change() -> None:
    data = frame(np.arange(20).reshape(4, 5))
    assert apply_region(data, RegionSettings()).identical(data)


def test_bounds_beside_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        apply_region(frame(np.zeros((2, 2))), RegionSettings(x=(0.0, 1.0)))


def test_a_block_is_the_mean_of_its_observed_cells_if_half_are_observed() -> None:
    data = frame([[1, 3, NAN, 4], [5, 7, NAN, 8], [NAN, NAN, 0, 0], [NAN, 9, 0, 0]])
    np.testing.assert_array_equal(coarsen(data, 2).values, [[4, 6], [NAN, 0]])


def test_rows_and_columns_that_fill_no_block_are_dropped() -> None:
    coarse = coarsen(frame(np.ones((5, 7))), 3)
    assert coarse.shape == (1, 2)
    np.testing.assert_array_equal(coarse["x"].values, [4_322_000.0, 4_325_000.0])
    with pytest.raises(ValueError, match="at least 3 cells"):
        coarsen(frame(np.ones((2, 7))), 3)


def test_reflectivity_is_averaged_in_linear_units_with_no_echo_as_zero() -> None:
    data = frame([[40, 40], [NO_ECHO, NO_ECHO]], name="equivalent_reflectivity_factor").assign_attrs(no_echo=NO_ECHO)
    # Half of 1e4 is 36.99 dBZ.
    assert coarsen(data, 2).item() == pytest.approx(36.9897, abs=1e-3)
    assert coarsen(data.where(data < 0, NO_ECHO), 2).item() == NO_ECHO


@given(st.integers(1, 4), st.integers(2, 6), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_refining_and_coarsening_gives_the_grid_back(factor: int, ny: int, nx: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.gamma(0.5, 4.0, (2, ny, nx)).astype(np.float32)
    values[:, 0, 0] = NAN
    data = frame(values)
    back = coarsen(refine(data, factor), factor)
    np.testing.assert_allclose(back.values, data.values, rtol=1e-6)
    np.testing.assert_allclose(back["x"].values, data["x"].values)
    np.testing.assert_allclose(back["y"].values, data["y"].values)


@given(st.integers(0, 2**32 - 1))
def test_coarsening_keeps_the_mass_of_a_fully_observed_field(seed: int) -> None:
    values = np.random.default_rng(seed).gamma(0.5, 4.0, (8, 12))
    assert float(coarsen(frame(values), 4).mean()) == pytest.approx(float(values.mean()), rel=1e-5)


def test_cells_of_a_projected_grid_have_its_spacing() -> None:
    assert cell_size_m(frame(np.zeros((3, 4)), step=2000.0)) == 2000.0
    kilometres = pyproj.CRS.from_user_input("+proj=laea +lat_0=52 +lon_0=10 +ellps=GRS80 +units=km")
    data = xr.DataArray(np.zeros((2, 2)), grid_coordinates(kilometres, np.arange(2.0), np.arange(2.0)), ("y", "x"))
    assert data["x"].attrs["units"] == "km"
    assert cell_size_m(data) == 1000.0


def test_cells_of_a_degree_grid_shrink_with_latitude() -> None:
    # A degree at 40 N is 111.035 km north and 85.394 km east; the square with a 0.01 degree cell's area has 973.7 m.
    assert cell_size_m(frame(np.zeros((3, 3)), DEGREES, 0.01)) == pytest.approx(973.7, abs=0.5)


def test_a_grid_of_one_row_has_no_cell_size() -> None:
    with pytest.raises(ValueError, match="at least two cells"):
        cell_size_m(frame(np.zeros((1, 3))))


def test_positions_are_two_dimensional_on_a_projection_and_not_on_degrees() -> None:
    lat, lon = latlon(frame(np.zeros((3, 4))))
    assert lat.dims == lon.dims == ("y", "x")
    # EPSG:3035's false origin (4321000, 3210000) is 52 N, 10 E.
    assert (lat[0, 0].item(), lon[0, 0].item()) == pytest.approx((52.0, 10.0), abs=1e-9)
    lat, lon = latlon(frame(np.zeros((3, 4)), DEGREES, 0.01))
    assert (lat.dims, lon.dims) == (("y",), ("x",))


@given(st.lists(st.integers(0, 60_000), min_size=9, max_size=9))
def test_a_regions_packing_holds_block_means_exactly(codes: list[int]) -> None:
    source = Packing("uint16", 0.1, 0.0, 65535)
    packing = region_packing(source, RegionSettings(coarsen=3))
    mean = np.float32(np.mean(codes) * source.scale_factor)
    stored = np.rint(np.float64(mean) / packing.scale_factor)
    assert stored == sum(codes)
    assert (stored > 0) == any(codes)
    assert region_packing(source, RegionSettings()) is source


def test_a_packing_of_32_bits_keeps_its_range() -> None:
    fine = Packing("uint32", 1e-6, 0.0, 2**32 - 1)
    assert region_packing(fine, RegionSettings(coarsen=4)) is fine


def test_a_mean_that_no_packing_tells_from_no_echo_is_no_echo() -> None:
    faint = 10 * np.log10(4.0) + NO_ECHO + 0.05
    data = frame([[faint, NO_ECHO], [NO_ECHO, NO_ECHO]], name="equivalent_reflectivity_factor")
    assert coarsen(data.assign_attrs(no_echo=NO_ECHO), 2).item() == NO_ECHO
