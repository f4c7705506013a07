"""The table of scores in the object store: one row per product, source and lead, holding sums that add up.

`scores/<domain>/<YYYY>/<MM>/<DD>/<HHMM>-<run>.parquet` (day and time of the product's init time) holds all rows of one
product: any Parquet reader opens the folder as one table, and unnesting `thresholds` and the counts gives a long one.
A row is known by (run, source, lead) and says which observation it was scored on; a row for another observation of the
same lead supersedes it. Writing the same rows again writes nothing.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from infra.objects import ObjectStore

Source = Literal["product", "persistence", "extrapolation"]
SOURCES: tuple[Source, ...] = ("product", "persistence", "extrapolation")

_READERS = 8
_ATTEMPTS = 8


@dataclass(frozen=True)
class ScoreRow:
    """Sums of one source at one lead of one product.

    Attributes:
        domain: Name.
        run: The product's run.
        product: The product's path in the store.
        init_time: forecast_reference_time (aware, UTC).
        lead_minutes: forecast_period.
        valid_time: Slot of the observation.
        source: The issued product, or a baseline from the same context.
        rung: What issued the product.
        model_name: Registered model behind the rung; empty for a baseline.
        model_version: Its version.
        observation: SHA-256 (hex) of the observation's source bytes.
        archive_snapshot: Snapshot that the observation was read from.
        supersedes: Observation hash of the row that this one replaced; empty for a first scoring.
        scored_at: Wall time (aware, UTC); not part of what makes two rows equal in content.
        quantity: CF-style name of what was scored.
        units: Of thresholds and errors.
        thresholds: Ascending, units of the quantity; one entry of each count per threshold.
        hits: Cells.
        misses: Cells.
        false_alarms: Cells.
        correct_negatives: Cells.
        count: Cells compared: forecast by every source, and observed.
        error: Sum of forecast - observed.
        absolute: Sum of absolute errors.
        squared: Sum of squared errors.
        neighbourhoods_km: Window widths of the fractions skill score [km].
        window_cells: The same in cells.
        fraction_error: Per neighbourhood and threshold, see `tasks.verification.fractions.Fractions.error`.
        fraction_reference: Likewise its worst case.
    """

    domain: str
    run: str
    product: str
    init_time: datetime
    lead_minutes: float
    valid_time: datetime
    source: Source
    rung: str
    model_name: str
    model_version: str
    observation: str
    archive_snapshot: str
    supersedes: str
    scored_at: datetime
    quantity: str
    units: str
    thresholds: tuple[float, ...]
    hits: tuple[int, ...]
    misses: tuple[int, ...]
    false_alarms: tuple[int, ...]
    correct_negatives: tuple[int, ...]
    count: int
    error: float
    absolute: float
    squared: float
    neighbourhoods_km: tuple[float, ...]
    window_cells: tuple[int, ...]
    fraction_error: tuple[tuple[float, ...], ...]
    fraction_reference: tuple[tuple[float, ...], ...]

    @property
    def place(self) -> tuple[Source, float]:
        """What the row is known by within its product."""
        return self.source, self.lead_minutes


def table_key(domain: str, init_time: datetime, run: str) -> str:
    """Where the rows of one product are."""
    return f"scores/{domain}/{init_time.astimezone(UTC):%Y/%m/%d/%H%M}-{run}.parquet"


def write_rows(store: ObjectStore, rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Merge rows into the tables of their products; returns those that were new or superseded another.

    Two verifications at once lose nothing: the table is swapped only if nobody else swapped it since it was read.

    Raises:
        RuntimeError: the table of a product kept changing under us.
    """
    tables: dict[str, list[ScoreRow]] = {}
    for row in rows:
        tables.setdefault(table_key(row.domain, row.init_time, row.run), []).append(row)
    return [row for key, new in tables.items() for row in _merge_into(store, key, new)]


def _merge_into(store: ObjectStore, key: str, new: Sequence[ScoreRow]) -> list[ScoreRow]:
    for _ in range(_ATTEMPTS):
        tag = store.etag(key)
        known = {row.place: row for row in (_decode(store.read(key)) if tag else [])}
        changed = [_superseding(row, known.get(row.place)) for row in new if _differs(row, known.get(row.place))]
        if not changed:
            return []
        merged = known | {row.place: row for row in changed}
        if store.replace(key, _encode([merged[place] for place in sorted(merged)]), if_match=tag):
            return changed
    raise RuntimeError(f"expected to swap the score table {key} within {_ATTEMPTS} attempts; it kept changing")


def _differs(row: ScoreRow, known: ScoreRow | None) -> bool:
    """Whether a row says anything that the stored one does not: other statistics or another observation."""
    if known is None:
        return True
    passing = {"scored_at", "supersedes", "archive_snapshot"}
    return any(getattr(row, it.name) != getattr(known, it.name) for it in fields(ScoreRow) if it.name not in passing)


def _superseding(row: ScoreRow, known: ScoreRow | None) -> ScoreRow:
    return replace(row, supersedes=known.observation if known else "")


def scored_on(
    store: ObjectStore, key: str, thresholds: tuple[float, ...], neighbourhoods_km: tuple[float, ...]
) -> dict[datetime, str]:
    """Observation by valid time of a table's product rows with these thresholds and neighbourhoods; a few columns."""
    import pyarrow.parquet as pq

    columns = ["source", "valid_time", "observation", "thresholds", "neighbourhoods_km"]
    try:
        rows = pq.read_table(io.BytesIO(store.read(key)), columns=columns).to_pylist()
    except FileNotFoundError:
        return {}
    rule = ("product", thresholds, neighbourhoods_km)
    return {
        row["valid_time"].astimezone(UTC): row["observation"]
        for row in rows
        if (row["source"], tuple(row["thresholds"]), tuple(row["neighbourhoods_km"])) == rule
    }


def read_rows(store: ObjectStore, domain: str, start: datetime, end: datetime) -> list[ScoreRow]:
    """Rows of all products with init time in [start, end] (aware), by init time, source and lead."""
    day, last = (moment.astimezone(UTC).date() for moment in (start, end))
    keys: list[str] = []
    while day <= last:
        keys += [item.key for item in store.list(f"scores/{domain}/{day:%Y/%m/%d}") if item.key.endswith(".parquet")]
        day += timedelta(days=1)
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda key: _decode(store.read(key)), keys))
    rows = (row for table in tables for row in table if start <= row.init_time <= end)
    return sorted(rows, key=lambda row: (row.init_time, row.run, row.source, row.lead_minutes))


def _schema() -> Any:
    import pyarrow as pa

    moment, numbers, sums = pa.timestamp("us", tz="UTC"), pa.list_(pa.int64()), pa.list_(pa.float64())
    special: dict[str, Any] = {
        "init_time": moment,
        "valid_time": moment,
        "scored_at": moment,
        "thresholds": sums,
        "neighbourhoods_km": sums,
        "window_cells": numbers,
        "fraction_error": pa.list_(sums),
        "fraction_reference": pa.list_(sums),
        "count": pa.int64(),
    }
    special |= dict.fromkeys(("hits", "misses", "false_alarms", "correct_negatives"), numbers)
    special |= dict.fromkeys(("lead_minutes", "error", "absolute", "squared"), pa.float64())
    return pa.schema([(it.name, special.get(it.name, pa.string())) for it in fields(ScoreRow)])


def _encode(rows: Iterable[ScoreRow]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema=_schema()), buffer, compression="zstd")
    return buffer.getvalue()


def _decode(data: bytes) -> list[ScoreRow]:
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data), schema=_schema())
    return [ScoreRow(**{name: _frozen(value) for name, value in row.items()}) for row in table.to_pylist()]


def _frozen(value: Any) -> Any:
    """Lists as tuples and times in UTC, so that a row read equals the row written."""
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return value.astimezone(UTC) if isinstance(value, datetime) else value
