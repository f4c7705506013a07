"""Which bytes each slot of an archive holds: what tells one observation from its correction, without reading fields."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from infra.repository import session_at
from tasks.archive.archive import Archive
from tasks.archive.epochs import FILLED, overlapping
from tasks.archive.slot_table import SlotTable


def fingerprints(archive: Archive, start: datetime, end: datetime, *, as_of: str | None = None) -> dict[datetime, str]:
    """SHA-256 (hex) of the source bytes of every slot in [start, end] (aware) that holds a frame, by slot time.

    Args:
        archive: Where to look.
        start: First slot time.
        end: Last slot time.
        as_of: Snapshot; None = the newest.

    Raises:
        SnapshotMissing: no such snapshot (any more).
    """
    session = session_at(archive.repository, as_of)
    found: dict[datetime, str] = {}
    for epoch, first, stop in overlapping(archive.epochs(session.snapshot_id), start, end):
        rows = SlotTable(session.store, epoch).columns(["status", "content_hash"], first, stop)
        filled = np.flatnonzero(np.isin(rows["status"], FILLED))
        times = (epoch.spec.slots.time(first + int(slot)) for slot in filled)
        found |= {time: rows["content_hash"][slot].tobytes().hex() for time, slot in zip(times, filled, strict=True)}
    return found
