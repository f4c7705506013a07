"""OPERA's and national composites as ODIM_H5, wherever gain, offset, nodata and undetect sit, or do not.

An attribute of a data set is looked up in its own `what`, then in its group's, then in the file's. What is absent takes
ODIM's default: gain 1, offset 0, and no code for nodata or undetect. A frame's time is the END of its interval
(enddate, endtime), which in OPERA's files is some minutes after the nominal time of the name.

References:
    Michelson et al. (2014), EUMETNET OPERA weather radar information model for implementation with HDF5, version 2.2.
    Saltikoff et al. (2019), doi:10.3390/atmos10060320.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pyproj

from tasks.feeds import FeedSource, FrameRejected, Packing
from tasks.feeds.file_feed import FileFeed, packing_of
from tasks.feeds.frames import Float32, Float64, Frames, build_frame, check_time
from tasks.feeds.hdf5 import attribute, dataset, open_hdf5, read_array
from tasks.units import NO_ECHO

_KEY = re.compile(r"(?<!\d)(\d{8})[T_-]?(\d{4})(\d{2})?Z?(?!\d)[^/]*\.(?:h5|hdf|hdf5)$", re.IGNORECASE)
_DATASET = re.compile(r"dataset(\d+)")
_DATA = re.compile(r"data(\d+)")

# ODIM quantity -> ours. ACRR is a depth [mm] over the interval.
_QUANTITIES = {
    "rainfall_rate": ("RATE", "ACRR"),
    "equivalent_reflectivity_factor": ("DBZH", "TH", "DBZV", "TV", "DBZ"),
    "vil": ("VIL",),
}
# Gains and rates are decimals (OPERA's rates are float64 in whole steps of 0.01 mm h-1): a millionth keeps each exactly
# after rounding to float32, and 32 bits of it reach 4294.
_PACKINGS = {
    "rainfall_rate": Packing("uint32", 1e-6, 0.0, 2**32 - 1),
    "equivalent_reflectivity_factor": Packing("uint32", 1e-6, NO_ECHO, 2**32 - 1),
    "vil": Packing("uint32", 1e-6, 0.0, 2**32 - 1),
}


@dataclass(frozen=True)
class Layer:
    """One array of the file and where its attributes may sit.

    Attributes:
        path: Group that holds `data`.
        scopes: Groups whose `what` may describe it, nearest first.
    """

    path: str
    scopes: tuple[str, ...]

    def find(self, file: h5py.File, name: str) -> str | float | None:
        """The attribute `name` of the nearest `what` that has it; None where none does."""
        for scope in self.scopes:
            what = file.get(f"{scope}/what")
            if what is not None and name in what.attrs:
                return attribute(what, name)
        return None

    def number(self, file: h5py.File, name: str) -> float | None:
        """The attribute as a number; None where it is absent."""
        found = self.find(file, name)
        return None if found is None else float(found)


def _layers(file: h5py.File) -> Iterator[Layer]:
    for group in _numbered(file, _DATASET):
        for part in _numbered(file[group], _DATA):
            path = f"/{group}/{part}"
            yield Layer(path, (path, f"/{group}", ""))


def _numbered(node: h5py.Group, pattern: re.Pattern[str]) -> list[str]:
    found = [match for name in node if (match := pattern.fullmatch(str(name)))]
    return [match[0] for match in sorted(found, key=lambda match: int(match[1]))]


def _wanted_layer(file: h5py.File, source: FeedSource) -> tuple[Layer, str]:
    """The first layer of the source's quantity (of its option `odim_quantity`, where given), and its ODIM name."""
    accepted = _QUANTITIES[source.quantity]
    if "odim_quantity" in source.options:
        accepted = (source.options["odim_quantity"],)
    layers = [(layer, str(layer.find(file, "quantity"))) for layer in _layers(file)]
    for layer, name in layers:
        if name in accepted:
            return layer, name
    raise FrameRejected("wrong_quantity", f"expected one of {accepted}; got {sorted(name for _, name in layers)}")


def _interval(file: h5py.File, layer: Layer) -> tuple[datetime | None, datetime]:
    start = _moment(layer.find(file, "startdate"), layer.find(file, "starttime"))
    end = _moment(layer.find(file, "enddate"), layer.find(file, "endtime"))
    end = end or _moment(layer.find(file, "date"), layer.find(file, "time"))
    if end is None:
        raise FrameRejected("corrupt", "expected enddate and endtime, or date and time; got neither")
    return start, end


def _moment(date: object, time: object) -> datetime | None:
    if date is None or time is None:
        return None
    try:
        return datetime.strptime(f"{date}{time}", "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError as error:
        raise FrameRejected("corrupt", f"expected YYYYMMDD and HHMMSS; got {date!r} and {time!r}") from error


@lru_cache(maxsize=8)
def _crs(projdef: str) -> tuple[pyproj.CRS, float]:
    """The projection in metres (or degrees), and metres per unit of the file where its ellipsoid is in kilometres."""
    try:
        crs = pyproj.CRS.from_user_input(projdef)
        if crs.ellipsoid is None or crs.ellipsoid.semi_major_metre > 10_000.0:
            return crs, 1.0
        words = dict(re.findall(r"\+(\w+)=(\S+)", projdef))
        lengths = {k: float(v) * 1000.0 for k, v in words.items() if k in ("a", "b", "R", "x_0", "y_0")}
        return pyproj.CRS.from_dict({**words, **lengths, "units": "m"}), 1000.0
    except (pyproj.exceptions.ProjError, ValueError) as error:
        raise FrameRejected("wrong_grid", f"projection {projdef!r}: {error}") from error


def _axes(file: h5py.File, layer: Layer) -> tuple[pyproj.CRS, Float64, Float64]:
    """CRS and cell centres; the corners of the file are its cells' outer corners, or in some files their centres."""
    where = file.get(f"{layer.scopes[1]}/where", file["where"])
    where = where if "projdef" in where.attrs else file["where"]
    crs, metres = _crs(str(attribute(where, "projdef")))
    nx, ny = (int(attribute(where, name)) for name in ("xsize", "ysize"))
    dx, dy = (float(attribute(where, name)) * metres for name in ("xscale", "yscale"))
    to_plane = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
    corners = {
        name: to_plane.transform(float(attribute(where, f"{name}_lon")), float(attribute(where, f"{name}_lat")))
        for name in ("UL", "LR", "LL", "UR")
    }
    (west, north), (east, south) = corners["UL"], corners["LR"]
    half = _corner_offset((east - west) / dx, (north - south) / dy, nx, ny)
    square = {"LL": (west, south), "UR": (east, north)}
    if not all(np.hypot(*np.subtract(corners[name], square[name])) < (dx + dy) / 2 for name in square):
        raise FrameRejected("wrong_grid", f"corners are no rectangle of the projection: {corners}")
    digits = 9 if crs.is_geographic else 3
    x = west + dx * (np.arange(nx) + half)
    y = north - dy * (np.arange(ny) + half)
    return crs, np.round(x, digits), np.round(y, digits)


def _corner_offset(across: float, down: float, nx: int, ny: int) -> float:
    for offset, cells in ((0.5, 0), (0.0, 1)):
        if max(abs(across - (nx - cells)), abs(down - (ny - cells))) < 0.25:
            return offset
    raise FrameRejected("wrong_grid", f"corners span {down:.2f} x {across:.2f} cells; the grid has {ny} x {nx}")


def _physical(file: h5py.File, layer: Layer, raw: npt.NDArray[Any], dry: float, factor: float) -> Float32:
    """Values (y, x): nodata NaN, undetect `dry`, the rest (gain * code + offset) * factor."""
    gain, offset = layer.number(file, "gain"), layer.number(file, "offset")
    nodata, undetect = layer.number(file, "nodata"), layer.number(file, "undetect")
    scaled = raw.astype(np.float64) * ((1.0 if gain is None else gain) * factor) + (offset or 0.0) * factor
    values = scaled.astype(np.float32)
    if undetect is not None:
        values[raw == undetect] = dry
    if nodata is not None:
        values[raw == nodata] = np.nan
    return values


def _read(file: h5py.File, layer: Layer, shape: tuple[int, int], max_bytes: int) -> npt.NDArray[Any]:
    node = dataset(file, f"{layer.path}/data")
    if node.shape != shape:
        raise FrameRejected("wrong_grid", f"expected {shape} cells in {layer.path}; got {node.shape}")
    return read_array(node, max_bytes)


def _quality_index(file: h5py.File, shape: tuple[int, int], max_bytes: int) -> dict[str, object]:
    """Mean of the quality index QIND (0 worst, 1 best) where it is given, and how much of the grid that is."""
    for layer in _layers(file):
        if layer.find(file, "quantity") == "QIND":
            index = _physical(file, layer, _read(file, layer, shape, max_bytes), 0.0, 1.0)
            given = index[np.isfinite(index)]
            mean = float(given.mean(dtype=np.float64)) if given.size else None
            return {"qind_mean": mean and round(mean, 4), "qind_coverage": round(given.size / index.size, 4)}
    return {}


def _factor(name: str, start: datetime | None, end: datetime) -> float:
    if name != "ACRR":
        return 1.0
    if start is None or start >= end:
        raise FrameRejected("corrupt", f"expected the interval of a depth; got {start} to {end}")
    return timedelta(hours=1) / (end - start)


def _frames_of(source: FeedSource, data: bytes, key: str) -> Frames:
    no_echo = NO_ECHO if source.quantity == "equivalent_reflectivity_factor" else None
    dry = 0.0 if no_echo is None else no_echo
    with open_hdf5(data) as file:
        if attribute(file["what"], "object") not in ("COMP", "IMAGE"):
            raise FrameRejected("wrong_quantity", f"expected a composite; got {attribute(file['what'], 'object')!r}")
        layer, name = _wanted_layer(file, source)
        start, end = _interval(file, layer)
        check_time(end, _time_of(key), source.cadence, key)
        crs, x, y = _axes(file, layer)
        raw = _read(file, layer, (y.size, x.size), source.max_bytes)
        values = _physical(file, layer, raw, dry, _factor(name, start, end))
        quality = _quality_index(file, (y.size, x.size), source.max_bytes)
    if no_echo is not None:
        np.maximum(values, np.float32(no_echo), out=values)
    elif np.any(values < 0):
        raise FrameRejected("corrupt", f"expected {name} from 0 up; got {np.nanmin(values)}, which no code explains")
    frame = build_frame(
        values,
        quantity=source.quantity,
        time=end,
        crs=crs,
        x=x,
        y=y,
        no_echo=no_echo,
        quality={"odim_quantity": name, **quality},
    )
    return [frame]


def _time_of(key: str) -> datetime | None:
    match = _KEY.search(key)
    try:
        stamp = f"{match[1]}{match[2]}{match[3] or '00'}" if match else ""
        return datetime.strptime(stamp, "%Y%m%d%H%M%S").replace(tzinfo=UTC) if stamp else None
    except ValueError:
        return None


def open_feed(source: FeedSource) -> FileFeed:
    """ODIM_H5 composites under any fsspec root; OPERA's come about a quarter of an hour after their time.

    Options: `odim_quantity` (such as TH) where a file holds several of one kind; `folders`.

    Raises:
        ValueError: a quantity that no composite gives.
    """
    packing = packing_of(source, _PACKINGS)
    return FileFeed(source, packing, timedelta(minutes=15), "CC-BY-4.0", _time_of, _frames_of)
