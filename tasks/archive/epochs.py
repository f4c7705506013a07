"""Epochs of an archive: one Zarr group per grid and cadence, each with its own pre-extended slot axis.

The root group's attributes say which epochs there are. A frame belongs to the last epoch whose axis has begun; an
epoch opened in front of another ends where that one starts, so that an axis grows backwards without moving a slot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store

from tasks.archive.chunks import get_chunks, need_chunks
from tasks.archive.packing import Grid, decompress
from tasks.archive.slots import Calendar, FixedStep, Months, window
from tasks.feeds import Packing

DAY = 288  # slots per metadata chunk
BLOCK = 28 * DAY  # slots by which an axis grows: whole metadata chunks, so that growing rewrites nothing
LONGEST = (
    400 * BLOCK
)  # by which one frame may lengthen an axis: 30 years of five minutes, not a broken clock's centuries


class EpochMismatch(ValueError):
    """A window spans epochs of different grids or cadences, or a new epoch would begin inside an old one."""


class Status(IntEnum):
    """What is known about a slot; present, late and corrected ones hold a frame."""

    EXPECTED = 1
    PRESENT = 2
    LATE = 3
    CORRECTED = 4
    REJECTED = 5
    MISSING = 6

    @property
    def filled(self) -> bool:
        """Whether a slot of this status holds a frame."""
        return self in FILLED


FILLED = (Status.PRESENT, Status.LATE, Status.CORRECTED)


@dataclass(frozen=True)
class ArchiveSpec:
    """What an epoch of an archive holds.

    Attributes:
        domain: Name of the domain.
        feed: Kind of the feed.
        quantity: CF-style name of the field.
        cadence: Step between slots.
        tolerance: Largest distance of a frame from its slot.
        start: Time of slot 0 (aware, UTC). The axis grows forward; what is older goes to an epoch in front.
        packing: Lossless packing of the field.
        y: Cell centres (y,), float64, in the CRS's units.
        x: Cell centres (x,), float64, in the CRS's units.
        grid_mapping: CF grid_mapping attributes with crs_wkt.
        y_attrs: CF attributes of y.
        x_attrs: CF attributes of x.
        licence: SPDX identifier of the data.
        no_echo: For reflectivity [dBZ], the value that means "no echo"; None where dry is 0.
        late_after: A frame received later than this after its slot is late; a slot without a frame is missing then.
        attrs: units, standard_name and long_name of the field.
        calendar: `step` (fixed cadence) or `months` (cadence is nominal).
    """

    domain: str
    feed: str
    quantity: str
    cadence: timedelta
    tolerance: timedelta
    start: datetime
    packing: Packing
    y: NDArray[np.float64]
    x: NDArray[np.float64]
    grid_mapping: Mapping[str, object]
    y_attrs: Mapping[str, object]
    x_attrs: Mapping[str, object]
    licence: str
    no_echo: float | None
    late_after: timedelta
    attrs: Mapping[str, object] = field(default_factory=dict)
    calendar: Literal["step", "months"] = "step"

    @property
    def slots(self) -> Calendar:
        """Where the slots lie in time."""
        return Months(self.start) if self.calendar == "months" else FixedStep(self.start, self.cadence)

    @property
    def grid(self) -> Grid:
        """Where the cells lie."""
        return Grid(self.y, self.x, self.grid_mapping, self.y_attrs, self.x_attrs)


@dataclass(frozen=True)
class Epoch:
    """One group of the repository.

    Attributes:
        name: Path of the group.
        spec: What it holds.
        length: Slots of its axis.
    """

    name: str
    spec: ArchiveSpec
    length: int


def _restored(raw: Mapping[str, Any], y: NDArray[np.float64], x: NDArray[np.float64]) -> ArchiveSpec:
    same = (
        "domain",
        "feed",
        "quantity",
        "licence",
        "no_echo",
        "calendar",
        "grid_mapping",
        "y_attrs",
        "x_attrs",
        "attrs",
    )
    values: dict[str, Any] = {name: raw[name] for name in same}
    values |= {name: timedelta(seconds=raw[f"{name}_s"]) for name in ("cadence", "tolerance", "late_after")}
    return ArchiveSpec(
        **values, start=datetime.fromisoformat(raw["start"]), packing=Packing(**raw["packing"]), y=y, x=x
    )


def read_epochs(store: Store, known: Sequence[Epoch] = ()) -> tuple[Epoch, ...]:
    """The epochs of a snapshot, by the start of their axes; empty where the archive has not been laid out.

    Args:
        store: A session's store.
        known: Epochs read before; their grids, which never change, are taken from here.
    """
    (root,) = get_chunks(store, ["zarr.json"])
    listed = {} if root is None else json.loads(root)["attributes"].get("squall_epochs", {})
    grids = {epoch.name: (epoch.spec.y, epoch.spec.x) for epoch in known}
    wanted = [name for name in listed if name not in grids]
    axes = [
        decompress(data, "float64")
        for data in need_chunks(store, [f"{name}/{axis}/c/0" for name in wanted for axis in "yx"])
    ]
    grids |= dict(zip(wanted, zip(axes[::2], axes[1::2], strict=True), strict=True))
    found = [Epoch(name, _restored(raw, *grids[name]), int(raw["length"])) for name, raw in listed.items()]
    return tuple(sorted(found, key=lambda epoch: epoch.spec.start))


def find_epoch(epochs: Sequence[Epoch], moment: datetime) -> tuple[Epoch | None, int]:
    """The last epoch whose axis has begun at `moment` and the nearest slot there; None before the first epoch."""
    for epoch in reversed(epochs):
        slot = epoch.spec.slots.nearest(moment)
        if slot >= 0:
            return epoch, slot
    return None, -1


def overlapping(epochs: Sequence[Epoch], start: datetime, end: datetime) -> list[tuple[Epoch, int, int]]:
    """Per epoch its slots [first, stop) with times in [start, end]; together they cover the window once.

    An epoch reaches to the start of the next, the newest without end and the oldest without beginning: slots off the
    laid-out axis exist, and nothing has come for them.
    """
    found = []
    for number, epoch in enumerate(epochs):
        first, stop = window(epoch.spec.slots, start, end)
        if number > 0:
            first = max(first, 0)
        if number + 1 < len(epochs):
            until = epochs[number + 1].spec.start - timedelta(microseconds=1)
            stop = min(stop, window(epoch.spec.slots, epoch.spec.start, until)[1])
        if first < stop:
            found.append((epoch, first, stop))
    return found


def axis_length(slots: int) -> int:
    """The length of an axis with at least `slots` slots: whole blocks."""
    return max(1, -(-slots // BLOCK)) * BLOCK


def spec_in_front(first: Epoch, moment: datetime) -> tuple[ArchiveSpec, int]:
    """An axis of whole blocks from `moment` or before up to where `first` (a fixed step) begins, and its length."""
    length = axis_length(1 - first.spec.slots.nearest(moment))
    return replace(first.spec, start=first.spec.start - length * first.spec.cadence), length
