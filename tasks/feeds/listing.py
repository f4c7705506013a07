"""What lies under a feed's root, on any fsspec URL: objects of a time window, and the bytes of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from infra.objects import open_filesystem, reaching_store
from tasks.feeds import FeedSource, FrameObject, FrameRejected

Objects = list[FrameObject]


@dataclass(frozen=True)
class StoredObject:
    """One object below a feed's root, whatever it holds.

    Attributes:
        key: Path inside the root.
        size: Bytes.
        etag: The store's entity tag, or size and modification time on a local path.
    """

    key: str
    size: int
    etag: str


@reaching_store()
def stored_objects(source: FeedSource, prefixes: Sequence[str] | None = None) -> list[StoredObject]:
    """Every object under the root, or under the folders `prefixes` of it, by key; none is read.

    A folder that does not exist (yet) holds nothing.

    Raises:
        OSError: the store cannot be reached.
    """
    filesystem, root = open_filesystem(source.url, source.storage)
    filesystem.invalidate_cache()
    found: dict[str, StoredObject] = {}
    for folder in _folders(root, prefixes):
        for path, info in filesystem.find(folder, detail=True).items():
            key = str(path).removeprefix(root).lstrip("/")
            found[key] = StoredObject(key, int(info["size"] or 0), _etag(info))
    return [found[key] for key in sorted(found)]


def list_objects(
    source: FeedSource,
    start: datetime,
    end: datetime,
    time_of: Callable[[str], datetime | None],
    prefixes: Sequence[str] | None = None,
) -> list[FrameObject]:
    """Objects whose nominal time lies in [start, end] (aware, UTC), oldest first, without reading them.

    Args:
        source: Where to look.
        start: First nominal time.
        end: Last nominal time, included.
        time_of: Nominal time of a key (END of the interval); None for a key that is no frame of this feed.
        prefixes: Folders below the root that can hold the window (`day_prefixes`); None searches all of it.
    """
    items = []
    for stored in stored_objects(source, prefixes):
        moment = time_of(stored.key)
        if moment is not None and start <= moment <= end:
            items.append(FrameObject(stored.key, stored.size, stored.etag, moment))
    return sorted(items, key=lambda item: (item.time, item.key))


def read_object(source: FeedSource, item: FrameObject) -> bytes:
    """The bytes of one listed object.

    Raises:
        FrameRejected: oversized above the source's ceiling; truncated where fewer or more bytes come than were
            listed (the object is still being written).
        OSError: it has gone since, or the store cannot be reached; worth another try.
    """
    if item.size > source.max_bytes:
        raise FrameRejected("oversized", f"{item.key} has {item.size} bytes; the ceiling is {source.max_bytes}")
    data = read_key(source, item.key)
    if len(data) != item.size:
        raise FrameRejected("truncated", f"{item.key} was listed with {item.size} bytes and gave {len(data)}")
    return data


@reaching_store()
def read_key(source: FeedSource, key: str) -> bytes:
    """The bytes under `key`, at most the source's ceiling.

    Raises:
        FrameRejected: oversized.
        FileNotFoundError: no such object, or not just now.
        OSError: the store cannot be reached.
    """
    filesystem, root = open_filesystem(source.url, source.storage)
    try:
        with filesystem.open(f"{root}/{key}", "rb") as stream:
            data: bytes = stream.read(source.max_bytes + 1)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"expected {key} under the feed's root; there is none") from error
    if len(data) > source.max_bytes:
        raise FrameRejected("oversized", f"{key} has more than {source.max_bytes} bytes")
    return data


def day_prefixes(start: datetime, end: datetime, pattern: str) -> list[str]:
    """Day folders (`pattern` in strftime form, such as "%Y%m%d") that cover [start, end]."""
    days = range((end.date() - start.date()).days + 1)
    return list(dict.fromkeys((start + timedelta(days=day)).strftime(pattern) for day in days))


def _folders(root: str, prefixes: Sequence[str] | None) -> Iterable[str]:
    return [root] if prefixes is None else [f"{root}/{prefix.strip('/')}" for prefix in prefixes]


def _etag(info: Mapping[str, Any]) -> str:
    for name in ("ETag", "etag", "md5Hash"):
        if info.get(name):
            return str(info[name]).strip('"')
    changed = info.get("mtime") or info.get("created") or info.get("LastModified") or ""
    return f"{info['size']}-{changed}"
