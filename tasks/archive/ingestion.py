"""Newest frames of a feed into the archive, or any period of its past: list, receive in parallel, one commit a batch.

Safe to repeat and to kill: what is stored or was turned away is not downloaded again, a commit is whole or absent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from infra.objects import reaching_store
from infra.settings import Domain
from tasks.archive.archive import Archive, ArchiveExists, ArchiveMissing, ArchiveSpec, Received, Rejection, WriteReport
from tasks.archive.packing import PackedFrame
from tasks.archive.receiving import Job, Parcel, in_threads, receive
from tasks.archive.slots import FixedStep
from tasks.feeds import Feed, FrameObject, Packing
from tasks.grid import region_packing

_BATCH_BYTES = 256 << 20  # compressed codes held for one commit

Map = Callable[[Callable[[Job], Parcel], Sequence[Job]], Iterable[Parcel]]


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        found: Objects listed in the window and visible.
        skipped: Of those, known already and not downloaded.
        written: Slots that took a frame, late and corrected ones included.
        corrected: Slots whose frame was replaced by other bytes.
        late: Slots filled after their deadline.
        unchanged: Frames whose bytes were there already.
        missing: Slots of the window newly marked as missing.
        rejected: Objects (or frames of them) turned away in this run.
        failed: Keys that the store did not give; a later run tries them again.
        snapshot: The archive's newest snapshot; None while there is no archive.
        first: Oldest slot written.
        last: Newest slot written.
        seconds: Wall time by stage: list (and open the archive), receive (waiting for decoded frames), write, mark.
    """

    found: int = 0
    skipped: int = 0
    written: int = 0
    corrected: int = 0
    late: int = 0
    unchanged: int = 0
    missing: int = 0
    rejected: tuple[Rejection, ...] = ()
    failed: tuple[str, ...] = ()
    snapshot: str | None = None
    first: datetime | None = None
    last: datetime | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


def ingest(
    feed: Feed,
    domain: Domain,
    start: datetime,
    end: datetime,
    now: datetime,
    *,
    storage: Mapping[str, object] | None = None,
    backfill: bool = False,
    latency: timedelta | None = None,
    map: Map | None = None,
    batch: int = 96,
) -> IngestReport:
    """Archive every object of `feed` with a nominal time in [start, end] that is not there yet.

    Args:
        feed: Where frames come from.
        domain: Its archive, region, cadence and tolerances.
        start: First nominal time (aware, UTC).
        end: Last nominal time, included.
        now: The domain's time; what claims to be later than `future_tolerance` after it is rejected.
        storage: fsspec-style options of the archive's URL.
        backfill: Receipt is not recorded: these frames did not just arrive.
        latency: Of a replayed past: objects become visible, and count as received, this long after their time.
        map: Parallel map that keeps the order (`infra.compute.mapper`); default: two threads.
        batch: Frames per commit, at most.

    Raises:
        OSError: the store cannot be listed, or gave none of the objects.
        ValueError: the domain's cadence is not the archive's and no new epoch is allowed (`on_grid_change`).
    """
    return _Ingest(feed, domain, now, storage or {}, backfill, latency).run(start, end, map or in_threads, batch)


class _Ingest:
    def __init__(
        self,
        feed: Feed,
        domain: Domain,
        now: datetime,
        storage: Mapping[str, object],
        backfill: bool,
        latency: timedelta | None,
    ) -> None:
        self._feed, self._domain, self._now = feed, domain, now
        self._storage, self._backfill, self._latency = storage, backfill, latency
        self._seconds: Counter[str] = Counter()
        self._reports: list[WriteReport] = []
        self._failures: dict[str, OSError] = {}
        self._archive: Archive | None = None

    @property
    def _newest(self) -> datetime:
        return self._now + self._domain.feed.future_tolerance

    def run(self, start: datetime, end: datetime, parallel: Map, batch: int) -> IngestReport:
        """Everything, in order."""
        with self._stage("list"), ThreadPoolExecutor(1, thread_name_prefix="list") as beside:
            listed = beside.submit(reaching_store()(self._feed.list), start, end)  # mrms asks the store itself, too
            self._archive = self._open()
            known = self._known(start, end)
            items = [item for item in listed.result() if self._visible(item)]
            wanted = [item for item in items if (item.key, item.etag) not in known]
        packing = self._packing()
        jobs = [Job(self._feed, item, packing, self._domain.region, self._newest) for item in wanted]
        parcels = iter(parallel(receive, jobs)) if jobs else iter(())
        for group in self._grouped(parcels, batch):
            with self._stage("write"):
                self._write(group)
        unreachable = [error for error in self._failures.values() if not isinstance(error, FileNotFoundError)]
        if unreachable and len(self._failures) == len(wanted):
            raise unreachable[0]
        with self._stage("mark"):
            marked = self._archive.mark(start, min(end, self._now), self._now) if self._archive else ()
        return self._report(len(items), len(items) - len(wanted), len(marked))

    def _open(self) -> Archive | None:
        try:
            archive = Archive.open(self._domain.archive.url, self._storage)
        except ArchiveMissing:
            return None
        if archive.spec.cadence != self._domain.feed.cadence and not self._may_open_epoch:
            raise ValueError(
                f"expected the archive's cadence of {archive.spec.cadence}; the domain says {self._domain.feed.cadence}"
                " (allow a new epoch with on_grid_change = 'open_epoch')"
            )
        return archive

    @property
    def _may_open_epoch(self) -> bool:
        return self._domain.feed.options.get("on_grid_change") == "open_epoch"

    def _visible(self, item: FrameObject) -> bool:
        return self._latency is None or item.time + self._latency <= self._now

    def _known(self, start: datetime, end: datetime) -> set[tuple[str, str]]:
        if self._archive is None:
            return set()
        return self._archive.known(start, end, self._newest)

    def _packing(self) -> Packing:
        if self._archive is not None:
            return self._archive.spec.packing
        return region_packing(self._feed.packing, self._domain.region)

    def _grouped(self, parcels: Iterator[Parcel], batch: int) -> Iterator[list[Parcel]]:
        """Parcels by commit; all frames of an object land in the same one."""
        group: list[Parcel] = []
        while True:
            with self._stage("receive"):
                parcel = next(parcels, None)
            if parcel is None:
                break
            if parcel.failure is not None:
                self._failures[parcel.item.key] = parcel.failure
                continue
            group.append(parcel)
            if sum(len(p.frames) for p in group) >= batch or sum(p.nbytes for p in group) >= _BATCH_BYTES:
                yield group
                group = []
        if group:
            yield group

    def _write(self, parcels: list[Parcel]) -> None:
        received = [self._received(parcel, frame) for parcel in parcels for frame in parcel.frames]
        rejections = [rejection for parcel in parcels for rejection in parcel.rejections]
        if self._archive is None:
            first = next((item.frame for item in received if isinstance(item.frame, PackedFrame)), None)
            if first is None:  # nothing good has come yet: there is no grid to lay out, and nowhere to record this
                self._reports.append(WriteReport(None, 0, 0, 0, 0, tuple(rejections), ()))
                return
            self._archive = self._created(first)
        for part in self._by_epoch(self._archive, received):
            self._reports.append(self._archive.write(part, rejections))
            rejections = []
        if rejections:
            self._reports.append(self._archive.write((), rejections))

    def _created(self, first: PackedFrame) -> Archive:
        try:
            return Archive.create(self._domain.archive.url, self._storage, self._spec(first, _year(first.time)))
        except ArchiveExists:
            return Archive.open(self._domain.archive.url, self._storage)

    def _by_epoch(self, archive: Archive, received: list[Received]) -> Iterator[list[Received]]:
        """The frames in one part; where the domain allows it, a new epoch is opened before the first that needs it."""
        if not self._may_open_epoch:
            yield received
            return
        part: list[Received] = []
        for item in received:
            assert isinstance(item.frame, PackedFrame)
            if self._needs_epoch(archive, item.frame):
                if part:
                    yield part
                    part = []
                midnight = item.frame.time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
                calendar = FixedStep(midnight, self._domain.feed.cadence)
                archive.open_epoch(self._spec(item.frame, calendar.time(calendar.nearest(item.frame.time))))
            part.append(item)
        if part:
            yield part

    def _needs_epoch(self, archive: Archive, frame: PackedFrame) -> bool:
        spec = archive.spec
        if frame.time <= spec.start or (frame.grid.equals(spec.grid) and spec.cadence == self._domain.feed.cadence):
            return False
        latest = archive.latest()
        return latest is None or frame.time > latest + spec.cadence / 2

    def _spec(self, frame: PackedFrame, start: datetime) -> ArchiveSpec:
        source, grid, no_echo = self._domain.feed, frame.grid, frame.attrs.get("no_echo")
        return ArchiveSpec(
            domain=self._domain.name,
            feed=source.kind,
            quantity=frame.quantity,
            cadence=source.cadence,
            tolerance=source.tolerance,
            start=start,
            packing=frame.packing,
            y=grid.y,
            x=grid.x,
            grid_mapping=grid.mapping,
            y_attrs=grid.y_attrs,
            x_attrs=grid.x_attrs,
            licence=self._feed.licence,
            no_echo=None if no_echo is None else float(str(no_echo)),
            late_after=max(self._domain.context.max_age, self._feed.latency + source.cadence),
            attrs={name: value for name, value in frame.attrs.items() if name != "no_echo"},
        )

    def _received(self, parcel: Parcel, frame: PackedFrame) -> Received:
        arrived = self._now if self._latency is None else frame.time + self._latency
        stamp = None if self._backfill else arrived
        return Received(frame, parcel.item.key, parcel.item.etag, parcel.content_hash, stamp)

    def _report(self, found: int, skipped: int, missing: int) -> IngestReport:
        slots = [slot for report in self._reports for slot in report.slots]
        return IngestReport(
            found=found,
            skipped=skipped,
            written=sum(report.written for report in self._reports),
            corrected=sum(report.corrected for report in self._reports),
            late=sum(report.late for report in self._reports),
            unchanged=sum(report.unchanged for report in self._reports),
            missing=missing,
            rejected=tuple(item for report in self._reports for item in report.rejected),
            failed=tuple(self._failures),
            snapshot=self._archive.snapshot() if self._archive else None,
            first=min(slots, default=None),
            last=max(slots, default=None),
            seconds=dict(self._seconds),
        )

    def _stage(self, name: str) -> _Stopwatch:
        return _Stopwatch(self._seconds, name)


class _Stopwatch:
    def __init__(self, seconds: Counter[str], name: str) -> None:
        self._totals: dict[str, Any] = seconds
        self._name = name

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> Literal[False]:
        self._totals[self._name] += time.perf_counter() - self._began
        return False


def _year(moment: datetime) -> datetime:
    """Where the first axis starts: early enough for a season's backfill, aligned with every cadence of the day."""
    return datetime(moment.astimezone(UTC).year, 1, 1, tzinfo=UTC)
