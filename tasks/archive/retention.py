"""What is known about an archive as a whole, and how long its history is kept."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from infra.objects import ObjectStore
from tasks.archive.epochs import Status

if TYPE_CHECKING:
    from tasks.archive.archive import Archive

# Garbage collection deletes the chunks of sessions older than its horizon, and their later commit is accepted: the
# loss shows only when the slot is read. The horizon must exceed the longest session by far.
SHORTEST = timedelta(hours=24)


@dataclass(frozen=True)
class SnapshotInfo:
    """One commit.

    Attributes:
        id: Snapshot id.
        written_at: When it was committed (aware, UTC).
        message: One line.
        tags: Names that keep it.
    """

    id: str
    written_at: datetime
    message: str
    tags: tuple[str, ...]


@dataclass(frozen=True)
class ArchiveInfo:
    """An archive at a glance.

    Attributes:
        domain: Name of the domain.
        quantity: Name of the field.
        epochs: Number of epochs.
        first: Oldest slot with a frame; None while there is none.
        last: Newest slot with a frame.
        counts: Slots in [first, last] by status.
        gaps: Runs of slots without a frame in [first, last], as (first, last) slot times.
        bytes: Size of the repository, history included.
        snapshots: Number of snapshots in main's history.
        snapshot: Id of the newest.
    """

    domain: str
    quantity: str
    epochs: int
    first: datetime | None
    last: datetime | None
    counts: dict[str, int]
    gaps: tuple[tuple[datetime, datetime], ...]
    bytes: int
    snapshots: int
    snapshot: str


@dataclass(frozen=True)
class Expiry:
    """What retention removed.

    Attributes:
        snapshots: Snapshots expired from the history.
        bytes: Bytes of objects deleted.
    """

    snapshots: int
    bytes: int


def describe(archive: Archive) -> ArchiveInfo:
    """Period, counts per status, gaps, size and history of an archive."""
    first, last = archive.earliest(), archive.latest()
    counts: dict[str, int] = {}
    gaps: tuple[tuple[datetime, datetime], ...] = ()
    if first is not None and last is not None:
        status, _ = archive.statuses(first, last)
        values, numbers = np.unique(status, return_counts=True)
        counts = {Status(int(v)).name.lower(): int(n) for v, n in zip(values, numbers, strict=True)}
        gaps = tuple(archive.gaps(first, last))
    size = sum(item.size for item in ObjectStore(archive.url, archive.storage).list())
    spec = archive.spec
    number = sum(1 for _ in archive.repository.ancestry(branch="main"))
    return ArchiveInfo(
        spec.domain, spec.quantity, len(archive.epochs()), first, last, counts, gaps, size, number, archive.snapshot()
    )


def history(archive: Archive, limit: int | None = None) -> list[SnapshotInfo]:
    """Commits of main, newest first, at most `limit`."""
    names: dict[str, list[str]] = {}
    for tag in sorted(archive.repository.list_tags()):
        names.setdefault(archive.repository.lookup_tag(tag), []).append(tag)
    found = []
    for number, item in enumerate(archive.repository.ancestry(branch="main")):
        if limit is not None and number >= limit:
            break
        found.append(SnapshotInfo(item.id, item.written_at, item.message, tuple(names.get(item.id, ()))))
    return found


def expire(archive: Archive, now: datetime, keep: timedelta) -> Expiry:
    """Forget untagged snapshots older than `keep` and delete what only they needed.

    Args:
        archive: Whose history.
        now: Domain time; a replayed past therefore expires nothing younger.
        keep: Age of what stays; at least 24 h.

    Raises:
        ValueError: a horizon that could reach the chunks of a session still open.
    """
    cut = now - keep
    wall = datetime.now(UTC)  # objects are dated by the wall clock, whatever the domain's clock shows
    if keep < SHORTEST or cut > wall - SHORTEST:
        raise ValueError(f"expected to keep at least {SHORTEST} of history; got a horizon of {cut} at {wall}")
    expired = archive.repository.expire_snapshots(older_than=cut)
    removed = archive.repository.garbage_collect(delete_object_older_than=cut)
    return Expiry(len(expired), int(removed.bytes_deleted))
