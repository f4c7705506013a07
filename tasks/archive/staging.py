"""Put received frames into their slots inside one writable session; the caller commits, or starts afresh.

A slot takes the frame nearest to it. Equal bytes change nothing; other bytes of a filled slot are a correction; what
is displaced or turned away is logged, so that nobody downloads it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from zarr.abc.store import Store

from tasks.archive.chunks import put_chunks
from tasks.archive.epochs import LONGEST, ArchiveSpec, Epoch, Status, axis_length, find_epoch, spec_in_front
from tasks.archive.layout import ETAG_BYTES, HASH_BYTES, KEY_BYTES, SLOT_ARRAYS, lay_out, lengthen, reason_flag
from tasks.archive.packing import PackedFrame, PackingError, compress, decompress, pack, unpack
from tasks.archive.rejections import Rejection, append_log
from tasks.archive.slot_table import Held, SlotTable, field_key, padded, texts
from tasks.archive.slots import UNKNOWN, moment, seconds


@dataclass(frozen=True)
class Received:
    """A decoded frame and where it came from.

    Attributes:
        frame: As `Feed.decode` gives it (y, x), or already packed where it was decoded.
        source_key: Key of the source object inside the feed's root.
        etag: Its entity tag.
        content_hash: SHA-256 of the source object's bytes.
        received_at: When the bytes were received (aware, UTC); None where that was not recorded (backfill).
    """

    frame: xr.DataArray | PackedFrame
    source_key: str
    etag: str
    content_hash: bytes
    received_at: datetime | None = None


@dataclass(frozen=True)
class WriteReport:
    """What a write did.

    Attributes:
        snapshot: Id of the new snapshot; None where nothing changed.
        written: Slots that took a frame, late and corrected ones included.
        corrected: Of those, slots that held another frame before.
        late: Of those, slots filled after their deadline.
        unchanged: Frames whose bytes were there already.
        rejected: Objects turned away (given as such, or found unfit), logged before or not.
        slots: Times of the slots written.
    """

    snapshot: str | None
    written: int
    corrected: int
    late: int
    unchanged: int
    rejected: tuple[Rejection, ...]
    slots: tuple[datetime, ...]


@dataclass(frozen=True)
class Arrival:
    """A packed frame with the provenance of its bytes.

    Attributes:
        frame: Packed codes, time and grid.
        source_key: Key of the source object inside the feed's root.
        etag: Its entity tag.
        content_hash: SHA-256 of the source object's bytes.
        received_at: When the bytes were received (aware, UTC); None where that was not recorded (backfill).
    """

    frame: PackedFrame
    source_key: str
    etag: str
    content_hash: bytes
    received_at: datetime | None


@dataclass
class Outcome:
    """What staging did; slots by their times.

    Attributes:
        written: Slots that took a frame, late and corrected ones included.
        corrected: Of those, slots that held another frame.
        late: Of those, slots filled after their deadline.
        unchanged: Frames whose bytes are already there.
        rejected: Everything turned away, logged before or not.
        changed: Whether anything is to be committed.
    """

    written: list[datetime] = field(default_factory=list)
    corrected: list[datetime] = field(default_factory=list)
    late: list[datetime] = field(default_factory=list)
    unchanged: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    changed: bool = False


class Staging:
    """One writable session's view of the archive."""

    def __init__(self, store: Store, epochs: Sequence[Epoch], held: Mapping[str, Held] | None = None) -> None:
        self.outcome = Outcome()
        self._store = store
        self._epochs = tuple(epochs)
        self._held = held or {}
        self._tables: dict[str, SlotTable] = {}
        self._chunks: dict[str, bytes] = {}
        self._log: list[Rejection] = []

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs, axes grown by what was staged included."""
        return self._epochs

    def held(self) -> dict[str, Held]:
        """The slot rows that were looked at, by epoch, as they are with what was staged."""
        return {name: table.held() for name, table in self._tables.items()}

    def run(self, arrivals: Sequence[Arrival], rejections: Sequence[Rejection]) -> Outcome:
        """Stage all of it; nothing is visible before the session is committed."""
        matched = self._matched(arrivals)
        for epoch in self._epochs:
            slots = [slot for name, slot in matched if name == epoch.name]
            if slots:
                self._table(epoch).load(SLOT_ARRAYS, slots)
            for slot in slots:
                self._choose(epoch, slot, matched[epoch.name, slot])
        for rejection in rejections:
            self._turn_away(rejection)
        for table in self._tables.values():
            self._chunks |= table.changes()
        put_chunks(self._store, self._chunks)
        logged = append_log(self._store, self._log) if self._log else ()
        self.outcome.changed |= bool(self._chunks) or bool(logged)
        return self.outcome

    def _matched(self, arrivals: Sequence[Arrival]) -> dict[tuple[str, int], list[Arrival]]:
        found: dict[tuple[str, int], list[Arrival]] = {}
        for arrival in sorted(arrivals, key=lambda item: item.frame.time):
            place = self._place(arrival)
            if place is not None:
                found.setdefault(place, []).append(arrival)
        return found

    def _place(self, arrival: Arrival) -> tuple[str, int] | None:
        """Epoch and slot of a frame; None where it was refused."""
        frame = arrival.frame
        epoch, slot = find_epoch(self._epochs, frame.time)
        spec = (epoch or self._epochs[0]).spec
        misfit = _misfit(frame, spec)
        if misfit is not None:
            self._refuse(arrival, *misfit)
            return None
        if epoch is None or slot >= epoch.length:
            beyond = -self._epochs[0].spec.slots.nearest(frame.time) if epoch is None else slot - epoch.length
            fixed = epoch is None and spec.calendar == "months"  # an axis of months starts once
            if fixed or beyond > LONGEST:
                self._refuse(arrival, "off_grid", f"expected a time near the axis; got {frame.time}")
                return None
            epoch, slot = self._grown(epoch, frame.time)
        return epoch.name, slot

    def _grown(self, epoch: Epoch | None, time: datetime) -> tuple[Epoch, int]:
        """An axis that holds `time`: the newest epoch made longer, or a new one in front of the first."""
        if epoch is None:
            spec, length = spec_in_front(self._epochs[0], time)
            grown = lay_out(self._store, spec, length)
        else:
            grown = lengthen(self._store, epoch, axis_length(epoch.spec.slots.nearest(time) + 1))
            self._tables.pop(epoch.name, None)
        kept = [other for other in self._epochs if other.name != grown.name]
        self._epochs = tuple(sorted([*kept, grown], key=lambda other: other.spec.start))
        return grown, grown.spec.slots.nearest(time)

    def _choose(self, epoch: Epoch, slot: int, rivals: list[Arrival]) -> None:
        time = epoch.spec.slots.time(slot)
        best = min(reversed(rivals), key=lambda item: abs(item.frame.time - time))
        for other in rivals:
            if other is not best:
                self._duplicate(
                    other.source_key, other.etag, other.frame.time, f"{best.source_key} is nearer to {time}"
                )
        self._fill(epoch, slot, best)

    def _fill(self, epoch: Epoch, slot: int, arrival: Arrival) -> None:
        table, time = self._table(epoch), epoch.spec.slots.time(slot)
        before = Status(int(table.row("status", slot)))
        content = np.frombuffer(arrival.content_hash, np.uint8)
        if before.filled and np.array_equal(table.row("content_hash", slot), content):
            self.outcome.unchanged += 1
            key = texts(table.row("source_key", slot)[None])[0]
            if key != arrival.source_key:  # remembered, or it would be downloaded in every cycle
                self._duplicate(arrival.source_key, arrival.etag, arrival.frame.time, f"{key} holds the same bytes")
            return
        if before.filled and not self._displaces(table, slot, time, arrival):
            return
        try:
            chunk = self._encoded(epoch, arrival)
            row = self._provenance(arrival, content)
        except (PackingError, ValueError) as error:
            reason = "out_of_range" if isinstance(error, PackingError) else "unreadable"
            self._refuse(arrival, reason, str(error))
            return
        status = self._new_status(epoch, before, time, arrival.received_at)
        self._chunks[field_key(epoch, slot)] = chunk
        table.set(slot, {**row, "status": int(status), "reject_reason": reason_flag("none")})
        self.outcome.written.append(time)
        if status is Status.CORRECTED:
            self.outcome.corrected.append(time)
        if status is Status.LATE:
            self.outcome.late.append(time)

    def _displaces(self, table: SlotTable, slot: int, time: datetime, arrival: Arrival) -> bool:
        """Whether an arrival with other bytes takes a filled slot: the same object revised, or one not farther off."""
        key = texts(table.row("source_key", slot)[None])[0]
        if key == arrival.source_key:
            return True
        stored = moment(int(table.row("valid_time", slot)))
        if abs(arrival.frame.time - time) > abs(stored - time) + timedelta(seconds=1):
            self._duplicate(arrival.source_key, arrival.etag, arrival.frame.time, f"{key} is nearer to {time}")
            return False
        etag = texts(table.row("etag", slot)[None])[0]
        self._duplicate(key, etag, stored, f"{arrival.source_key} took its slot {time}")
        return True

    @staticmethod
    def _encoded(epoch: Epoch, arrival: Arrival) -> bytes:
        frame, packing = arrival.frame, epoch.spec.packing
        if frame.packing == packing:
            return frame.chunk
        shape = (frame.grid.y.size, frame.grid.x.size)
        values = unpack(decompress(frame.chunk, frame.packing.dtype, shape), frame.packing)
        return compress(pack(values, packing, epoch.spec.no_echo or 0.0))

    @staticmethod
    def _provenance(arrival: Arrival, content: NDArray[np.uint8]) -> dict[str, int | NDArray[np.uint8]]:
        if content.size != HASH_BYTES:
            raise ValueError(f"expected a SHA-256 of {HASH_BYTES} bytes; got {content.size}")
        received = arrival.received_at
        return {
            "valid_time": seconds(arrival.frame.time),
            "received_at": UNKNOWN if received is None else seconds(received),
            "source_key": padded(arrival.source_key, KEY_BYTES),
            "etag": padded(arrival.etag, ETAG_BYTES),
            "content_hash": content,
        }

    @staticmethod
    def _new_status(epoch: Epoch, before: Status, time: datetime, received: datetime | None) -> Status:
        if before.filled:
            return Status.CORRECTED
        late = before is Status.MISSING or (received is not None and received - time > epoch.spec.late_after)
        return Status.LATE if late else Status.PRESENT

    def _table(self, epoch: Epoch) -> SlotTable:
        if epoch.name not in self._tables:
            self._tables[epoch.name] = SlotTable(self._store, epoch, self._held.get(epoch.name))
        return self._tables[epoch.name]

    def _refuse(self, arrival: Arrival, reason: str, message: str) -> None:
        self._turn_away(Rejection(arrival.source_key, arrival.etag, arrival.frame.time, reason, message))

    def _duplicate(self, key: str, etag: str, time: datetime, message: str) -> None:
        rejection = Rejection(key, etag, time, "duplicate", message)
        self.outcome.rejected.append(rejection)
        self._log.append(rejection)

    def _turn_away(self, rejection: Rejection) -> None:
        """Log a rejection; a slot that it was meant for and that holds nothing says so."""
        self.outcome.rejected.append(rejection)
        self._log.append(rejection)
        if rejection.time is None or rejection.reason == "future":
            return
        epoch, slot = find_epoch(self._epochs, rejection.time)
        if epoch is None or slot >= epoch.length:
            return
        if abs(rejection.time - epoch.spec.slots.time(slot)) > epoch.spec.tolerance:
            return
        table = self._table(epoch)
        if Status(int(table.row("status", slot))) in (Status.EXPECTED, Status.MISSING):
            table.set(slot, {"status": int(Status.REJECTED), "reject_reason": reason_flag(rejection.reason)})


def _misfit(frame: PackedFrame, spec: ArchiveSpec) -> tuple[str, str] | None:
    """Reason and message why a frame has no place in an epoch; None where it has."""
    if frame.quantity != spec.quantity:
        return "wrong_quantity", f"expected {spec.quantity}; got {frame.quantity}"
    if not frame.grid.equals(spec.grid):
        return "wrong_grid", f"expected the grid of the epoch from {spec.start}; got another"
    distance = abs(frame.time - spec.slots.time(spec.slots.nearest(frame.time)))
    if distance > spec.tolerance:
        return "off_grid", f"expected a time within {spec.tolerance} of a slot; got {frame.time} ({distance})"
    return None
