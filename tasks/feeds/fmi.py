"""FMI's lowest-level reflectivity composite of Finland as gzipped PGM with a self-describing header.

A code v is v / 2 - 32 dBZ; 0 is no echo, 255 not observed. Rain by Z = 223 R^1.53.

References:
    Leinonen et al. (2012), doi:10.1175/JAMC-D-11-056.1 (Z-R of Finnish rain).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyproj

from tasks.feeds import FeedSource, FrameRejected, Packing
from tasks.feeds.bounded import gunzip
from tasks.feeds.file_feed import FileFeed, packing_of
from tasks.feeds.frames import Float32, Float64, Frames, build_frame, ceiling_of, check_time
from tasks.units import dbz_to_rain

_KEY = re.compile(r"(\d{12})_fmi\.radar\.composite\.lowest_FIN_SUOMI1\.pgm\.gz$")
_MISSING = 255
_STEP, _NO_ECHO = 0.5, -32.0
# The header's pixel sizes come out to the millimetre on this sphere alone (WGS 84 is 3.8 m off).
_SPHERE = 6_371_288.0
_PACKINGS = {
    "rainfall_rate": Packing("uint32", 2.0**-22, 0.0, 4_294_967_295),
    "equivalent_reflectivity_factor": Packing("uint8", _STEP, _NO_ECHO, _MISSING),
}


@dataclass(frozen=True)
class _Header:
    """What a PGM's comments and dimensions say."""

    fields: dict[str, str]
    nx: int
    ny: int
    maximum: int
    length: int


@dataclass(frozen=True)
class _Grid:
    """Projection and cell centres (metres; y descends)."""

    crs: pyproj.CRS
    x: Float64
    y: Float64


@lru_cache(maxsize=4)
def _table(quantity: str) -> Float32:
    dbz = (np.arange(256) * _STEP + _NO_ECHO).astype(np.float32)
    values = dbz if quantity == "equivalent_reflectivity_factor" else dbz_to_rain(dbz, 223.0, 1.53, _NO_ECHO)
    values[_MISSING] = np.nan
    return values


def _time_of(key: str) -> datetime | None:
    match = _KEY.search(key)
    return _moment(match[1]) if match else None


def _moment(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y%m%d%H%M").replace(tzinfo=UTC)
    except ValueError:
        return None


def _header(pgm: bytes) -> _Header:
    if not pgm.startswith(b"P5\n"):
        raise FrameRejected("corrupt", f"expected a binary PGM (P5); got {pgm[:8]!r}")
    fields: dict[str, str] = {}
    numbers: list[int] = []
    offset = 3
    while len(numbers) < 3:
        end = pgm.find(b"\n", offset, offset + 1000)
        if end < 0:
            raise FrameRejected("truncated", f"PGM header ends after {len(pgm)} bytes")
        line = pgm[offset:end].decode("latin-1")
        offset = end + 1
        if line.startswith("#"):
            name, _, value = line[1:].strip().partition(" ")
            fields[name] = value.strip()
        else:
            numbers += _numbers(line)
    if len(numbers) != 3:
        raise FrameRejected("corrupt", f"expected width, height and maximum; got {numbers}")
    width, height, maximum = numbers
    return _Header(fields, width, height, maximum, offset)


def _numbers(line: str) -> list[int]:
    if not re.fullmatch(r"\d{1,6}( \d{1,6})*", line.strip()):
        raise FrameRejected("corrupt", f"expected numbers in the PGM header; got {line[:40]!r}")
    return [int(word) for word in line.split()]


@lru_cache(maxsize=8)
def _grid(described: tuple[str, ...], nx: int, ny: int) -> _Grid:
    kind, lon, lat, true_lat, lower, upper, dx, dy = described
    if kind != "stereographic":
        raise FrameRejected("wrong_grid", f"expected a stereographic projection; got {kind!r}")
    try:
        values = [float(word) for word in (lon, lat, true_lat, *lower.split(), *upper.split(), dx, dy)]
        lon0, lat0, lat_ts, west, south, east, north, width, height = values
        crs = pyproj.CRS(f"+proj=stere +lat_0={lat0} +lon_0={lon0} +lat_ts={lat_ts} +R={_SPHERE} +units=m")
        to_plane = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
        (left, right), (bottom, top) = to_plane.transform([west, east], [south, north], errcheck=True)
    except (ValueError, pyproj.exceptions.ProjError) as error:
        raise FrameRejected("wrong_grid", f"projection of the header: {error}") from error
    if abs((right - left) / width - nx) > 0.5 or abs((top - bottom) / height - ny) > 0.5:
        raise FrameRejected("wrong_grid", f"{ny} x {nx} cells do not fill the header's corners")
    x = left + (np.arange(nx) + 0.5) * (right - left) / nx
    y = top - (np.arange(ny) + 0.5) * (top - bottom) / ny
    return _Grid(crs, x, y)


_GRID_FIELDS = (
    *("type", "centrallongitude", "centrallatitude", "truelatitude"),
    *("bottomleft", "topright", "metersperpixel_x", "metersperpixel_y"),
)


def _codes(pgm: bytes, header: _Header) -> npt.NDArray[np.uint8]:
    expected, found = header.nx * header.ny, len(pgm) - header.length
    if found != expected:
        reason = "truncated" if found < expected else "corrupt"
        raise FrameRejected(reason, f"expected {expected} cells; got {found}")
    return np.frombuffer(pgm, np.uint8, offset=header.length).reshape(header.ny, header.nx)


def _check(header: _Header, source: FeedSource, key: str) -> datetime:
    parameter, stamp = header.fields.get("param"), header.fields.get("obstime", "")
    if parameter != "CorrectedReflectivity" or header.maximum != 255:
        raise FrameRejected("wrong_quantity", f"expected CorrectedReflectivity in one byte; got {parameter!r}")
    time = _moment(stamp)
    if time is None:
        raise FrameRejected("corrupt", f"expected obstime YYYYmmddHHMM; got {stamp!r}")
    check_time(time, _time_of(key), source.cadence / 2, key)
    return time


def _frames_of(source: FeedSource, data: bytes, key: str) -> Frames:
    pgm = gunzip(data, source.max_bytes)
    header = _header(pgm)
    time = _check(header, source, key)
    grid = _grid(tuple(header.fields.get(name, "") for name in _GRID_FIELDS), header.nx, header.ny)
    frame = build_frame(
        _table(source.quantity)[_codes(pgm, header)],
        quantity=source.quantity,
        time=time,
        crs=grid.crs,
        x=grid.x,
        y=grid.y,
        ceiling=ceiling_of(source.quantity, packing_of(source, _PACKINGS)),
        no_echo=_NO_ECHO if source.quantity == "equivalent_reflectivity_factor" else None,
        quality={
            "product": header.fields.get("productname", ""),
            "radars": pgm[: header.length].count(b"# radar "),
        },
    )
    return [frame]


def open_feed(source: FeedSource) -> FileFeed:
    """FMI composites under any fsspec root; published about five minutes after observation.

    Rain is packed in steps of 2^-22 mm h-1 (the weakest echo is 2.5e-4 mm h-1), reflectivity in FMI's own byte.

    Raises:
        ValueError: another quantity than rain or reflectivity.
    """
    packing = packing_of(source, _PACKINGS)
    return FileFeed(source, packing, timedelta(minutes=5), "CC-BY-4.0", _time_of, _frames_of)
