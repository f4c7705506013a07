"""Projection, extent and cell size: CF coordinates of a grid, crops, block means and back, latitude and longitude."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pyproj
import xarray as xr
from numpy.typing import NDArray

from infra.settings import RegionSettings
from tasks.feeds import Packing
from tasks.units import NO_ECHO, decibels, linear

Floats = NDArray[np.float64]
Grid = xr.DataArray | xr.Dataset

_FAINTEST = 0.1  # dB above "no echo" that a block mean needs: a packing must tell the two apart
_UNITS = {"metre": "m", "kilometre": "km"}
_DEGREES = {
    "y": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"},
    "x": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"},
}


@lru_cache(maxsize=64)
def _grid_mapping(wkt: str) -> dict[str, object]:
    with warnings.catch_warnings():
        # CF has no word for the skew-grid angle of the Swiss projection; crs_wkt carries it.
        warnings.filterwarnings("ignore", "angle from rectified to skew grid", UserWarning)
        mapping = pyproj.CRS.from_wkt(wkt).to_cf()
    return {"grid_mapping_name": "unknown", **mapping, "crs_wkt": wkt}


def _axis_attrs(crs: pyproj.CRS, axis: str) -> dict[str, str]:
    if crs.is_geographic:
        return {**_DEGREES[axis], "axis": axis.upper()}
    unit = crs.axis_info[0].unit_name
    return {
        "standard_name": f"projection_{axis}_coordinate",
        "long_name": f"{axis} coordinate of projection",
        "units": _UNITS.get(unit, unit),
        "axis": axis.upper(),
    }


def grid_coordinates(crs: pyproj.CRS, x: Floats, y: Floats) -> dict[Hashable, xr.Variable]:
    """CF coordinates `y`, `x` (cell centres, in the CRS's units) and the scalar `spatial_ref` of a grid."""
    return {
        "y": xr.Variable(("y",), np.asarray(y, np.float64), _axis_attrs(crs, "y")),
        "x": xr.Variable(("x",), np.asarray(x, np.float64), _axis_attrs(crs, "x")),
        "spatial_ref": xr.Variable((), np.int64(0), dict(_grid_mapping(crs.to_wkt()))),
    }


def crs_of(data: Grid) -> pyproj.CRS:
    """The CRS that the grid's `spatial_ref` declares.

    Raises:
        ValueError: no `spatial_ref` with a crs_wkt.
    """
    if "spatial_ref" not in data.coords or "crs_wkt" not in data.coords["spatial_ref"].attrs:
        raise ValueError(
            f"expected a coordinate spatial_ref with crs_wkt; got coordinates {sorted(map(str, data.coords))}"
        )
    return pyproj.CRS.from_wkt(data.coords["spatial_ref"].attrs["crs_wkt"])


def _step(values: Floats) -> float:
    if values.size < 2:
        raise ValueError(f"expected at least two cells along an axis to know their size; got {values.size}")
    return abs(float(values[-1] - values[0])) / (values.size - 1)


def cell_size_m(data: Grid) -> float:
    """Side [m] of the square with a cell's area; on a latitude-longitude grid, of the cell at the grid's centre.

    Raises:
        ValueError: no CRS, or an axis of one cell.
    """
    crs, y, x = crs_of(data), data["y"].values, data["x"].values
    dy, dx = _step(y), _step(x)
    if not crs.is_geographic:
        return math.sqrt(dx * dy) * float(crs.axis_info[0].unit_conversion_factor)
    lon, lat = float(x.mean()), float(y.mean())
    geod = crs.get_geod() or pyproj.Geod(ellps="WGS84")
    north = geod.inv(lon, lat - dy / 2, lon, lat + dy / 2)[2]
    east = geod.inv(lon - dx / 2, lat, lon + dx / 2, lat)[2]
    return math.sqrt(north * east)


def latlon(data: Grid) -> tuple[xr.DataArray, xr.DataArray]:
    """Latitude and longitude [degrees, WGS 84] of the cell centres.

    (y, x) each on a projected grid; on a latitude-longitude grid `lat` is (y) and `lon` is (x).
    """
    crs, y, x = crs_of(data), data["y"].values, data["x"].values
    if crs.is_geographic:
        return xr.DataArray(y, dims="y", attrs=_DEGREES["y"]), xr.DataArray(x, dims="x", attrs=_DEGREES["x"])
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*np.meshgrid(x, y))
    return xr.DataArray(lat, dims=("y", "x"), attrs=_DEGREES["y"]), xr.DataArray(
        lon, dims=("y", "x"), attrs=_DEGREES["x"]
    )


def _block_mean(values: NDArray[np.float32], factor: int) -> Floats:
    *lead, ny, nx = values.shape
    blocks = values.reshape(*lead, ny // factor, factor, nx // factor, factor)
    observed = np.isfinite(blocks)
    count = observed.sum(axis=(-3, -1))
    total = np.where(observed, blocks, 0).sum(axis=(-3, -1), dtype=np.float64)
    return np.where(2 * count >= factor * factor, total / np.maximum(count, 1), np.nan)


def coarsen(data: xr.DataArray, factor: int) -> xr.DataArray:
    """Means of factor x factor cells of (..., y, x); rows and columns that fill no block are dropped.

    A block is NaN (not observed) unless at least half of its cells are observed; else the mean of the observed ones.
    Reflectivity is averaged in linear Z, "no echo" as 0; a mean less than 0.1 dB above "no echo" is "no echo".
    """
    if factor == 1:
        return data
    ny, nx = (data.sizes[axis] // factor * factor for axis in ("y", "x"))
    if ny == 0 or nx == 0:
        raise ValueError(f"expected at least {factor} cells along y and x; got {data.sizes['y']} x {data.sizes['x']}")
    data = data.isel(y=slice(ny), x=slice(nx)).transpose(..., "y", "x")
    no_echo = data.attrs.get("no_echo", NO_ECHO)
    if data.name == "equivalent_reflectivity_factor":
        values = decibels(_block_mean(linear(data.values, no_echo).astype(np.float32), factor), no_echo)
        values[values < no_echo + _FAINTEST] = no_echo
    else:
        values = _block_mean(data.values, factor).astype(np.float32)
    axes = {axis: data[axis].values.reshape(-1, factor).mean(axis=1) for axis in ("y", "x")}
    return _regridded(data, values, axes)


def refine(data: xr.DataArray, factor: int) -> xr.DataArray:
    """Each cell of (..., y, x) repeated factor x factor times: `coarsen(refine(a, n), n)` is `a`."""
    if factor == 1:
        return data
    data = data.transpose(..., "y", "x")
    values = np.repeat(np.repeat(data.values, factor, axis=-2), factor, axis=-1)
    axes = {}
    for axis in ("y", "x"):
        centres = data[axis].values
        step = float(centres[-1] - centres[0]) / (centres.size - 1)
        offsets = (np.arange(factor) - (factor - 1) / 2) / factor * step
        axes[axis] = (centres[:, None] + offsets).ravel()
    return _regridded(data, values, axes)


def _regridded(data: xr.DataArray, values: NDArray[np.float32], axes: dict[str, Floats]) -> xr.DataArray:
    kept = {name: coord for name, coord in data.coords.items() if not {"y", "x"} & set(coord.dims)}
    placed = {axis: xr.Variable((axis,), centres, data[axis].attrs) for axis, centres in axes.items()}
    return xr.DataArray(values, {**kept, **placed}, data.dims, data.name, data.attrs)


def _within(axis: Floats, bounds: tuple[float, float] | None, name: str) -> slice:
    if bounds is None:
        return slice(None)
    inside = np.flatnonzero((axis >= min(bounds)) & (axis <= max(bounds)))
    if inside.size == 0:
        raise ValueError(f"expected {name} bounds that overlap {axis.min()}..{axis.max()}; got {bounds}")
    return slice(int(inside[0]), int(inside[-1]) + 1)


def apply_region(frame: xr.DataArray, region: RegionSettings) -> xr.DataArray:
    """The cells whose centres lie in the region's bounds (inclusive, CRS units), then block means (see `coarsen`).

    Raises:
        ValueError: bounds that hold no cell, or fewer cells than one block.
    """
    rows, columns = _within(frame["y"].values, region.y, "y"), _within(frame["x"].values, region.x, "x")
    return coarsen(frame.isel(y=rows, x=columns), region.coarsen)


def region_packing(packing: Packing, region: RegionSettings) -> Packing:
    """The packing that keeps block means lossless: a step finer by the number of cells in a block.

    The mean of n*n whole codes is a whole multiple of step / (n*n), and one wet cell in a block never packs to dry;
    a mean over fewer observed cells is kept within half that step. A 32-bit packing is already far finer than its
    source, and would lose its range: it stays.
    """
    if region.coarsen == 1 or packing.dtype == "uint32":
        return packing
    return replace(packing, dtype="uint32", scale_factor=packing.scale_factor / region.coarsen**2, fill=2**32 - 1)
