"""Rain depths of one Australian radar (BoM Rainfields) as netCDF-4 with CF attributes.

A code is 0.05 mm in the interval that ends at valid_time; -1 is not observed. The bias correction overshoots to -2
here and there (17 cells of 2020-10-31, beside codes -1): a negative depth is no observation either. Coordinates are
kilometres of an Albers projection around the radar.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial

import h5py
import numpy as np
import pyproj

from tasks.feeds import FeedSource, FrameRejected, Packing
from tasks.feeds.file_feed import FileFeed, packing_of
from tasks.feeds.frames import Float32, Float64, Frames, build_frame, ceiling_of, check_time
from tasks.feeds.hdf5 import attribute, dataset, numbers, open_hdf5, read_array

_KEY = re.compile(r"(?:^|/)(\d+)_(\d{8}_\d{6})\.prcp-\w+\.nc$")
_EPOCH = "seconds since 1970-01-01 00:00:00 UTC"
_DEPTH_STEP = 0.05
_MISSING = -1
_PROJECTION = (
    *("longitude_of_central_meridian", "latitude_of_projection_origin", "false_easting", "false_northing"),
    *("semi_major_axis", "semi_minor_axis"),
)


def _packings(source: FeedSource) -> dict[str, Packing]:
    return {"rainfall_rate": Packing("uint16", _DEPTH_STEP * (timedelta(hours=1) / source.cadence), 0.0, 65_535)}


def _time_of(station: str | None, key: str) -> datetime | None:
    match = _KEY.search(key)
    if match is None or station not in (None, match[1]):
        return None
    try:
        return datetime.strptime(match[2], "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


@lru_cache(maxsize=4)
def _table(scale: float) -> Float32:
    # Indexed by the code's bits as uint16: the upper half stands for negative codes.
    return np.where(np.arange(65_536) < 32_768, np.arange(65_536) * scale, np.nan).astype(np.float32)


def _check_quantity(field: h5py.Dataset) -> None:
    name, units = (attribute(field, word) for word in ("standard_name", "units"))
    step, offset, missing = (attribute(field, word) for word in ("scale_factor", "add_offset", "_FillValue"))
    if name != "precipitation_amount" or units not in ("kg m-2", "mm") or field.dtype != np.int16:
        raise FrameRejected("wrong_quantity", f"expected precipitation_amount; got {name!r} [{units}] {field.dtype}")
    if abs(float(step) - _DEPTH_STEP) > 1e-6 or (offset, missing) != (0.0, _MISSING):
        raise FrameRejected("wrong_quantity", f"expected codes of 0.05 mm, -1 missing; got {step}, {offset}, {missing}")


def _moment(file: h5py.File, name: str) -> datetime:
    node = dataset(file, name)
    if attribute(node, "units") != _EPOCH or node.shape != ():
        raise FrameRejected("corrupt", f"expected {name} as {_EPOCH}")
    try:
        return datetime.fromtimestamp(int(node[()]), UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise FrameRejected("corrupt", f"{name}: {error}") from error


def _interval_end(file: h5py.File, source: FeedSource, key: str) -> datetime:
    start, end = _moment(file, "start_time"), _moment(file, "valid_time")
    if end - start != source.cadence:
        raise FrameRejected("wrong_quantity", f"expected depths of {source.cadence}; got {end - start}")
    check_time(end, _time_of(None, key), source.cadence / 2, key)
    return end


@lru_cache(maxsize=8)
def _crs(parallels: tuple[float, ...], values: tuple[float, ...]) -> pyproj.CRS:
    mapping = {"grid_mapping_name": "albers_conical_equal_area", "standard_parallel": list(parallels)}
    try:
        return pyproj.CRS.from_cf({**mapping, **dict(zip(_PROJECTION, values, strict=True))})
    except (pyproj.exceptions.ProjError, ValueError, KeyError, IndexError) as error:
        raise FrameRejected("wrong_grid", f"projection of the file: {error}") from error


def _grid_crs(field: h5py.Dataset, file: h5py.File) -> pyproj.CRS:
    node = dataset(file, str(attribute(field, "grid_mapping")))
    name = attribute(node, "grid_mapping_name")
    if name != "albers_conical_equal_area":
        raise FrameRejected("wrong_grid", f"expected an Albers projection; got {name!r}")
    values = tuple(float(attribute(node, word)) for word in _PROJECTION)
    return _crs(tuple(numbers(node, "standard_parallel")), values)


def _axis(file: h5py.File, name: str) -> Float64:
    node = dataset(file, name)
    if node.ndim != 1 or not 2 <= node.size <= 10_000 or attribute(node, "units") != "km":
        raise FrameRejected("wrong_grid", f"expected cell centres {name} in km; got shape {node.shape}")
    values = np.asarray(node[()], np.float64) * 1000.0
    steps = np.diff(values)
    if not np.allclose(steps, steps[0], rtol=1e-6) or steps[0] == 0 or not np.isfinite(values).all():
        raise FrameRejected("wrong_grid", f"cell centres {name} are not evenly spaced")
    return values


def _frames_of(source: FeedSource, data: bytes, key: str) -> Frames:
    packing = packing_of(source, _packings(source))
    with open_hdf5(data) as file:
        field = dataset(file, "precipitation")
        _check_quantity(field)
        time = _interval_end(file, source, key)
        crs, x, y = _grid_crs(field, file), _axis(file, "x"), _axis(file, "y")
        if field.shape != (y.size, x.size):
            raise FrameRejected("wrong_grid", f"expected {y.size} x {x.size} cells; got {field.shape}")
        codes = np.asarray(read_array(field, source.max_bytes), np.int16)
        described = {name: str(attribute(file, name)) for name in ("station_name", "title")}
    frame = build_frame(
        _table(packing.scale_factor)[codes.view(np.uint16)],
        quantity=source.quantity,
        time=time,
        crs=crs,
        x=x,
        y=y,
        ceiling=ceiling_of(source.quantity, packing),
        quality={**described, "negative_cells": int(np.count_nonzero(codes < _MISSING))},
    )
    return [frame]


def open_feed(source: FeedSource) -> FileFeed:
    """BoM Rainfields files under any fsspec root; the option `station` keeps one radar's.

    Packed in the source's own step, 0.05 mm per cadence.

    Raises:
        ValueError: another quantity than rain.
    """
    packing = packing_of(source, _packings(source))
    time_of = partial(_time_of, source.options.get("station"))
    return FileFeed(source, packing, timedelta(minutes=10), "LicenseRef-BoM", time_of, _frames_of)
