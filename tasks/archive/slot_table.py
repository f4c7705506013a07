"""The per-slot arrays of one epoch inside one session: whole chunks are read, changed in memory and written back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store

from tasks.archive.chunks import get_chunks
from tasks.archive.epochs import DAY, Epoch
from tasks.archive.layout import SLOT_ARRAYS
from tasks.archive.packing import compress, decompress

Row = NDArray[np.generic]
Place = tuple[str, int]
Held = Mapping[Place, Row]
"""Chunks of slot arrays by array and number, as they are in one snapshot."""


def padded(text: str, width: int) -> NDArray[np.uint8]:
    """UTF-8 bytes of `text`, zero-padded to `width`.

    Raises:
        ValueError: longer than `width`.
    """
    data = text.encode()
    if len(data) > width:
        raise ValueError(f"expected at most {width} bytes of UTF-8; got {len(data)}: {text}")
    return np.frombuffer(data.ljust(width, b"\0"), np.uint8)


def texts(rows: Row) -> list[str]:
    """Strings of zero-padded UTF-8 rows (n, width)."""
    width = rows.shape[1]
    joined = np.ascontiguousarray(rows).tobytes()
    return [joined[first : first + width].rstrip(b"\0").decode() for first in range(0, len(joined), width)]


def _shape(name: str, length: int) -> tuple[int, ...]:
    width = SLOT_ARRAYS[name][1]
    return (length, width) if width else (length,)


def _blank(name: str, length: int) -> Row:
    dtype, _, fill, _ = SLOT_ARRAYS[name]
    return np.full(_shape(name, length), fill, dtype)


class SlotTable:
    """Rows of the slot arrays, keyed by slot; nothing reaches the store but what `changes` hands out."""

    def __init__(self, store: Store, epoch: Epoch, held: Held | None = None) -> None:
        self.epoch = epoch
        self._store = store
        self._chunks: dict[Place, Row] = {place: rows.copy() for place, rows in (held or {}).items()}
        self._changed: set[Place] = set()

    def load(self, names: Iterable[str], slots: Iterable[int]) -> None:
        """Fetch at once the chunks that hold `slots`."""
        numbers = {slot // DAY for slot in slots}
        wanted = [(name, number) for name in names for number in numbers if (name, number) not in self._chunks]
        for place, data in zip(wanted, get_chunks(self._store, [self._key(*place) for place in wanted]), strict=True):
            self._chunks[place] = self._decoded(place[0], data)

    def held(self) -> Held:
        """The chunks as they are now, for another table on the same (or then committed) snapshot."""
        return self._chunks

    def row(self, name: str, slot: int) -> Row:
        """The value (or row of bytes) of one slot."""
        self.load([name], [slot])
        row: Row = self._chunks[name, slot // DAY][slot % DAY]
        return row

    def set(self, slot: int, values: Mapping[str, int | Row]) -> None:
        """Change values of one slot; equal ones change nothing."""
        self.load(values, [slot])
        for name, value in values.items():
            chunk = self._chunks[name, slot // DAY]
            if not np.array_equal(chunk[slot % DAY], value):
                chunk[slot % DAY] = value
                self._changed.add((name, slot // DAY))

    def columns(self, names: Sequence[str], first: int, stop: int) -> dict[str, Row]:
        """Rows of slots [first, stop) per array; slots off the laid-out axis read as fill."""
        low, high = min(max(first, 0), self.epoch.length), min(max(stop, 0), self.epoch.length)
        self.load(names, range(low - low % DAY, high, DAY))
        return {name: self._column(name, first, stop, (low, max(low, high))) for name in names}

    def _column(self, name: str, first: int, stop: int, held: tuple[int, int]) -> Row:
        rows = _blank(name, stop - first)
        for number in range(held[0] // DAY, -(-held[1] // DAY)):
            low, high = max(held[0], number * DAY), min(held[1], (number + 1) * DAY)
            chunk = self._chunks[name, number]
            rows[low - first : high - first] = chunk[low - number * DAY : high - number * DAY]
        return rows

    def changes(self) -> dict[str, bytes]:
        """The changed chunks, encoded, by key."""
        return {self._key(*place): compress(self._chunks[place]) for place in sorted(self._changed)}

    def _key(self, name: str, number: int) -> str:
        tail = "/0" if SLOT_ARRAYS[name][1] else ""
        return f"{self.epoch.name}/{name}/c/{number}{tail}"

    @staticmethod
    def _decoded(name: str, data: bytes | None) -> Row:
        if data is None:
            return _blank(name, DAY)
        return decompress(data, SLOT_ARRAYS[name][0], _shape(name, DAY)).copy()


def field_key(epoch: Epoch, slot: int) -> str:
    """Key of the chunk that holds a slot's frame."""
    return f"{epoch.name}/{epoch.spec.quantity}/c/{slot}/0/0"
