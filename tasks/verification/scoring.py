"""Score issued products against what was then observed, beside persistence and extrapolation from the same context.

The baselines are made anew from the archive snapshot and the moment that the product quotes, through the same ladder
step as the product itself, and all three are scored on the cells where each of them forecast and the radar observed. A
product is scored once per observation of each lead: leads not yet observed join later, a corrected one supersedes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from infra.objects import ObjectStore
from infra.repository import SnapshotMissing
from infra.settings import Domain, VerificationSettings
from tasks.archive.epochs import EpochMismatch
from tasks.archive.fingerprints import fingerprints
from tasks.archive.slots import as_datetime
from tasks.forecasting.context import Context, build_context
from tasks.forecasting.ladder import NoForecast, baseline_rung, run_ladder
from tasks.grid import cell_size_m
from tasks.products.index import ProductFolder, list_products
from tasks.products.issued import Issued, read_issued
from tasks.verification.fractions import fractions
from tasks.verification.score_table import ScoreRow, Source, scored_on, table_key, write_rows
from tasks.verification.scores import contingency, errors
from tasks.verification.skill_table import Statistics

if TYPE_CHECKING:
    from tasks.archive.archive import Archive

Fields = NDArray[np.float32]

_BASELINES: tuple[Source, ...] = ("persistence", "extrapolation")
_BASELINE_LIMIT = timedelta(minutes=10)
_READERS = 8


class NotScorable(ValueError):
    """A product that cannot be scored fairly: its context is gone, or its grid is not the archive's."""


@dataclass(frozen=True)
class VerificationReport:
    """What a verification did.

    Attributes:
        scored: Products with at least one new or superseded row.
        rows: Rows written.
        superseded: Of those, rows that replaced one of another observation.
        skipped: Path and reason of products that could not be scored.
    """

    scored: int
    rows: int
    superseded: int
    skipped: tuple[tuple[str, str], ...]


def verify_products(
    store: ObjectStore,
    archive: Archive,
    domain: Domain,
    now: datetime,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> VerificationReport:
    """Score every product that has something new to be scored on, and write the rows; repeating it changes nothing."""
    scored, written, skipped = 0, list[ScoreRow](), list[tuple[str, str]]()
    for path in list_unscored(store, archive, domain, now, since=since, until=until):
        try:
            changed = write_rows(store, score_product(store, path, archive, domain))
        except (NotScorable, FileNotFoundError) as error:  # the latter: its retention ended meanwhile
            skipped.append((path, str(error)))
            continue
        scored += bool(changed)
        written += changed
    return VerificationReport(scored, len(written), sum(bool(row.supersedes) for row in written), tuple(skipped))


def list_unscored(
    store: ObjectStore,
    archive: Archive,
    domain: Domain,
    now: datetime,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[str]:
    """Paths of products with a lead that was observed and not yet scored, or was scored on another observation.

    Args:
        store: Products and scores.
        archive: Observations.
        domain: Its lead times and cadence.
        now: The domain's clock (aware); younger valid times are not looked at.
        since: Oldest init time; default: the products' retention before `now`, so that no outage outlives its gap.
        until: Newest init time; default: `now`.
    """
    cadence, slots = domain.feed.cadence, archive.spec.slots
    start, end = since or now - domain.product.retention, min(now, until or now)
    observed = fingerprints(archive, start, min(now, end + (domain.forecast.lead_times + 1) * cadence))

    def unscored(product: ProductFolder) -> bool:
        # The folder tells the minute, the slot the second.
        init_time = slots.time(slots.nearest(product.init_time + timedelta(seconds=29)))
        leads = (init_time + step * cadence for step in range(1, domain.forecast.lead_times + 1))
        there = [time for time in leads if time in observed]
        if not there:
            return False
        known = _scored_on(store, domain, init_time, product.run)
        return any(known.get(time) != observed[time] for time in there)

    products = list_products(store, domain.name, start, end)
    with ThreadPoolExecutor(_READERS) as pool:
        return [product.path for product, new in zip(products, pool.map(unscored, products), strict=True) if new]


def score_product(store: ObjectStore, path: str, archive: Archive, domain: Domain) -> list[ScoreRow]:
    """Rows of the leads of one product that were observed and are not scored on that observation yet.

    Args:
        store: Where the product is.
        path: Its path.
        archive: Observations, and the context it was made from.
        domain: Its thresholds and neighbourhoods.

    Raises:
        NotScorable: the context's snapshot has expired, or the product's grid is not the archive's.
    """
    issued = read_issued(store, path)
    snapshot = archive.snapshot()
    times = issued.valid_times
    observed = fingerprints(archive, times[0], times[-1], as_of=snapshot)
    known = _scored_on(store, domain, issued.report.init_time, issued.report.run)
    fresh = [time for time in times if time in observed and known.get(time) != observed[time]]
    if not fresh:
        return []
    leads = [times.index(time) for time in fresh]
    sources: dict[Source, Fields] = {"product": issued.forecast, **_baselines(archive, domain, issued, leads[-1] + 1)}
    truth = _observations(archive, issued, fresh, snapshot)
    chosen = {source: field[leads] for source, field in sources.items()}
    statistics = score_sources(chosen, truth.values, domain.verification, cell_size_m(truth))
    hashes = [observed[time] for time in fresh]
    return [
        row
        for source, sums in statistics.items()
        for row in _rows(domain, issued, source, sums, fresh, hashes, snapshot)
    ]


def score_sources(
    forecasts: Mapping[Source, Fields], observed: Fields, rule: VerificationSettings, cell_m: float
) -> dict[Source, Statistics]:
    """Statistics of several forecasts of the same leads on the cells that all of them forecast.

    Args:
        forecasts: (lead, y, x) in physical units by source; NaN = not forecast.
        observed: (lead, y, x), same units; NaN = not observed.
        rule: Thresholds and neighbourhoods.
        cell_m: Cell size [m].
    """
    common = np.isfinite(observed)
    for forecast in forecasts.values():
        common &= np.isfinite(forecast)
    truth = np.where(common, observed, np.float32(np.nan))
    return {
        source: Statistics(
            contingency(forecast, truth, rule.thresholds),
            errors(forecast, truth),
            fractions(forecast, truth, rule.thresholds, rule.neighbourhoods_km, cell_m),
        )
        for source, forecast in forecasts.items()
    }


def _baselines(archive: Archive, domain: Domain, issued: Issued, leads: int) -> dict[Source, Fields]:
    """Persistence and extrapolation (lead, y, x) from the product's own context; one that cannot answer is absent."""
    context = _context(archive, domain, issued)
    asked = domain.forecast.model_copy(update={"lead_times": leads})
    same = domain.model_copy(update={"forecast": asked})
    made: dict[Source, Fields] = {}
    for source in _BASELINES:
        try:
            rungs = [baseline_rung(source, context, same)]
            forecast = run_ladder(context, rungs, same, deadline=_BASELINE_LIMIT, seed=0)
        except NoForecast:
            continue
        made[source] = forecast.dataset[context.quantity].isel(member=0).values
    return made


def _context(archive: Archive, domain: Domain, issued: Issued) -> Context:
    report = issued.report
    try:
        context = build_context(archive, domain, report.at, as_of=report.archive_snapshot, latency=issued.latency)
    except SnapshotMissing as error:
        raise NotScorable(f"expected the context's snapshot {report.archive_snapshot}; {error}") from error
    used = tuple(slot.time for slot in context.slots)
    if used != tuple(frame.time for frame in report.frames):
        raise NotScorable(f"expected the context of {len(report.frames)} frames to {report.init_time}; got {len(used)}")
    return context


def _observations(archive: Archive, issued: Issued, times: Sequence[datetime], snapshot: str) -> xr.DataArray:
    try:
        stored = archive.read(times[0], times[-1], as_of=snapshot)
    except EpochMismatch as error:
        raise NotScorable(f"expected observations of one grid: {error}") from error
    slots = [as_datetime(time) for time in stored["time"].values]
    field = stored[issued.report.quantity].isel(time=[slots.index(time) for time in times])
    if not (np.array_equal(field["y"], issued.y) and np.array_equal(field["x"], issued.x)):
        raise NotScorable(f"expected the archive's grid {field.shape[1:]}; the product's differs: {issued.report.path}")
    return field


def _scored_on(store: ObjectStore, domain: Domain, init_time: datetime, run: str) -> dict[datetime, str]:
    """Observation hash by valid time of the leads scored with the thresholds and neighbourhoods now in force."""
    rule = domain.verification
    return scored_on(store, table_key(domain.name, init_time, run), rule.thresholds, rule.neighbourhoods_km)


def _rows(
    domain: Domain,
    issued: Issued,
    source: Source,
    sums: Statistics,
    times: Sequence[datetime],
    hashes: Sequence[str],
    snapshot: str,
) -> list[ScoreRow]:
    report, table, deviations, windows = issued.report, sums.contingency, sums.errors, sums.fractions
    now = datetime.now(UTC)
    return [
        ScoreRow(
            domain=domain.name,
            run=report.run,
            product=report.path,
            init_time=report.init_time,
            lead_minutes=(time - report.init_time).total_seconds() / 60,
            valid_time=time,
            source=source,
            rung=report.rung,
            model_name=report.model.name,
            model_version=report.model.version,
            observation=hashes[lead],
            archive_snapshot=snapshot,
            supersedes="",
            scored_at=now,
            quantity=report.quantity,
            units=report.units,
            thresholds=table.thresholds,
            hits=tuple(table.hits[lead].tolist()),
            misses=tuple(table.misses[lead].tolist()),
            false_alarms=tuple(table.false_alarms[lead].tolist()),
            correct_negatives=tuple(table.correct_negatives[lead].tolist()),
            count=int(deviations.count[lead]),
            error=float(deviations.error[lead]),
            absolute=float(deviations.absolute[lead]),
            squared=float(deviations.squared[lead]),
            neighbourhoods_km=windows.neighbourhoods_km,
            window_cells=windows.cells,
            fraction_error=tuple(map(tuple, windows.error[lead].tolist())),
            fraction_reference=tuple(map(tuple, windows.reference[lead].tolist())),
        )
        for lead, time in enumerate(times)
    ]
