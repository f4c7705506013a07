"""GRIB2 messages of one field on a regular latitude-longitude grid, read and written with ecCodes alone.

ecCodes' wheel is built thread-safe (feature ECCODES_THREADS) and its Python layer gives up the interpreter lock while
it unpacks: two threads decode in parallel and give the same values as one. A build without that feature is serialised.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime

import eccodes
import numpy as np
import numpy.typing as npt
import pyproj

from tasks.feeds import FrameRejected

Float64 = npt.NDArray[np.float64]

_THREAD_SAFE = "ECCODES_THREADS" in eccodes.codes_get_features(eccodes.CODES_FEATURES_ENABLED)
_ECCODES: AbstractContextManager[object] = nullcontext() if _THREAD_SAFE else threading.Lock()

_INDICATOR, _END = 16, b"7777"
_MICRODEGREES = 1_000_000
# Code table 3.2; 2 (IAU 1965) is what MRMS declares.
_ELLIPSOIDS = {
    0: "+R=6367470",
    2: "+a=6378160 +b=6356775",
    4: "+ellps=GRS80",
    5: "+ellps=WGS84",
    6: "+R=6371229",
}


@dataclass(frozen=True)
class Header:
    """What a message says of itself.

    Attributes:
        parameter: (discipline, category, number).
        time: Reference time to the second (aware, UTC).
        resolution: Physical units per code step of the packing.
        crs: Geographic CRS on the declared ellipsoid.
        latitude: Cell centres (y,), degrees north, in the order of the rows.
        longitude: Cell centres (x,), degrees east in -180..180.
    """

    parameter: tuple[int, int, int]
    time: datetime
    resolution: float
    crs: pyproj.CRS
    latitude: Float64
    longitude: Float64


def split_messages(data: bytes) -> list[bytes]:
    """The GRIB2 messages that `data` consists of, whole from indicator to end section.

    Raises:
        FrameRejected: no_data (empty), unreadable (not GRIB2), truncated, or corrupt (no end section, bytes between).
    """
    if not data:
        raise FrameRejected("no_data", "expected a GRIB2 message; got 0 bytes")
    messages, at = [], 0
    while at < len(data):
        head = data[at : at + _INDICATOR]
        if not head.startswith(b"GRIB"[: len(head)]):
            raise FrameRejected("corrupt" if at else "unreadable", f"expected GRIB at byte {at}; got {head[:4]!r}")
        if len(head) < _INDICATOR:
            raise FrameRejected("truncated", f"the message at byte {at} ends within its indicator section")
        if head[7] != 2:
            raise FrameRejected("unreadable", f"expected GRIB edition 2 at byte {at}; got edition {head[7]}")
        length = int.from_bytes(head[8:16], "big")
        if len(data) - at < length:
            raise FrameRejected("truncated", f"the message at byte {at} declares {length} bytes; {len(data) - at} came")
        if length < _INDICATOR + len(_END) or data[at + length - 4 : at + length] != _END:
            raise FrameRejected("corrupt", f"the message at byte {at} of {length} bytes has no end section")
        messages.append(data[at : at + length])
        at += length
    return messages


@contextmanager
def open_message(message: bytes) -> Iterator[int]:
    """An ecCodes handle on one message, released at the end.

    Raises:
        FrameRejected: corrupt, for whatever ecCodes refuses while the handle is open.
    """
    with _ECCODES:
        try:
            handle = eccodes.codes_new_from_message(message)
            try:
                yield handle
            finally:
                eccodes.codes_release(handle)
        except eccodes.CodesInternalError as error:
            raise FrameRejected("corrupt", f"ecCodes refuses a message of {len(message)} bytes: {error}") from error


def read_header(handle: int, max_bytes: int) -> Header:
    """The message's identity, time and grid, without unpacking a value.

    Raises:
        FrameRejected: oversized (values above `max_bytes`), wrong_grid, wrong_quantity (a forecast), corrupt.
    """
    nx, ny = _whole(handle, "Ni"), _whole(handle, "Nj")
    if nx * ny * 8 > max_bytes:
        raise FrameRejected("oversized", f"{ny} x {nx} values declared; the ceiling is {max_bytes} bytes")
    if _whole(handle, "numberOfValues") != nx * ny or _whole(handle, "bitmapPresent"):
        raise FrameRejected("wrong_grid", f"expected {ny} x {nx} values without a bitmap")
    if _whole(handle, "forecastTime"):
        raise FrameRejected(
            "wrong_quantity", f"expected an analysis; got forecast time {_whole(handle, 'forecastTime')}"
        )
    latitude, longitude = _grid(handle, ny, nx)
    parameter = tuple(_whole(handle, key) for key in ("discipline", "parameterCategory", "parameterNumber"))
    return Header(
        parameter=(parameter[0], parameter[1], parameter[2]),
        time=_time(handle),
        resolution=2.0 ** _whole(handle, "binaryScaleFactor") * 10.0 ** -_whole(handle, "decimalScaleFactor"),
        crs=_crs(_whole(handle, "shapeOfTheEarth")),
        latitude=latitude,
        longitude=longitude,
    )


def read_values(handle: int, header: Header) -> Float64:
    """The field (y, x) in the message's units, its flags unmasked; float64, since PNG packing has no float32 getter."""
    values: Float64 = eccodes.codes_get_values(handle)
    return values.reshape(header.latitude.size, header.longitude.size)


def _whole(handle: int, key: str) -> int:
    return int(eccodes.codes_get_long(handle, key))


def _time(handle: int) -> datetime:
    parts = [_whole(handle, key) for key in ("year", "month", "day", "hour", "minute", "second")]
    try:
        return datetime(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], tzinfo=UTC)
    except ValueError as error:
        raise FrameRejected("corrupt", f"reference time {parts}: {error}") from error


def _crs(shape: int) -> pyproj.CRS:
    if shape not in _ELLIPSOIDS:
        raise FrameRejected("wrong_grid", f"expected a shape of the earth of {sorted(_ELLIPSOIDS)}; got {shape}")
    return pyproj.CRS.from_user_input(f"+proj=longlat {_ELLIPSOIDS[shape]} +no_defs +type=crs")


def _grid(handle: int, ny: int, nx: int) -> tuple[Float64, Float64]:
    template, scanning = _whole(handle, "gridDefinitionTemplateNumber"), _whole(handle, "scanningMode")
    if template != 0 or scanning != 0:
        raise FrameRejected(
            "wrong_grid", f"expected template 0 scanned from the north-west; got {template}, {scanning}"
        )
    south = _axis(handle, "latitude", "jDirectionIncrement", -1, ny)
    east = _axis(handle, "longitude", "iDirectionIncrement", 1, nx)
    return south, np.where(east > 180.0, east - 360.0, east) if east[0] <= 180.0 else east - 360.0


def _axis(handle: int, name: str, increment: str, sign: int, count: int) -> Float64:
    first, last = _whole(handle, f"{name}OfFirstGridPoint"), _whole(handle, f"{name}OfLastGridPoint")
    step = sign * _whole(handle, increment)
    # MRMS's last points are up to 2 microdegrees off the increments: those of the grid are what counts.
    if step == 0 or abs(first + step * (count - 1) - last) > abs(step) / 2:
        raise FrameRejected("wrong_grid", f"{count} steps of {step} from {first} do not end at {name} {last}")
    return (first + step * np.arange(count, dtype=np.int64)) / _MICRODEGREES


def encode_field(values: Float64, header: Header) -> bytes:
    """One message of `values` (y, x), packed as MRMS packs them: PNG of whole steps of `resolution`.

    Args:
        values: In the parameter's units, flags included; rounded to the nearest step.
        header: What the message shall say; `resolution` a power of ten, `latitude` descending.
    """
    ny, nx = values.shape
    first = {"latitude": header.latitude[0], "longitude": header.longitude[0] % 360.0}
    last = {"latitude": header.latitude[-1], "longitude": header.longitude[-1] % 360.0}
    decimals = -round(np.log10(header.resolution))
    keys = {
        "discipline": header.parameter[0],
        "centre": 161,
        "localTablesVersion": 1,
        "significanceOfReferenceTime": 3,
        "productionStatusOfProcessedData": 2,
        **{key: getattr(header.time, key) for key in ("year", "month", "day", "hour", "minute", "second")},
        "shapeOfTheEarth": 2,
        "Ni": nx,
        "Nj": ny,
        **{f"{name}OfFirstGridPoint": _microdegrees(value) for name, value in first.items()},
        **{f"{name}OfLastGridPoint": _microdegrees(value) for name, value in last.items()},
        "jDirectionIncrement": _microdegrees((header.latitude[0] - header.latitude[-1]) / (ny - 1)),
        "iDirectionIncrement": _microdegrees((header.longitude[-1] - header.longitude[0]) / (nx - 1)),
        "scanningMode": 0,
        "parameterCategory": header.parameter[1],
        "parameterNumber": header.parameter[2],
        "typeOfFirstFixedSurface": 102,
        "packingType": "grid_simple",
        "bitsPerValue": 0,
        "decimalScaleFactor": decimals,
    }
    with _ECCODES:
        handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
        try:
            for key, value in keys.items():
                eccodes.codes_set(handle, key, value)
            eccodes.codes_set_values(handle, np.ascontiguousarray(values, np.float64).ravel())
            # Asked for PNG at once, ecCodes 2.42 takes a binary scale of its own (values off the step) and refuses a
            # constant field; packed simply first and then repacked, it keeps the decimal step exactly.
            eccodes.codes_set(handle, "packingType", "grid_png")
            message: bytes = eccodes.codes_get_message(handle)
        finally:
            eccodes.codes_release(handle)
    return message


def _microdegrees(degrees: float) -> int:
    return round(degrees * _MICRODEGREES)
