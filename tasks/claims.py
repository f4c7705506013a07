"""Turns that several runs compete for: what may be done once in a while is done by whoever claims it first."""

from __future__ import annotations

from datetime import datetime, timedelta

from infra.objects import ObjectStore


def claim(store: ObjectStore, key: str, now: datetime, every: timedelta) -> bool:
    """Whether it is the caller's turn: nobody has claimed `key` within `every` before `now`.

    A turn is taken before the work. Whoever dies in between loses it, and it comes round again after `every`.

    Args:
        store: Where the small object that remembers the last turn is.
        key: Of that object.
        now: Wall time (aware): turns of a replayed past are counted as they are taken.
        every: Least time between two turns.
    """
    tag = store.etag(key)
    if tag is None:
        return store.put_if_absent(key, now.isoformat().encode())
    if now - datetime.fromisoformat(store.read(key).decode()) < every:
        return False
    return store.replace(key, now.isoformat().encode(), tag)
