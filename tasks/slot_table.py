"""The per-slot arrays of one epoch inside one session: read by window, changed in memory, written by whole chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from tasks.epochs import DAY, SLOT_ARRAYS, Epoch

Row = NDArray[np.generic]
_IN_FLIGHT = 16


class ArchiveDamaged(RuntimeError):
    """A slot that holds a frame has no chunk."""


def padded(text: str, width: int) -> NDArray[np.uint8]:
    """UTF-8 bytes of `text`, zero-padded to `width`.

    Raises:
        ValueError: longer than `width`.
    """
    data = text.encode()
    if len(data) > width:
        raise ValueError(f"expected at most {width} bytes of UTF-8; got {len(data)}: {text}")
    return np.frombuffer(data.ljust(width, b"\0"), np.uint8)


def texts(rows: NDArray[np.uint8]) -> list[str]:
    """Strings of zero-padded UTF-8 rows (n, width)."""
    width = rows.shape[1]
    joined = np.ascontiguousarray(rows).tobytes()
    return [joined[first : first + width].rstrip(b"\0").decode() for first in range(0, len(joined), width)]


class SlotTable:
    """Rows of the slot arrays, keyed by slot; nothing reaches the store before `flush`."""

    def __init__(self, store: Store, epoch: Epoch) -> None:
        self.epoch = epoch
        self._store = store
        self._arrays: dict[str, zarr.Array] = {}
        self._chunks: dict[tuple[str, int], Row] = {}
        self._changed: set[tuple[str, int]] = set()

    def row(self, name: str, slot: int) -> Row:
        """The value (or row of bytes) of one slot."""
        row: Row = self._chunk(name, slot // DAY)[slot % DAY]
        return row

    def set(self, slot: int, values: Mapping[str, int | Row]) -> None:
        """Change values of one slot; equal ones change nothing."""
        for name, value in values.items():
            chunk = self._chunk(name, slot // DAY)
            if not np.array_equal(chunk[slot % DAY], value):
                chunk[slot % DAY] = value
                self._changed.add((name, slot // DAY))

    def read(self, name: str, first: int, stop: int) -> Row:
        """Rows of slots [first, stop) as stored; slots off the laid-out axis read as fill."""
        array = self._array(name)
        low, high = min(max(first, 0), array.shape[0]), max(0, min(stop, array.shape[0]))
        rows: Row = np.asarray(array[low : max(low, high)])
        if rows.shape[0] == stop - first:
            return rows
        whole = np.full((stop - first, *array.shape[1:]), array.fill_value, array.dtype)
        whole[low - first : low - first + rows.shape[0]] = rows
        return whole

    def flush(self) -> bool:
        """Write the changed chunks; whether there were any."""
        for name, number in sorted(self._changed):
            self._array(name)[number * DAY : (number + 1) * DAY] = self._chunks[name, number]
        changed = bool(self._changed)
        self._changed.clear()
        return changed

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            self._arrays[name] = zarr.open_array(self._store, path=f"{self.epoch.name}/{name}", zarr_format=3)
        return self._arrays[name]

    def _chunk(self, name: str, number: int) -> Row:
        if name not in SLOT_ARRAYS:
            raise ValueError(f"expected a slot array of {', '.join(SLOT_ARRAYS)}; got {name}")
        if (name, number) not in self._chunks:
            self._chunks[name, number] = np.array(self.read(name, number * DAY, (number + 1) * DAY))
        return self._chunks[name, number]


def field_key(epoch: Epoch, slot: int) -> str:
    """Key of the chunk that holds a slot's frame."""
    return f"{epoch.name}/{epoch.spec.quantity}/c/{slot}/0/0"


def put_chunks(store: Store, chunks: Mapping[str, bytes]) -> None:
    """Upload encoded chunks, several at a time."""
    prototype = default_buffer_prototype()

    async def put_all() -> None:
        from zarr.core.common import concurrent_map

        async def put(key: str, data: bytes) -> None:
            await store.set(key, prototype.buffer.from_bytes(data))

        await concurrent_map(list(chunks.items()), put, _IN_FLIGHT)

    sync(put_all())


def get_chunks(store: Store, keys: Sequence[str]) -> list[bytes]:
    """Download encoded chunks, several at a time.

    Raises:
        ArchiveDamaged: one of them is not there.
    """
    prototype = default_buffer_prototype()

    async def get_all() -> Iterable[bytes | None]:
        from zarr.core.common import concurrent_map

        async def get(key: str) -> bytes | None:
            found = await store.get(key, prototype)
            return None if found is None else found.to_bytes()

        return await concurrent_map([(key,) for key in keys], get, _IN_FLIGHT)

    found = list(sync(get_all()))
    for key, data in zip(keys, found, strict=True):
        if data is None:
            raise ArchiveDamaged(f"expected the chunk {key} of a slot that holds a frame; there is none")
    return [data for data in found if data is not None]
