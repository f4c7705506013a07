"""Read slots of an archive back as physical values: chunks are decoded straight into the result, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import icechunk as ic
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.core.sync import sync

from tasks.archive.chunks import need_chunks
from tasks.archive.epochs import DAY, FILLED, Epoch, EpochMismatch, overlapping
from tasks.archive.layout import SLOT_ARRAYS
from tasks.archive.packing import decompress, unpack
from tasks.archive.slot_table import SlotTable, field_key, texts
from tasks.archive.slots import as_times

_THREADS = 4
_AT_ONCE = 64  # compressed chunks held in memory


def read_slots(store: Store, epochs: Sequence[Epoch], start: datetime, end: datetime) -> xr.Dataset:
    """The Dataset that `Archive.read` describes, without the snapshot's id.

    Raises:
        EpochMismatch: the window spans epochs of different grids or cadences.
        ArchiveDamaged: a slot that holds a frame has no chunk.
    """
    parts = overlapping(epochs, start, end) or [(epochs[-1], 0, 0)]
    spec = parts[0][0].spec
    for epoch, _, _ in parts[1:]:
        if epoch.spec.cadence != spec.cadence or not epoch.spec.grid.equals(spec.grid):
            raise EpochMismatch(
                f"expected one grid and cadence in {start}..{end}; a new epoch begins at {epoch.spec.start}"
            )
    field = np.full((sum(stop - first for _, first, stop in parts), spec.y.size, spec.x.size), np.nan, np.float32)
    columns = []
    at = 0
    for epoch, first, stop in parts:
        columns.append(_read_part(store, epoch, first, stop, field[at : at + stop - first]))
        at += stop - first
    joined = {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}
    return _dataset(parts[-1][0], field, joined)


def _read_part(
    store: Store, epoch: Epoch, first: int, stop: int, out: NDArray[np.float32]
) -> dict[str, NDArray[np.generic]]:
    table = SlotTable(store, epoch)
    rows = table.columns(["status", "valid_time", "received_at", "source_key"], first, stop)
    status = rows["status"].astype(np.uint8)
    filled = np.flatnonzero(np.isin(status, FILLED))
    for begin in range(0, filled.size, _AT_ONCE):
        _decode_into(store, epoch, first, filled[begin : begin + _AT_ONCE], out)
    return {
        "time": as_times(epoch.spec.slots.seconds(first, stop)),
        "status": status,
        "valid_time": as_times(rows["valid_time"].astype(np.int64)),
        "received_at": as_times(rows["received_at"].astype(np.int64)),
        "source_key": np.array(texts(rows["source_key"]), dtype=str),
    }


def _decode_into(store: Store, epoch: Epoch, first: int, places: NDArray[np.intp], out: NDArray[np.float32]) -> None:
    chunks = need_chunks(store, [field_key(epoch, first + int(place)) for place in places])
    packing = epoch.spec.packing

    def decode(place: int, data: bytes) -> None:
        unpack(decompress(data, packing.dtype, out.shape[1:]), packing, out[place])

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(decode, places.tolist(), chunks))


def _dataset(epoch: Epoch, field: NDArray[np.float32], columns: dict[str, NDArray[np.generic]]) -> xr.Dataset:
    spec = epoch.spec
    attrs = {**spec.attrs, "grid_mapping": "spatial_ref", **({} if spec.no_echo is None else {"no_echo": spec.no_echo})}
    return xr.Dataset(
        {
            spec.quantity: (("time", "y", "x"), field, attrs),
            **{name: ("time", values, _flags(name)) for name, values in columns.items() if name != "time"},
        },
        coords={
            "time": ("time", columns["time"], {"standard_name": "time", "long_name": "slot, end of interval"}),
            "y": ("y", spec.y, dict(spec.y_attrs)),
            "x": ("x", spec.x, dict(spec.x_attrs)),
            "spatial_ref": ((), np.int64(0), dict(spec.grid_mapping)),
        },
        attrs={"Conventions": "CF-1.11", "license": spec.licence, "domain": spec.domain, "feed": spec.feed},
    )


def _flags(name: str) -> dict[str, object]:
    attrs = SLOT_ARRAYS[name][3]
    return {key: attrs[key] for key in ("long_name", "flag_values", "flag_meanings") if key in attrs}


def extreme_filled(session: ic.Session, epoch: Epoch, *, newest: bool) -> int | None:
    """The newest (or oldest) slot of an epoch that holds a frame; only metadata chunks that exist are looked at."""

    async def numbers() -> list[int]:
        return [int(place[0]) async for place in session.chunk_coordinates(f"/{epoch.name}/status")]

    table = SlotTable(session.store, epoch)
    for number in sorted(sync(numbers()), reverse=newest):
        filled = np.flatnonzero(np.isin(table.columns(["status"], number * DAY, (number + 1) * DAY)["status"], FILLED))
        if filled.size:
            return number * DAY + int(filled[-1 if newest else 0])
    return None
