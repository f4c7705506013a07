"""KNMI's five-minute rain depth over the Netherlands (RAD_NL25) as HDF5.

A code is 0.01 mm in the interval that ends at product_datetime_end; 65535 is not observed. The file's projection
counts in kilometres, frames in metres.

References:
    Overeem et al. (2009), doi:10.1175/2009JAMC1954.1 (radar rain depths of the Netherlands).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import h5py
import numpy as np
import pyproj

from tasks.feeds import FeedSource, FrameRejected, Packing
from tasks.feeds.file_feed import FileFeed, packing_of
from tasks.feeds.frames import Float32, Float64, Frames, build_frame, ceiling_of, check_time
from tasks.feeds.hdf5 import attribute, dataset, numbers, open_hdf5, read_array

_KEY = re.compile(r"RAD_NL25_[A-Z0-9]+_(?:[A-Za-z0-9]+_)*?(\d{12})\.h5$")
_STAMP = re.compile(r"(\d{2})-([A-Z]{3})-(\d{4});(\d{2}):(\d{2}):(\d{2})")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DEPTH_STEP = 0.01
_FORMULA = re.compile(r"GEO\s*=\s*([\d.]+)\s*\*\s*PV\s*\+\s*([\d.]+)")
_PROJECTION = ("proj", "lat_0", "lon_0", "lat_ts", "a", "b", "x_0", "y_0")
_LAYOUT = ("column_offset", "pixel_size_x", "row_offset", "pixel_size_y", "number_columns", "number_rows")
_MISSING = 65_535


def _packings(source: FeedSource) -> dict[str, Packing]:
    return {"rainfall_rate": Packing("uint16", _DEPTH_STEP * (timedelta(hours=1) / source.cadence), 0.0, _MISSING)}


def _time_of(key: str) -> datetime | None:
    match = _KEY.search(key)
    try:
        return datetime.strptime(match[1], "%Y%m%d%H%M").replace(tzinfo=UTC) if match else None
    except ValueError:
        return None


def _moment(text: str | float) -> datetime:
    """`26-AUG-2010;00:05:00.000`; month names are English whatever the locale."""
    match = _STAMP.match(str(text))
    if match is None or match[2] not in _MONTHS:
        raise FrameRejected("corrupt", f"expected DD-MON-YYYY;HH:MM:SS; got {text!r}")
    day, year, hour, minute, second = (int(match[group]) for group in (1, 3, 4, 5, 6))
    return datetime(year, _MONTHS.index(match[2]) + 1, day, hour, minute, second, tzinfo=UTC)


@lru_cache(maxsize=4)
def _table(missing: frozenset[int], scale: float) -> Float32:
    values = (np.arange(_MISSING + 1) * scale).astype(np.float32)
    values[sorted(missing)] = np.nan
    return values


def _check_quantity(file: h5py.File, source: FeedSource) -> frozenset[int]:
    parameter = attribute(file["image1"], "image_geo_parameter")
    calibration = file["image1/calibration"]
    formula = str(attribute(calibration, "calibration_formulas"))
    match = _FORMULA.fullmatch(formula.strip())
    if parameter != "ACCUMULATED_PRECIPITATION_[MM]" or match is None:
        raise FrameRejected("wrong_quantity", f"expected depths in mm; got {parameter!r}, {formula!r}")
    if (float(match[1]), float(match[2])) != (_DEPTH_STEP, 0.0):
        raise FrameRejected("wrong_quantity", f"expected GEO=0.01*PV+0.0; got {formula!r}")
    codes = (attribute(calibration, f"calibration_{name}") for name in ("missing_data", "out_of_image"))
    missing = frozenset(int(code) for code in codes)
    if not missing <= {_MISSING}:
        raise FrameRejected("wrong_quantity", f"expected missing code {_MISSING}; got {sorted(missing)}")
    return missing


def _interval_end(file: h5py.File, source: FeedSource, key: str) -> datetime:
    start, end = (_moment(attribute(file["overview"], f"product_datetime_{name}")) for name in ("start", "end"))
    if end - start != source.cadence:
        raise FrameRejected("wrong_quantity", f"expected depths of {source.cadence}; got {end - start}")
    check_time(end, _time_of(key), source.cadence / 2, key)
    return end


@lru_cache(maxsize=4)
def _crs(text: str) -> pyproj.CRS:
    """The projection in metres of a PROJ string whose ellipsoid is in kilometres."""
    words = dict(re.findall(r"\+(\w+)=(\S+)", text))
    if words.get("proj") != "stere" or not set(words) <= set(_PROJECTION) or not {"a", "b"} <= set(words):
        raise FrameRejected("wrong_grid", f"expected a stereographic projection on an ellipsoid a, b; got {text!r}")
    lengths = {name: float(words.get(name, 0)) * 1000.0 for name in ("a", "b", "x_0", "y_0")}
    angles = {name: float(words[name]) for name in ("lat_0", "lon_0", "lat_ts")}
    try:
        return pyproj.CRS.from_dict({"proj": "stere", **angles, **lengths, "units": "m"})
    except pyproj.exceptions.ProjError as error:
        raise FrameRejected("wrong_grid", f"projection {text!r}: {error}") from error


def _described(file: h5py.File) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    geographic = file["geographic"]
    if attribute(geographic, "geo_dim_pixel") != "KM,KM":
        raise FrameRejected("wrong_grid", f"expected cells in km; got {attribute(geographic, 'geo_dim_pixel')!r}")
    layout = tuple(float(attribute(geographic, f"geo_{name}")) for name in _LAYOUT)
    projection = str(attribute(geographic["map_projection"], "projection_proj4_params"))
    return projection, layout, tuple(numbers(geographic, "geo_product_corners"))


@lru_cache(maxsize=4)
def _axes(
    projection: str, layout: tuple[float, ...], corners: tuple[float, ...]
) -> tuple[pyproj.CRS, Float64, Float64]:
    crs = _crs(projection)
    left, dx, top, dy, nx, ny = layout
    if not (0 < nx <= 10_000 and 0 < ny <= 10_000 and len(corners) == 8):
        raise FrameRejected("wrong_grid", f"expected a grid with four corners; got {ny} x {nx}, {len(corners) // 2}")
    x = (np.arange(int(nx), dtype=np.float64) + 0.5 + left) * (dx * 1000.0)
    y = (np.arange(int(ny), dtype=np.float64) + 0.5 + top) * (dy * 1000.0)
    to_plane = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
    west, north = to_plane.transform(corners[2], corners[3])
    if not (abs(west - x[0]) <= abs(dx) * 1000.0 and abs(north - y[0]) <= abs(dy) * 1000.0):
        raise FrameRejected("wrong_grid", f"the grid's upper left corner is not at {corners[2:4]} degrees")
    return crs, x, y


def _frames_of(source: FeedSource, data: bytes, key: str) -> Frames:
    packing = packing_of(source, _packings(source))
    with open_hdf5(data) as file:
        missing = _check_quantity(file, source)
        time = _interval_end(file, source, key)
        crs, x, y = _axes(*_described(file))
        image = dataset(file, "image1/image_data")
        if image.shape != (y.size, x.size) or image.dtype != np.uint16:
            raise FrameRejected("wrong_grid", f"expected {y.size} x {x.size} uint16; got {image.shape} {image.dtype}")
        codes = read_array(image, source.max_bytes)
        product = str(attribute(file["image1"], "image_product_name"))
    frame = build_frame(
        _table(missing, packing.scale_factor)[codes],
        quantity=source.quantity,
        time=time,
        crs=crs,
        x=x,
        y=y,
        ceiling=ceiling_of(source.quantity, packing),
        quality={"product": product},
    )
    return [frame]


def open_feed(source: FeedSource) -> FileFeed:
    """KNMI files under any fsspec root; published about five minutes after the interval's end.

    Packed in the source's own step, 0.01 mm per cadence.

    Raises:
        ValueError: another quantity than rain.
    """
    packing = packing_of(source, _packings(source))
    return FileFeed(source, packing, timedelta(minutes=5), "CC-BY-4.0", _time_of, _frames_of)
