"""Epochs of an archive: one Zarr group per grid and cadence, each with its own pre-extended slot axis.

The root group's attributes say which epochs there are. A frame belongs to the last epoch whose axis has begun; an
epoch opened in front of another ends where that one starts, so that an axis grows backwards without moving a slot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import BytesCodec, ZstdCodec

from tasks.chunks import get_chunks
from tasks.feeds import Packing
from tasks.packing import ZSTD_LEVEL, Grid
from tasks.slots import UNKNOWN, Calendar, FixedStep, Months, window

SCHEMA = 1
DAY = 288  # slots per metadata chunk
BLOCK = 28 * DAY  # slots by which an axis grows: whole metadata chunks, so that growing rewrites nothing
LONGEST = (
    400 * BLOCK
)  # by which one frame may lengthen an axis: 30 years of five minutes, not a broken clock's centuries
KEY_BYTES, ETAG_BYTES, HASH_BYTES = 192, 96, 32


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
# Stable words; their places are the flag values in `reject_reason`.
REASONS = (
    "none",
    "truncated",
    "corrupt",
    "wrong_grid",
    "wrong_quantity",
    "future",
    "oversized",
    "unreadable",
    "no_data",
    "off_grid",
    "duplicate",
    "out_of_range",
    "other",
)


def reason_flag(reason: str) -> int:
    """Flag value of a reject reason; `other` for a word this schema does not know."""
    return 1 + (REASONS.index(reason) if reason in REASONS else REASONS.index("other"))


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


def _described(spec: ArchiveSpec) -> dict[str, Any]:
    raw = {name: getattr(spec, name) for name in ("domain", "feed", "quantity", "licence", "no_echo", "calendar")}
    spans = {f"{name}_s": getattr(spec, name).total_seconds() for name in ("cadence", "tolerance", "late_after")}
    attrs = {name: _json(getattr(spec, name)) for name in ("grid_mapping", "y_attrs", "x_attrs", "attrs")}
    return {**raw, **spans, **attrs, "start": spec.start.isoformat(), "packing": asdict(spec.packing)}


def _json(attrs: Mapping[str, object]) -> dict[str, object]:
    plain: dict[str, object] = json.loads(json.dumps(dict(attrs), default=lambda value: value.item()))
    return plain


def _restored(raw: Mapping[str, Any], y: NDArray[np.float64], x: NDArray[np.float64]) -> ArchiveSpec:
    plain = {
        name: raw[name]
        for name in (
            "domain",
            "feed",
            "quantity",
            "licence",
            "no_echo",
            "calendar",
            "grid_mapping",
            "y_attrs",
            "x_attrs",
        )
    }
    spans = {name: timedelta(seconds=raw[f"{name}_s"]) for name in ("cadence", "tolerance", "late_after")}
    start = datetime.fromisoformat(raw["start"])
    return ArchiveSpec(**plain, **spans, attrs=raw["attrs"], start=start, packing=Packing(**raw["packing"]), y=y, x=x)


def read_epochs(store: Store, known: Sequence[Epoch] = ()) -> tuple[Epoch, ...]:
    """The epochs of a snapshot, by the start of their axes; empty where the archive has not been laid out.

    Args:
        store: A session's store.
        known: Epochs read before; their grids, which never change, are taken from here.
    """
    (root,) = get_chunks(store, ["zarr.json"])
    listed = {} if root is None else json.loads(root)["attributes"].get("squall_epochs", {})
    grids = {epoch.name: (epoch.spec.y, epoch.spec.x) for epoch in known}
    found = []
    for name, raw in listed.items():
        y, x = grids.get(name) or tuple(
            np.asarray(zarr.open_array(store, path=f"{name}/{a}", mode="r")[:]) for a in "yx"
        )
        found.append(Epoch(name, _restored(raw, y, x), int(raw["length"])))
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
    """An axis of whole blocks that ends where `first` begins and reaches back to `moment`; with its length.

    Raises:
        ValueError: a calendar of months (start those early enough).
    """
    if first.spec.calendar == "months":
        raise ValueError(f"expected a time from {first.spec.start} on; got {moment} (an axis of months starts once)")
    length = axis_length(1 - first.spec.slots.nearest(moment))
    return replace(first.spec, start=first.spec.start - length * first.spec.cadence), length


def lay_out(store: Store, spec: ArchiveSpec, length: int) -> Epoch:
    """Create the next epoch's group, arrays and coordinates in a writable session's store."""
    root = zarr.open_group(store, mode="a", zarr_format=3)
    listed = dict(root.attrs).get("squall_epochs", {})
    name = f"epoch-{len(listed)}"
    if not listed:
        root.update_attributes(_root_attrs(spec))
    root.update_attributes({"squall_epochs": {**listed, name: {**_described(spec), "length": length}}})
    group = root.create_group(name, attributes=_root_attrs(spec))
    _create_slot_arrays(group, length)
    _create_field(group, spec, length)
    _create_coordinates(group, spec)
    epoch = Epoch(name, spec, length)
    write_times(store, epoch, 0)
    return epoch


def lengthen(store: Store, epoch: Epoch, length: int) -> Epoch:
    """Resize every slot array of an epoch to `length` (whole blocks) and write the new times."""
    group = zarr.open_group(store, path=epoch.name, mode="r+", zarr_format=3)
    for name in (*SLOT_ARRAYS, "time", epoch.spec.quantity):
        array = group[name]
        assert isinstance(array, zarr.Array)
        array.resize((length, *array.shape[1:]))
    root = zarr.open_group(store, mode="r+", zarr_format=3)
    listed: dict[str, Any] = dict(root.attrs)["squall_epochs"]  # type: ignore[assignment]
    root.update_attributes({"squall_epochs": {**listed, epoch.name: {**listed[epoch.name], "length": length}}})
    longer = replace(epoch, length=length)
    write_times(store, longer, epoch.length)
    return longer


def write_times(store: Store, epoch: Epoch, first: int) -> None:
    """Write the time coordinate from slot `first` (a multiple of a block) to the end."""
    times = zarr.open_array(store, path=f"{epoch.name}/time", mode="r+")
    times[first:] = epoch.spec.slots.seconds(first, epoch.length)


def _root_attrs(spec: ArchiveSpec) -> dict[str, Any]:
    return {
        "Conventions": "CF-1.11",
        "title": f"Squall archive of {spec.domain}: {spec.quantity} from feed {spec.feed}",
        "license": spec.licence,
        "squall_schema": SCHEMA,
        "domain": spec.domain,
        "feed": spec.feed,
        "cadence_s": spec.cadence.total_seconds(),
        "tolerance_s": spec.tolerance.total_seconds(),
        "late_after_s": spec.late_after.total_seconds(),
    }


_SECONDS = {"units": "seconds since 1970-01-01T00:00:00Z", "calendar": "proleptic_gregorian"}


def _flags(values: Sequence[int], meanings: Sequence[str]) -> dict[str, Any]:
    return {"flag_values": list(values), "flag_meanings": " ".join(meanings)}


# name: (dtype, bytes per slot or 0, fill value, attributes)
SLOT_ARRAYS: Mapping[str, tuple[str, int, int, Mapping[str, Any]]] = {
    "valid_time": ("int64", 0, UNKNOWN, {"long_name": "time stated inside the file, end of interval", **_SECONDS}),
    "received_at": ("int64", 0, UNKNOWN, {"long_name": "time at which the bytes were received", **_SECONDS}),
    "status": (
        "uint8",
        0,
        int(Status.EXPECTED),
        {"long_name": "status of the slot", **_flags(list(Status), [status.name.lower() for status in Status])},
    ),
    "reject_reason": (
        "uint8",
        0,
        reason_flag("none"),
        {"long_name": "why the slot's object was rejected", **_flags(range(1, len(REASONS) + 1), REASONS)},
    ),
    "source_key": ("uint8", KEY_BYTES, 0, {"long_name": "key of the source object, UTF-8, zero-padded"}),
    "etag": ("uint8", ETAG_BYTES, 0, {"long_name": "entity tag of the source object, UTF-8, zero-padded"}),
    "content_hash": ("uint8", HASH_BYTES, 0, {"long_name": "SHA-256 of the source object's bytes"}),
}


def _create_slot_arrays(group: zarr.Group, length: int) -> None:
    for name, (dtype, width, fill, attrs) in SLOT_ARRAYS.items():
        missing = {"_FillValue": fill} if fill == UNKNOWN else {}
        group.create_array(
            name,
            shape=(length, width) if width else (length,),
            chunks=(DAY, width) if width else (DAY,),
            dtype=dtype,
            fill_value=fill,
            compressors=ZstdCodec(level=ZSTD_LEVEL),
            dimension_names=("time", f"{name}_byte") if width else ("time",),
            attributes={**attrs, **missing},
        )


def _create_field(group: zarr.Group, spec: ArchiveSpec, length: int) -> None:
    packing = spec.packing
    attrs: dict[str, Any] = {
        **_json(spec.attrs),
        "grid_mapping": "spatial_ref",
        "scale_factor": packing.scale_factor,
        "add_offset": packing.add_offset,
        "_FillValue": packing.fill,
        "coordinates": "valid_time status received_at reject_reason spatial_ref",
        **({} if spec.no_echo is None else {"no_echo": spec.no_echo}),
    }
    group.create_array(
        spec.quantity,
        shape=(length, spec.y.size, spec.x.size),
        chunks=(1, spec.y.size, spec.x.size),
        dtype=packing.dtype,
        fill_value=packing.fill,
        serializer=BytesCodec(endian="little") if packing.dtype != "uint8" else BytesCodec(endian=None),
        compressors=ZstdCodec(level=ZSTD_LEVEL),
        dimension_names=("time", "y", "x"),
        attributes=attrs,
    )


def _create_coordinates(group: zarr.Group, spec: ArchiveSpec) -> None:
    start = {"standard_name": "time", "long_name": "slot, end of interval", "axis": "T", **_SECONDS}
    length = group["status"].shape[0]  # type: ignore[union-attr]
    zstd = ZstdCodec(level=ZSTD_LEVEL)
    group.create_array(
        "time", shape=(length,), chunks=(BLOCK,), dtype="int64", fill_value=UNKNOWN, compressors=zstd,
        dimension_names=("time",), attributes=start,
    )  # fmt: skip
    for name, values, attrs in (("y", spec.y, spec.y_attrs), ("x", spec.x, spec.x_attrs)):
        array = group.create_array(
            name, shape=values.shape, chunks=(BLOCK,), dtype="float64", fill_value=float("nan"), compressors=zstd,
            dimension_names=(name,), attributes=_json(attrs),
        )  # fmt: skip
        array[:] = values
    group.create_array("spatial_ref", shape=(), dtype="int64", fill_value=UNKNOWN, attributes=_json(spec.grid_mapping))
