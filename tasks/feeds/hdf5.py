"""HDF5 and netCDF-4 from bytes: declared sizes are checked, chunks inflate no further than their own size."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import starmap

import h5py
import numpy as np
import numpy.typing as npt

from tasks.feeds import FrameRejected

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_BROKEN = (OSError, KeyError, RuntimeError, ValueError, TypeError, zlib.error, MemoryError, OverflowError)
_DEFLATE, _SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE


@contextmanager
def open_hdf5(data: bytes) -> Iterator[h5py.File]:
    """The file in `data`; whatever the library or a missing name raises inside becomes a rejection.

    Raises:
        FrameRejected: truncated or corrupt.
    """
    if not data.startswith(_SIGNATURE):
        short = len(data) < len(_SIGNATURE) and _SIGNATURE.startswith(data)
        raise FrameRejected("truncated" if short else "corrupt", f"expected HDF5; got {data[:8]!r}")
    try:
        with h5py.File(h5py.h5f.open_file_image(data)) as file:
            yield file
    except FrameRejected:
        raise
    except _BROKEN as error:
        reason = "truncated" if "truncated" in str(error) else "corrupt"
        raise FrameRejected(reason, f"HDF5 of {len(data)} bytes: {error}") from error


def attribute(node: h5py.HLObject, name: str) -> str | float:
    """The first (or only) value of an attribute, text or number."""
    values = np.asarray(node.attrs[name]).ravel()
    if values.size == 0:
        raise FrameRejected("corrupt", f"attribute {name} of {node.name} is empty")
    value = values[0]
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else float(value)


def numbers(node: h5py.HLObject, name: str) -> list[float]:
    """All values of a numeric attribute."""
    return [float(value) for value in np.asarray(node.attrs[name]).ravel()]


def dataset(file: h5py.File, path: str) -> h5py.Dataset:
    """The data set at `path`.

    Raises:
        FrameRejected: wrong_quantity, there is none.
    """
    node = file.get(path)
    if not isinstance(node, h5py.Dataset):
        raise FrameRejected("wrong_quantity", f"expected a data set {path}; got {sorted(file)}")
    return node


def read_array(node: h5py.Dataset, max_bytes: int) -> npt.NDArray[np.generic]:
    """All values of a numeric data set, chunk by chunk within `max_bytes`.

    Raises:
        FrameRejected: oversized; corrupt (a chunk is missing, inflates above its size, or fails its checksum).
    """
    if node.dtype.kind not in "iuf":
        raise FrameRejected("wrong_quantity", f"expected numbers in {node.name}; got {node.dtype}")
    if node.nbytes > max_bytes:
        raise FrameRejected("oversized", f"{node.name} declares {node.nbytes} bytes; the ceiling is {max_bytes}")
    if node.chunks is None or not _inflates_here(node):
        return np.asarray(node[()])
    return _inflate(node, max_bytes)


def _inflates_here(node: h5py.Dataset) -> bool:
    plist = node.id.get_create_plist()
    filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    if not set(filters) <= {_DEFLATE, _SHUFFLE, h5py.h5z.FILTER_FLETCHER32}:
        raise FrameRejected("corrupt", f"{node.name} is packed by unexpected HDF5 filters {filters}")
    return filters in ([_DEFLATE], [_SHUFFLE, _DEFLATE])


def _inflate(node: h5py.Dataset, max_bytes: int) -> npt.NDArray[np.generic]:
    size = int(np.prod(node.chunks)) * node.dtype.itemsize
    grid = [-(-extent // step) for extent, step in zip(node.shape, node.chunks, strict=True)]
    stored = node.id.get_num_chunks()
    if size > max_bytes:
        raise FrameRejected("oversized", f"{node.name} declares chunks of {size} bytes")
    if stored != int(np.prod(grid)):
        raise FrameRejected("corrupt", f"{node.name} stores {stored} of {int(np.prod(grid))} chunks")
    out = np.empty(node.shape, node.dtype)
    for index in range(stored):
        start = node.id.get_chunk_info(index).chunk_offset
        chunk = _chunk(node, start, size)
        window = tuple(starmap(slice, zip(start, np.add(start, node.chunks), strict=True)))
        inside = tuple(slice(0, extent) for extent in out[window].shape)
        out[window] = chunk[inside]
    return out


def _chunk(node: h5py.Dataset, start: tuple[int, ...], size: int) -> npt.NDArray[np.generic]:
    mask, packed = node.id.read_direct_chunk(start)
    inflater = zlib.decompressobj()
    raw = inflater.decompress(packed, size + 1)
    if mask or len(raw) != size or not inflater.eof:
        raise FrameRejected("corrupt", f"a chunk of {node.name} does not inflate to its {size} bytes")
    values = np.frombuffer(raw, np.uint8)
    if node.shuffle:
        values = np.ascontiguousarray(values.reshape(node.dtype.itemsize, -1).T).ravel()
    chunk: npt.NDArray[np.generic] = values.view(node.dtype).reshape(node.chunks)
    return chunk
