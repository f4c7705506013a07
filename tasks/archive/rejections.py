"""The log of rejected objects inside an archive: what came, when, and why it is no frame of the axis.

Rows are appended in order of arrival with the object's time beside them, so that a window reads only its own rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec

from tasks.archive.chunks import get_chunks
from tasks.archive.packing import ZSTD_LEVEL, decompress
from tasks.archive.slot_table import padded, texts
from tasks.archive.slots import UNKNOWN, moment, seconds

_ROWS = 4096  # by which the log grows
_CHUNK = 64
_WIDTH = 768


@dataclass(frozen=True)
class Rejection:
    """An object that is not archived.

    Attributes:
        source_key: Key inside the feed's root.
        etag: Entity tag; another one makes the object new.
        time: True or nominal time (aware, UTC); None where not even that is known.
        reason: A stable word (see `tasks.archive.layout.REASONS`).
        message: What was expected, what came, where.
    """

    source_key: str
    etag: str
    time: datetime | None
    reason: str
    message: str


def lay_out_log(store: Store) -> None:
    """Create the log's arrays in a writable session's store."""
    group = zarr.open_group(store, mode="a", zarr_format=3).create_group("rejections")
    zstd = ZstdCodec(level=ZSTD_LEVEL)
    group.create_array(
        "time", shape=(_ROWS,), chunks=(_ROWS,), dtype="int64", fill_value=UNKNOWN, compressors=zstd,
        dimension_names=("row",),
    )  # fmt: skip
    group.create_array(
        "entry", shape=(_ROWS, _WIDTH), chunks=(_CHUNK, _WIDTH), dtype="uint8", fill_value=0, compressors=zstd,
        dimension_names=("row", "entry_byte"), attributes={"long_name": "JSON, UTF-8, zero-padded"},
    )  # fmt: skip
    group.create_array("count", shape=(1,), chunks=(1,), dtype="int64", fill_value=0, compressors=zstd)


def _open(store: Store, name: str, *, mode: Literal["r", "r+"] = "r") -> zarr.Array[Any]:
    return zarr.open_array(store, path=f"rejections/{name}", mode=mode, zarr_format=3)


def _count(store: Store) -> int:
    (data,) = get_chunks(store, ["rejections/count/c/0"])
    return 0 if data is None else int(decompress(data, "int64")[0])


def _encode(item: Rejection) -> NDArray[np.uint8]:
    message = item.message
    while True:
        row = json.dumps([item.source_key, item.etag, item.reason, message], ensure_ascii=False)
        excess = len(row.encode()) - _WIDTH
        if excess <= 0:
            return padded(row, _WIDTH)
        if not message:
            raise ValueError(f"expected a key and a tag that fit in {_WIDTH} bytes; got {item.source_key}, {item.etag}")
        message = message[: max(0, len(message) - excess)]


def read_log(store: Store, start: datetime, end: datetime) -> list[Rejection]:
    """Rejected objects with a time in [start, end], and those without any, in order of arrival."""
    count = _count(store)
    if count == 0:
        return []
    times = np.asarray(_open(store, "time")[:count])
    rows = np.flatnonzero((times == UNKNOWN) | ((times >= seconds(start)) & (times <= seconds(end))))
    if rows.size == 0:
        return []
    first, stop = int(rows[0]), int(rows[-1]) + 1
    entries = texts(np.asarray(_open(store, "entry")[first:stop])[rows - first])
    return [_decode(entry, int(times[row])) for entry, row in zip(entries, rows, strict=True)]


def _decode(entry: str, time: int) -> Rejection:
    key, etag, reason, message = json.loads(entry)
    return Rejection(key, etag, None if time == UNKNOWN else moment(time), reason, message)


def append_log(store: Store, items: Sequence[Rejection]) -> tuple[Rejection, ...]:
    """Log those of `items` that are not in the log with the same key and tag; returns them."""
    times = [item.time for item in items if item.time is not None]
    present = {(item.source_key, item.etag) for item in _near(store, times)}
    fresh = {(item.source_key, item.etag): item for item in items if (item.source_key, item.etag) not in present}
    if not fresh:
        return ()
    count, time, entry = (_open(store, name, mode="r+") for name in ("count", "time", "entry"))
    first = _count(store)
    stop = first + len(fresh)
    if stop > time.shape[0]:
        rows = -(-stop // _ROWS) * _ROWS
        time.resize((rows,))
        entry.resize((rows, _WIDTH))
    new = tuple(fresh.values())
    time[first:stop] = np.array([UNKNOWN if item.time is None else seconds(item.time) for item in new], np.int64)
    entry[first:stop] = np.stack([_encode(item) for item in new])
    count[:] = np.array([stop], np.int64)
    return new


def _near(store: Store, times: Sequence[datetime]) -> list[Rejection]:
    some = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    return read_log(store, min(times, default=some), max(times, default=some))
