"""Which bytes each slot of an archive holds: what tells one observation from its correction, without reading fields."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from infra.repository import session_at
from tasks.archive import Archive
from tasks.epochs import FILLED, overlapping
from tasks.slot_table import SlotTable


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
        table = SlotTable(session.store, epoch)
        filled = np.flatnonzero(np.isin(table.read("status", first, stop), FILLED))
        hashes = table.read("content_hash", first, stop)
        found |= {epoch.spec.slots.time(first + int(slot)): hashes[slot].tobytes().hex() for slot in filled}
    return found
