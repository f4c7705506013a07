"""numpy's .npz from bytes, within a ceiling; dates pickled inside are read without running the pickle."""

from __future__ import annotations

import pickletools
from datetime import UTC, datetime
from io import BytesIO

import numpy as np
import numpy.typing as npt

from tasks.feeds import FrameRejected

# All words in the pickle of an object array of datetimes; any other has no business in a file of dates.
_WORDS = {
    *("datetime", "numpy", "ndarray", "dtype", "_reconstruct", "O8", "|", "numpy.core.multiarray"),
    "numpy._core.multiarray",
}
_DATETIME_BYTES = 10


def read_header(npy: bytes, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    """Shape, type and offset of the data of an .npy.

    Raises:
        FrameRejected: corrupt.
    """
    stream = BytesIO(npy)
    try:
        version = np.lib.format.read_magic(stream)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = reader(stream)
    except (ValueError, EOFError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise FrameRejected("corrupt", f"{name}: {error}") from error
    if (fortran and len(shape) > 1) or any(extent < 0 for extent in shape):
        raise FrameRejected("corrupt", f"{name}: expected the last index to vary fastest; got shape {shape}")
    return shape, dtype, stream.tell()


def read_numbers(npy: bytes, name: str) -> npt.NDArray[np.generic]:
    """The numeric array of an .npy.

    Raises:
        FrameRejected: truncated, corrupt, or no numbers (wrong_quantity).
    """
    shape, dtype, offset = read_header(npy, name)
    if dtype.kind not in "iuf":
        raise FrameRejected("wrong_quantity", f"expected numbers in {name}; got {dtype}")
    expected, found = int(np.prod(shape, dtype=object)) * dtype.itemsize, len(npy) - offset
    if found != expected:
        raise FrameRejected("truncated" if found < expected else "corrupt", f"{name}: {found} of {expected} bytes")
    return np.frombuffer(npy, dtype, offset=offset).reshape(shape)


def read_moments(npy: bytes, name: str) -> list[datetime]:
    """The datetimes (UTC) of a one-dimensional object array, in order.

    Raises:
        FrameRejected: corrupt: other objects, or fewer datetimes than the header says.
    """
    shape, dtype, offset = read_header(npy, name)
    if dtype.kind != "O" or len(shape) != 1:
        raise FrameRejected("wrong_quantity", f"expected a list of datetimes in {name}; got {dtype} {shape}")
    try:
        moments = [_moment(packed) for packed in _packed(npy[offset:], name)]
    except (ValueError, IndexError, EOFError) as error:
        if isinstance(error, FrameRejected):
            raise
        raise FrameRejected("corrupt", f"{name}: {error}") from error
    if len(moments) != shape[0]:
        raise FrameRejected("corrupt", f"{name}: expected {shape[0]} datetimes; got {len(moments)}")
    return moments


def _packed(pickled: bytes, name: str) -> list[bytes]:
    """The ten-byte states of the datetimes in a pickle, found by walking its opcodes."""
    states = []
    for _, argument, _ in pickletools.genops(pickled):
        if isinstance(argument, str) and not set(argument.split(" ")) <= _WORDS:
            raise FrameRejected("corrupt", f"{name} holds other objects than datetimes: {argument[:60]!r}")
        if isinstance(argument, bytes) and len(argument) == _DATETIME_BYTES:
            states.append(argument)
    return states


def _moment(state: bytes) -> datetime:
    month, day, hour, minute, second = state[2:7]
    microsecond = int.from_bytes(state[7:10], "big")
    return datetime(int.from_bytes(state[:2], "big"), month, day, hour, minute, second, microsecond, tzinfo=UTC)
