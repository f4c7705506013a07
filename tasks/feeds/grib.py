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

_MICRODEGREES = 1_000_000
_SMALLEST_PNG = 256
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
        reference: Physical value of the packing's code 0.
        crs: Geographic CRS on the declared ellipsoid.
        latitude: Cell centres (y,), degrees north, in the order of the rows.
        longitude: Cell centres (x,), degrees east in -180..180.
    """

    parameter: tuple[int, int, int]
    time: datetime
    resolution: float
    reference: float
    crs: pyproj.CRS
    latitude: Float64
    longitude: Float64


@contextmanager
def open_message(message: bytes) -> Iterator[int]:
    """An ecCodes handle on one message that `sections.check_sections` let pass, released at the end.

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


def read_header(handle: int) -> Header:
    """The message's identity, time and grid, without unpacking a value.

    Raises:
        FrameRejected: wrong_grid, wrong_quantity (a forecast) or corrupt.
    """
    lead = _whole(handle, "forecastTime")
    if lead:
        raise FrameRejected("wrong_quantity", f"expected an analysis; got forecast time {lead}")
    latitude, longitude = _grid(handle)
    discipline, category, number = (_whole(handle, k) for k in ("discipline", "parameterCategory", "parameterNumber"))
    unit = 10.0 ** -_whole(handle, "decimalScaleFactor")
    return Header(
        parameter=(discipline, category, number),
        time=_time(handle),
        resolution=unit * 2.0 ** _whole(handle, "binaryScaleFactor"),
        reference=unit * float(eccodes.codes_get_double(handle, "referenceValue")),
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


def _grid(handle: int) -> tuple[Float64, Float64]:
    scanning = _whole(handle, "scanningMode")
    if scanning != 0:
        raise FrameRejected("wrong_grid", f"expected rows from the north-west (0); got scanning mode {scanning}")
    south = _axis(handle, "latitude", "jDirectionIncrement", -1, _whole(handle, "Nj"))
    east = _axis(handle, "longitude", "iDirectionIncrement", 1, _whole(handle, "Ni"))
    return south, np.where(east > 180.0, east - 360.0, east) if east[0] <= 180.0 else east - 360.0


def _axis(handle: int, name: str, increment: str, sign: int, count: int) -> Float64:
    first, last = _whole(handle, f"{name}OfFirstGridPoint"), _whole(handle, f"{name}OfLastGridPoint")
    step = sign * _whole(handle, increment)
    # MRMS's last points are 1 and 2 microdegrees off first + increments, which are what counts.
    if step == 0 or abs(first + step * (count - 1) - last) > 5:
        raise FrameRejected("wrong_grid", f"{count} steps of {step} from {first} do not end at {name} {last}")
    return (first + step * np.arange(count, dtype=np.int64)) / _MICRODEGREES


def encode_field(values: Float64, header: Header) -> bytes:
    """One message of `values` (y, x), packed as MRMS packs them: PNG of whole steps of `resolution`.

    Args:
        values: In the parameter's units, flags included; rounded to the nearest step.
        header: What the message shall say; `resolution` a power of ten, `latitude` descending; `reference` is not used.
    """
    ny, nx = values.shape
    first = {"latitude": header.latitude[0], "longitude": header.longitude[0] % 360.0}
    last = {"latitude": header.latitude[-1], "longitude": header.longitude[-1] % 360.0}
    # ecCodes reads a constant field's reference as the value itself, the standard as a decimal code: 0 is both.
    decimals = -round(np.log10(header.resolution)) if np.ptp(values) > 0 else 0
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
            # constant field; packed simply first and then repacked, it keeps the decimal step exactly. Its buffer is as
            # large as the plain values, which the PNG of a very small field exceeds: that stays simply packed.
            if values.size >= _SMALLEST_PNG:
                eccodes.codes_set(handle, "packingType", "grid_png")
            message: bytes = eccodes.codes_get_message(handle)
        finally:
            eccodes.codes_release(handle)
    return message


def _microdegrees(degrees: float) -> int:
    return round(degrees * _MICRODEGREES)
