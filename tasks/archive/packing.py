"""Physical values <-> the integer codes of the archive, without loss, and one frame as one compressed chunk.

NaN (not observed) is the fill code and nothing else is; dry is one code and no wet value becomes it. A frame is
packed and compressed where it was decoded (a Dask worker), so that only compressed codes travel to the writer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from tasks.archive.slots import as_datetime
from tasks.feeds import Packing

Codes = NDArray[np.unsignedinteger]
Values = NDArray[np.float32]

ZSTD_LEVEL = 3
# A quotient below 2**21 is off by less than a quarter of a code in float32 (24 bits of mantissa, two roundings).
_EXACT_IN_FLOAT32 = 2**21
_ZSTD = Zstd(level=ZSTD_LEVEL)
_BLOCK = 1 << 16  # cells whose temporaries stay in the second-level cache


class PackingError(ValueError):
    """A value has no code: outside the range, or wet and too small to differ from dry."""


@dataclass(frozen=True)
class Grid:
    """Where the cells of a frame lie.

    Attributes:
        y: Cell centres (y,), in the CRS's units.
        x: Cell centres (x,), in the CRS's units.
        mapping: CF grid_mapping attributes with crs_wkt.
        y_attrs: CF attributes of y.
        x_attrs: CF attributes of x.
    """

    y: NDArray[np.float64]
    x: NDArray[np.float64]
    mapping: Mapping[str, object]
    y_attrs: Mapping[str, object] = field(default_factory=dict)
    x_attrs: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, frame: xr.DataArray) -> Grid:
        """The grid of a decoded frame."""
        y, x, mapping = frame.coords["y"], frame.coords["x"], frame.coords["spatial_ref"]
        return cls(y.values, x.values, dict(mapping.attrs), dict(y.attrs), dict(x.attrs))

    def equals(self, other: Grid) -> bool:
        """Same CRS and the same cell centres to a thousandth of a cell."""
        return (
            self.mapping.get("crs_wkt") == other.mapping.get("crs_wkt")
            and _same_axis(self.y, other.y)
            and _same_axis(self.x, other.x)
        )


def _same_axis(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    if one.shape != other.shape:
        return False
    step = abs(float(one[-1] - one[0])) / max(one.size - 1, 1)
    return bool(np.abs(one - other).max() <= 1e-3 * step)


@dataclass(frozen=True)
class PackedFrame:
    """One frame on its way into the archive.

    Attributes:
        quantity: CF-style name of the field.
        time: Valid time (aware, UTC, END of the interval).
        grid: Where its cells lie.
        packing: How `chunk` maps to physical units.
        chunk: The codes (y, x), little endian, zstd: the bytes of one Zarr chunk.
        attrs: units, standard_name, long_name and, for reflectivity, no_echo.
    """

    quantity: str
    time: datetime
    grid: Grid
    packing: Packing
    chunk: bytes
    attrs: Mapping[str, object]


def pack(values: Values, packing: Packing, dry: float = 0.0) -> Codes:
    """Codes of physical values; NaN becomes the fill code.

    Args:
        values: Any shape, float32, physical units; NaN = not observed.
        packing: value = code * scale_factor + add_offset.
        dry: The value that means "nothing" (0 for rain, `no_echo` for reflectivity): no other value gets its code.

    Raises:
        PackingError: a value outside the code range, infinite, or not dry with the code of dry.
    """
    flat = np.ascontiguousarray(values, np.float32).reshape(-1)
    codes = np.empty(flat.shape, packing.dtype)
    wide = _work_dtype(packing)
    dry_code = round((dry - packing.add_offset) / packing.scale_factor)
    for first in range(0, flat.size, _BLOCK):
        block = slice(first, first + _BLOCK)
        _pack_block(flat[block], codes[block], packing, wide, (np.float32(dry), dry_code))
    return codes.reshape(values.shape)


def _work_dtype(packing: Packing) -> type[np.floating]:
    # Division by a power of two is exact in float32 whatever the size of the code.
    exact = np.frexp(packing.scale_factor)[0] == 0.5 and packing.add_offset == 0
    return np.float32 if exact or np.iinfo(packing.dtype).max < _EXACT_IN_FLOAT32 else np.float64


def _pack_block(
    values: Values, out: Codes, packing: Packing, wide: type[np.floating], dry: tuple[np.float32, int]
) -> None:
    scaled = values.astype(wide)
    if packing.add_offset:
        scaled -= wide(packing.add_offset)
    scaled /= wide(packing.scale_factor)
    np.rint(scaled, out=scaled)
    missing = np.isnan(values)
    low, high = np.fmin.reduce(scaled), np.fmax.reduce(scaled)  # NaN only where nothing is observed
    if low < 0 or high >= 2.0 ** (8 * out.dtype.itemsize):
        worst = np.nanmin(values) if low < 0 else np.nanmax(values)
        raise PackingError(f"expected values with a code of {packing}; got {worst}")
    np.copyto(scaled, 0, where=missing)
    out[...] = scaled  # same-kind cast to unsigned, checked to be in range above
    if low <= packing.fill <= high and np.count_nonzero((out == packing.fill) & ~missing):
        raise PackingError(
            f"expected no observed value to have the fill code of {packing}; got one up to {np.nanmax(values)}"
        )
    if np.count_nonzero((out == dry[1]) & ~missing) != np.count_nonzero(values == dry[0]):
        raise PackingError(f"expected no wet value to have the code of dry ({dry[1]}) with {packing}")
    np.copyto(out, packing.fill, where=missing)


@lru_cache(maxsize=16)
def _table(packing: Packing) -> Values:
    codes = np.arange(np.iinfo(packing.dtype).max + 1, dtype=np.float64)
    table = (codes * packing.scale_factor + packing.add_offset).astype(np.float32)
    table[packing.fill] = np.nan
    return table


@lru_cache(maxsize=16)
def _divisor(packing: Packing) -> np.float32 | None:
    """What codes are divided by in float32 to get the table's very values, code by code; None where nothing does.

    A quotient of two small integers is rounded once, so 1 / 0.05 = 20 serves where multiplying by 0.05 does not.
    """
    table, divisor = _table(packing), np.float32(round(1 / packing.scale_factor, 6))
    values = np.arange(table.size, dtype=np.float32) / divisor + np.float32(packing.add_offset)
    values[packing.fill] = np.nan
    return divisor if np.array_equal(values, table, equal_nan=True) else None


def _look_up(codes: Codes, packing: Packing, out: Values) -> None:
    """Physical values of codes of one or two bytes; dividing takes half the time of a table."""
    divisor = _divisor(packing)
    if divisor is None:
        np.take(_table(packing), codes, out=out, mode="clip")
        return
    np.divide(codes, divisor, out=out, dtype=np.float32)
    if packing.add_offset:
        out += np.float32(packing.add_offset)
    missing = codes == packing.fill
    if missing.any():
        np.copyto(out, np.nan, where=missing)


def _physical(codes: Codes, packing: Packing) -> NDArray[np.floating]:
    wide = _work_dtype(packing)
    values = codes.astype(wide)
    values *= wide(packing.scale_factor)
    if packing.add_offset:
        values += wide(packing.add_offset)
    values[codes == packing.fill] = np.nan
    return values


def unpack(codes: Codes, packing: Packing, out: Values | None = None) -> Values:
    """Physical values (float32) of codes; the fill code becomes NaN.

    Args:
        codes: Any shape, the packing's dtype.
        packing: value = code * scale_factor + add_offset.
        out: Written in place where given (C-contiguous, the shape of `codes`).
    """
    result = np.empty(codes.shape, np.float32) if out is None else out
    flat, target = codes.reshape(-1), result.reshape(-1)
    for first in range(0, flat.size, _BLOCK):
        block = slice(first, first + _BLOCK)
        if codes.dtype.itemsize <= 2:
            _look_up(flat[block], packing, target[block])
        else:
            target[block] = _physical(flat[block], packing)
    return result


def compress(data: Codes | NDArray[np.generic]) -> bytes:
    """The bytes that BytesCodec(little) + ZstdCodec(3) store for an array."""
    return bytes(_ZSTD.encode(np.ascontiguousarray(data, data.dtype.newbyteorder("<"))))


def decompress(data: bytes, dtype: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
    """The array (read-only; 1-D without a shape) of a chunk's bytes."""
    flat = np.frombuffer(_ZSTD.decode(data), np.dtype(dtype).newbyteorder("<"))
    return flat if shape is None else flat.reshape(shape)


def pack_frame(frame: xr.DataArray, packing: Packing) -> PackedFrame:
    """A decoded frame (y, x) as the chunk that the archive stores.

    Raises:
        PackingError: see `pack`.
    """
    no_echo = frame.attrs.get("no_echo")
    codes = pack(frame.values, packing, 0.0 if no_echo is None else float(no_echo))
    kept = {
        name: frame.attrs[name] for name in ("units", "standard_name", "long_name", "no_echo") if name in frame.attrs
    }
    time = as_datetime(frame.coords["time"].values[()])
    return PackedFrame(str(frame.name), time, Grid.of(frame), packing, compress(codes), kept)
