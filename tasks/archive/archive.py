"""The versioned archive of a domain: one Icechunk repository, frames in the slots of a pre-extended time axis.

Writing twice changes nothing, a reader sees whole commits only, and every commit is a snapshot whose id is quoted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import icechunk as ic
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from infra.repository import (
    RepositoryMissing,
    SnapshotMissing,
    Staged,
    commit,
    create_repository,
    open_repository,
    session_at,
)
from tasks.archive.chunks import ArchiveDamaged, put_chunks
from tasks.archive.epochs import (
    DAY,
    FILLED,
    ArchiveSpec,
    Epoch,
    EpochMismatch,
    Status,
    axis_length,
    overlapping,
    read_epochs,
)
from tasks.archive.layout import SLOT_ARRAYS, lay_out, lengthen
from tasks.archive.packing import PackedFrame, PackingError, pack_frame
from tasks.archive.reading import extreme_filled, read_slots
from tasks.archive.rejections import Rejection, lay_out_log, read_log
from tasks.archive.retention import ArchiveInfo, Expiry, SnapshotInfo, describe, expire, history
from tasks.archive.slot_table import Held, SlotTable, texts
from tasks.archive.slots import Times, as_datetime, as_times
from tasks.archive.staging import Arrival, Received, Staging, WriteReport

__all__ = [
    "Archive",
    "ArchiveDamaged",
    "ArchiveExists",
    "ArchiveMissing",
    "ArchiveSpec",
    "EpochMismatch",
    "Received",
    "Rejection",
    "SnapshotMissing",
    "Status",
    "WriteReport",
]

_FIRST_BLOCKS = 13  # a year of five-minute slots laid out at creation; unwritten slots cost nothing
_NAMED = 24  # slots named in a snapshot's metadata


class ArchiveMissing(LookupError):
    """No archive at the URL."""


class ArchiveExists(RuntimeError):
    """Another process has created the archive."""


class Archive:
    """Open with `Archive.open`; every call works in a session of its own, so an instance never goes stale."""

    def __init__(self, repository: ic.Repository, url: str, storage: Mapping[str, object]) -> None:
        self.url = url
        self.storage = dict(storage)
        self.repository = repository
        self._epochs: tuple[Epoch, ...] = ()
        self._seen = ""  # the snapshot they were read from
        self._rows: tuple[str, Mapping[str, Held]] = ("", {})  # slot rows of a snapshot: a cycle reads them once
        if not self.epochs():
            raise ArchiveMissing(f"expected an archive at {url}; its repository has not been laid out")

    @classmethod
    def create(cls, url: str, storage: Mapping[str, object], spec: ArchiveSpec) -> Archive:
        """Create the repository and its first epoch; finishes a creation that died half-way.

        Raises:
            ArchiveExists: there is one already (perhaps created a moment ago by another process).
            UnsafeStore: the object store would let two writers overwrite each other (proven once, before creation).
        """
        repository = create_repository(url, storage, (spec.quantity,))

        def work(session: ic.Session) -> Staged:
            if read_epochs(session.store):
                raise ArchiveExists(f"expected no archive at {url}; there is one")
            lay_out(session.store, spec, axis_length(_FIRST_BLOCKS * axis_length(1)))
            lay_out_log(session.store)
            return Staged(f"Lay out the archive of {spec.domain} from {spec.start.isoformat()}", {"feed": spec.feed})

        commit(repository, url, work)
        return cls(repository, url, storage)

    @classmethod
    def open(cls, url: str, storage: Mapping[str, object]) -> Archive:
        """Open an archive.

        Raises:
            ArchiveMissing: nothing there.
        """
        try:
            return cls(open_repository(url, storage), url, storage)
        except RepositoryMissing as error:
            raise ArchiveMissing(str(error)) from error

    @property
    def spec(self) -> ArchiveSpec:
        """What the newest epoch holds."""
        return (self._epochs or self.epochs())[-1].spec

    def epochs(self, as_of: str | None = None) -> tuple[Epoch, ...]:
        """The epochs of main (or of a snapshot), by the start of their axes."""
        return self._read_epochs(session_at(self.repository, as_of))

    def _read_epochs(self, session: ic.Session) -> tuple[Epoch, ...]:
        if session.snapshot_id == self._seen:
            return self._epochs
        found = read_epochs(session.store, self._epochs)
        if len(found) >= len(self._epochs):  # an old snapshot may have fewer
            self._epochs, self._seen = found, session.snapshot_id
        return found

    def write(self, received: Sequence[Received], rejections: Sequence[Rejection] = ()) -> WriteReport:
        """Put frames into their slots and log rejections, in one commit; repeating it changes nothing."""
        arrivals, refused = self._packed(received)
        stagings: list[tuple[str, Staging]] = []

        def work(session: ic.Session) -> Staged:
            staging = Staging(session.store, self._read_epochs(session), self._held(session))
            outcome = staging.run(arrivals, [*rejections, *refused])
            stagings.append((session.snapshot_id, staging))
            if not outcome.changed:
                return Staged(None, {})
            slots = [time.isoformat() for time in outcome.written]
            named = slots if len(slots) <= _NAMED else [*slots[: _NAMED - 1], slots[-1]]
            message = f"Write {len(slots)} frames of {self.spec.domain}" + (f" up to {slots[-1]}" if slots else "")
            counts = {"corrected": len(outcome.corrected), "late": len(outcome.late), "rejected": len(outcome.rejected)}
            return Staged(message, {"feed": self.spec.feed, "slots": named, "written": len(slots), **counts})

        snapshot = commit(self.repository, self.url, work) if arrivals or rejections or refused else None
        if not stagings:
            return WriteReport(None, 0, 0, 0, 0, (), ())
        self._remember(snapshot, *stagings[-1])
        done = stagings[-1][1].outcome
        return WriteReport(
            snapshot,
            len(done.written),
            len(done.corrected),
            len(done.late),
            done.unchanged,
            tuple(done.rejected),
            tuple(done.written),
        )

    def _remember(self, snapshot: str | None, base: str, staging: Staging) -> None:
        """What was staged is what a commit on its own base holds; after a rebase it is read again."""
        if snapshot is not None and self.repository.lookup_snapshot(snapshot).parent_id == base:
            self._epochs, self._seen = staging.epochs, snapshot
            self._rows = (snapshot, staging.held())

    def _held(self, session: ic.Session) -> Mapping[str, Held]:
        snapshot, rows = self._rows
        return rows if snapshot == session.snapshot_id else {}

    def _table(self, session: ic.Session, epoch: Epoch) -> SlotTable:
        return SlotTable(session.store, epoch, self._held(session).get(epoch.name))

    def _packed(self, received: Sequence[Received]) -> tuple[list[Arrival], list[Rejection]]:
        arrivals, refused = [], []
        for item in received:
            frame = item.frame
            try:
                packed = frame if isinstance(frame, PackedFrame) else pack_frame(frame, self.spec.packing)
            except PackingError as error:
                time = as_datetime(frame.coords["time"].values[()])  # type: ignore[union-attr]
                refused.append(Rejection(item.source_key, item.etag, time, "out_of_range", str(error)))
                continue
            arrivals.append(Arrival(packed, item.source_key, item.etag, item.content_hash, item.received_at))
        return arrivals, refused

    def known(self, start: datetime, end: datetime, newest: datetime | None = None) -> set[tuple[str, str]]:
        """(source_key, etag) of every object in [start, end] that is stored or was rejected.

        Not of one that claimed to be from the future where its time is no longer after `newest`.
        """
        session = session_at(self.repository, None)
        found: set[tuple[str, str]] = set()
        held: dict[str, Held] = {}
        reach = self.spec.cadence
        for epoch, first, stop in overlapping(self._read_epochs(session), start - reach, end + reach):
            table = self._table(session, epoch)
            if stop - first <= DAY:  # a cycle: what the write will look at comes in the same round trip
                table.load(SLOT_ARRAYS, [slot for slot in (first, stop - 1) if 0 <= slot < epoch.length])
                held[epoch.name] = table.held()
            rows = table.columns(["status", "source_key", "etag"], first, stop)
            filled = np.isin(rows["status"], FILLED)
            if filled.any():
                found.update(zip(texts(rows["source_key"][filled]), texts(rows["etag"][filled]), strict=True))
        self._rows = (session.snapshot_id, held)
        day = timedelta(days=1)
        for item in read_log(session.store, start - day, end + day):
            come = item.reason == "future" and item.time is not None and newest is not None and item.time <= newest
            if not come:
                found.add((item.source_key, item.etag))
        return found

    def read(self, start: datetime, end: datetime, *, as_of: str | None = None) -> xr.Dataset:
        """Slots in [start, end] (both included), as of a snapshot id or tag.

        Returns:
            <quantity> (time, y, x) float32 in physical units, NaN = not observed or no frame; status (time) uint8;
            valid_time, received_at (time) datetime64[ns], NaT = no frame or not recorded; source_key (time) str;
            coordinates time (slot, END of the interval, UTC), y, x, spatial_ref; attrs["archive_snapshot"].

        Raises:
            EpochMismatch: the window spans epochs of different grids or cadences.
            SnapshotMissing: no such snapshot or tag (any more).
            ArchiveDamaged: a slot that holds a frame has no chunk.
        """
        session = session_at(self.repository, as_of)
        return read_slots(session.store, self._read_epochs(session), start, end).assign_attrs(
            archive_snapshot=session.snapshot_id
        )

    def present(self, start: datetime, end: datetime, as_of: str | None = None) -> tuple[NDArray[np.bool_], Times]:
        """Whether each slot in [start, end] holds a frame, and the slots' times (datetime64[ns])."""
        status, times = self.statuses(start, end, as_of)
        return np.isin(status, FILLED), times

    def statuses(self, start: datetime, end: datetime, as_of: str | None = None) -> tuple[NDArray[np.uint8], Times]:
        """Status of each slot in [start, end] and the slots' times (datetime64[ns]), over all epochs."""
        session = session_at(self.repository, as_of)
        status, times = [np.empty(0, np.uint8)], [np.empty(0, np.int64)]
        for epoch, first, stop in overlapping(self._read_epochs(session), start, end):
            rows = self._table(session, epoch).columns(["status"], first, stop)
            status.append(rows["status"].astype(np.uint8))
            times.append(epoch.spec.slots.seconds(first, stop))
        return np.concatenate(status), as_times(np.concatenate(times))

    def gaps(self, start: datetime, end: datetime, as_of: str | None = None) -> list[tuple[datetime, datetime]]:
        """Runs of slots in [start, end] without a frame, each as (first, last) slot time."""
        present, times = self.present(start, end, as_of)
        edges = np.flatnonzero(np.diff(np.concatenate([[True], present, [True]]).astype(np.int8)))
        return [
            (as_datetime(times[a]), as_datetime(times[b - 1])) for a, b in zip(edges[::2], edges[1::2], strict=True)
        ]

    def latest(self, as_of: str | None = None) -> datetime | None:
        """Time of the newest slot that holds a frame; None while there is none."""
        session = session_at(self.repository, as_of)
        for epoch in reversed(self._read_epochs(session)):
            slot = extreme_filled(session, epoch, newest=True)
            if slot is not None:
                return epoch.spec.slots.time(slot)
        return None

    def earliest(self, as_of: str | None = None) -> datetime | None:
        """Time of the oldest slot that holds a frame; None while there is none."""
        session = session_at(self.repository, as_of)
        for epoch in self._read_epochs(session):
            slot = extreme_filled(session, epoch, newest=False)
            if slot is not None:
                return epoch.spec.slots.time(slot)
        return None

    def rejections(self, start: datetime, end: datetime) -> list[Rejection]:
        """Objects in [start, end] that were turned away, in order of arrival."""
        return read_log(session_at(self.repository, None).store, start, end)

    def mark(self, start: datetime, end: datetime, now: datetime) -> tuple[datetime, ...]:
        """Mark slots in [start, end] whose deadline has passed without a frame as missing; returns their times."""
        marked: list[datetime] = []

        def work(session: ic.Session) -> Staged:
            marked.clear()
            due = min(end, now - self.spec.late_after)
            for epoch, first, stop in overlapping(self._read_epochs(session), start, due):
                table = SlotTable(session.store, epoch)
                for slot in range(max(first, 0), min(stop, epoch.length)):
                    if int(table.row("status", slot)) == Status.EXPECTED:
                        table.set(slot, {"status": int(Status.MISSING)})
                        marked.append(epoch.spec.slots.time(slot))
                put_chunks(session.store, table.changes())
            return Staged(f"Mark {len(marked)} slots as missing" if marked else None, {"marked": len(marked)})

        status, _ = self.statuses(start, min(end, now))
        if (status == Status.EXPECTED).any():  # looked at first: a writable session costs more than most cycles need
            commit(self.repository, self.url, work)
        return tuple(marked)

    def extend(self, until: datetime) -> None:
        """Lengthen the newest epoch's axis, by whole blocks, to hold `until`; a commit of its own."""

        def work(session: ic.Session) -> Staged:
            epoch = self._read_epochs(session)[-1]
            length = axis_length(epoch.spec.slots.nearest(until) + 1)
            if length <= epoch.length:
                return Staged(None, {})
            lengthen(session.store, epoch, length)
            return Staged(f"Extend {epoch.name} to {length} slots", {})

        commit(self.repository, self.url, work)

    def end(self) -> datetime:
        """Time of the last slot laid out."""
        newest = self.epochs()[-1]
        return newest.spec.slots.time(newest.length - 1)

    def open_epoch(self, spec: ArchiveSpec) -> None:
        """Open a new epoch (another grid or cadence) at `spec.start`; older frames stay where they are.

        Raises:
            EpochMismatch: the current epoch holds frames at or after the start, or is of another quantity.
        """

        def work(session: ic.Session) -> Staged:
            current = self._read_epochs(session)[-1]
            last = extreme_filled(session, current, newest=True)
            occupied = None if last is None else current.spec.slots.time(last)
            if spec.quantity != current.spec.quantity:
                raise EpochMismatch(f"expected an epoch of {current.spec.quantity}; got {spec.quantity}")
            if spec.start <= current.spec.start or (occupied is not None and spec.start <= occupied):
                raise EpochMismatch(f"expected a start after {occupied or current.spec.start}; got {spec.start}")
            lay_out(session.store, spec, axis_length(_FIRST_BLOCKS * axis_length(1)))
            return Staged(f"Open an epoch of {spec.domain} from {spec.start.isoformat()}", {"feed": spec.feed})

        commit(self.repository, self.url, work)
        self.epochs()

    def snapshot(self) -> str:
        """Id of main's newest snapshot."""
        newest: str = self.repository.lookup_branch("main")
        return newest

    def snapshots(self, limit: int | None = None) -> list[SnapshotInfo]:
        """Commits of main, newest first, at most `limit`."""
        return history(self, limit)

    def info(self) -> ArchiveInfo:
        """Period, counts per status, gaps, size and history."""
        return describe(self)

    def expire(self, now: datetime, keep: timedelta) -> Expiry:
        """Forget untagged snapshots older than `keep` (at least 24 h) and delete what only they needed.

        Raises:
            ValueError: a horizon that could reach the chunks of a session still open.
        """
        return expire(self, now, keep)

    def tag(self, name: str, snapshot: str) -> None:
        """Keep a snapshot for ever under a name (training runs, promoted models, exports; never per product)."""
        self.repository.create_tag(name, snapshot_id=snapshot)
