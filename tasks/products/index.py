"""Which products a store holds, and their retention."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from infra.objects import ObjectInfo, ObjectStore
from tasks.products.manifest import MANIFEST
from tasks.products.publishing import read_latest

_FOLDER = re.compile(r"products/([^/]+(?:/what-if/[^/]+)?)/(\d{4}/\d{2}/\d{2}/\d{4})/([^/.]+)")
# A folder without a manifest may be in the making.
_IN_THE_MAKING = timedelta(hours=1)


@dataclass(frozen=True)
class ProductFolder:
    """One product's folder.

    Attributes:
        path: Below the store's root.
        series: Products among which it is superseded: the domain's forecasts, or its what-ifs of one intensity.
        init_time: From its path, to the minute.
        run: Its name.
        complete: Whether it has a manifest.
        modified: Newest write in it (wall time, aware, UTC).
        size: Bytes.
    """

    path: str
    series: str
    init_time: datetime
    run: str
    complete: bool
    modified: datetime
    size: int


def list_products(
    store: ObjectStore, domain: str, start: datetime | None = None, end: datetime | None = None
) -> list[ProductFolder]:
    """Complete forecasts (no what-ifs) of a domain with init_time in [start, end], oldest first."""
    return [
        folder
        for folder in _folders(store, domain, start, end)
        if folder.series == domain
        and folder.complete
        and (start is None or folder.init_time >= start)
        and (end is None or folder.init_time <= end)
    ]


def expire_products(store: ObjectStore, domain: str, *, now: datetime, keep: timedelta) -> list[str]:
    """Delete products written more than `keep` before `now` (wall time), whatever past they forecast; their paths.

    What-ifs too. The product that a `latest.json` names stays whatever its age. A folder loses its manifest first, so
    that what is left of a deletion that dies half-way is no product; the next call removes it.
    """
    gone = []
    for folder in _folders(store, domain, None, None):
        if now - folder.modified <= (keep if folder.complete else max(keep, _IN_THE_MAKING)):
            continue
        latest = read_latest(store, folder.series)  # every time: somebody may point at an old product meanwhile
        if latest is not None and folder.path == latest.path:
            continue
        store.delete(f"{folder.path}/{MANIFEST}")
        store.delete(folder.path)
        store.delete(f"{folder.path}.superseded_by.json")
        gone.append(folder.path)
    return gone


def _folders(store: ObjectStore, domain: str, start: datetime | None, end: datetime | None) -> Iterator[ProductFolder]:
    held: dict[tuple[str, str, str], list[ObjectInfo]] = {}
    for prefix in _prefixes(domain, start, end):
        for item in store.list(prefix):
            match = _FOLDER.match(item.key)
            if match and item.key[match.end() :].startswith("/"):
                held.setdefault((match[2], match[1], match[3]), []).append(item)
    for (moment, series, run), items in sorted(held.items()):
        path = f"products/{series}/{moment}/{run}"
        yield ProductFolder(
            path=path,
            series=series,
            init_time=datetime.strptime(moment, "%Y/%m/%d/%H%M").replace(tzinfo=UTC),
            run=run,
            complete=any(item.key == f"{path}/{MANIFEST}" for item in items),
            modified=max(item.modified for item in items),
            size=sum(item.size for item in items),
        )


def _prefixes(domain: str, start: datetime | None, end: datetime | None) -> list[str]:
    """Folders to list: day by day for a short period, else all of the domain."""
    if start is None or end is None or end - start > timedelta(days=60):
        return [f"products/{domain}/"]
    days = (end.date() - start.date()).days
    return [f"products/{domain}/{start.date() + timedelta(days=day):%Y/%m/%d}/" for day in range(days + 1)]
