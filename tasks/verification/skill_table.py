"""Skill over many products: sums added per source and lead, then ratios, over all windows and over wet ones.

Only (product, lead) pairs scored for the issued product and for both baselines enter, so that the columns of the table
describe the same windows and cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np

from infra.objects import ObjectStore
from infra.settings import Domain
from tasks.verification.fractions import Fractions
from tasks.verification.score_table import SOURCES, ScoreRow, Source, read_rows
from tasks.verification.scores import Contingency, Errors, Sums, WindowCounts, ascending, is_wet

Windows = Literal["all", "wet"]


@dataclass(frozen=True)
class Statistics:
    """Everything summed about one source: per lead, and per threshold and neighbourhood where that applies."""

    contingency: Contingency
    errors: Errors
    fractions: Fractions

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.contingency + other.contingency, self.errors + other.errors, self.fractions + other.fractions
        )


@dataclass(frozen=True)
class Issue:
    """Who issued one scored product.

    Attributes:
        run: The product's run.
        init_time: Aware, UTC.
        rung: Of the ladder.
        model_name: Empty for a baseline.
        model_version: Empty for a baseline.
    """

    run: str
    init_time: datetime
    rung: str
    model_name: str
    model_version: str


@dataclass(frozen=True)
class SkillTable:
    """Skill of the issued products beside persistence and extrapolation.

    Attributes:
        domain: Name.
        quantity: CF-style name.
        units: Of thresholds and errors.
        issues: One per product, by init time.
        left_out: (product, lead) pairs without one of the sources, or scored with other thresholds or neighbourhoods.
        lead_minutes: Ascending.
        sums: Per windows ("all", "wet") and source.
        windows: Per source, counts of each product apart; a lead not yet observed counts nothing.
    """

    domain: str
    quantity: str
    units: str
    issues: tuple[Issue, ...]
    left_out: int
    lead_minutes: tuple[float, ...]
    sums: Mapping[Windows, Mapping[Source, Statistics]]
    windows: Mapping[Source, WindowCounts]

    @property
    def products(self) -> int:
        """Products that entered."""
        return len(self.issues)

    @property
    def wet_products(self) -> int:
        """Of these, wet ones."""
        return int(self.windows["product"].wet.sum()) if self.windows else 0

    def records(self, windows: Windows = "all") -> list[dict[str, Any]]:
        """One line per lead and threshold with the CSI of every source side by side; None = no event to judge by."""
        lines = []
        for row, minutes in enumerate(self.lead_minutes):
            for column, threshold in enumerate(self._thresholds(windows)):
                scores = {source: self.sums[windows][source].contingency.csi[row, column] for source in SOURCES}
                known: dict[str, Any] = {
                    source: None if np.isnan(csi) else round(float(csi), 4) for source, csi in scores.items()
                }
                line: dict[str, Any] = {"lead_minutes": minutes, "threshold": threshold}
                lines.append(line | known)
        return lines

    def metrics(self) -> dict[str, float]:
        """Every score by name, `wet/product/csi_1mm/lead_30min` style; scores without evidence are absent."""
        named: dict[str, float] = {}
        for windows, sources in self.sums.items():
            for source, statistics in sources.items():
                for name, by_lead in _curves(statistics, self.units):
                    for minutes, value in zip(self.lead_minutes, by_lead, strict=True):
                        if np.isfinite(value):
                            named[f"{windows}/{source}/{name}/lead_{minutes:g}min"] = float(value)
        return named

    def _thresholds(self, windows: Windows) -> tuple[float, ...]:
        return self.sums[windows]["product"].contingency.thresholds if self.sums else ()


def _curves(statistics: Statistics, units: str) -> Iterable[tuple[str, Sums]]:
    """Name and values by lead of every score."""
    unit = {"mm h-1": "mm", "dBZ": "dbz", "kg m-2": "kgm2"}.get(units, "")
    table, errors, fractions = statistics.contingency, statistics.errors, statistics.fractions
    for column, threshold in enumerate(table.thresholds):
        for score in ("csi", "pod", "far", "bias"):
            yield f"{score}_{threshold:g}{unit}", getattr(table, score)[:, column]
        for row, width in enumerate(fractions.neighbourhoods_km):
            yield f"fss_{threshold:g}{unit}_{width:g}km", fractions.fss[:, row, column]
    yield "mse", errors.mse
    yield "mae", errors.mae
    yield "mean_error", errors.mean_error


def summarise(store: ObjectStore, domain: Domain, start: datetime, end: datetime) -> SkillTable:
    """Skill of all products of `domain` with init time in [start, end] (aware), as far as they are scored."""
    return tabulate(domain, read_rows(store, domain.name, start, end))


def tabulate(domain: Domain, rows: Sequence[ScoreRow]) -> SkillTable:
    """Skill of the products behind `rows`; empty sums where no lead of any product has all three sources."""
    rule = domain.verification
    wanted = ascending(rule.thresholds), tuple(float(km) for km in rule.neighbourhoods_km)
    pairs: dict[tuple[datetime, str], dict[float, dict[Source, ScoreRow]]] = {}
    for row in rows:
        if (row.thresholds, row.neighbourhoods_km) == wanted:
            pairs.setdefault((row.init_time, row.run), {}).setdefault(row.lead_minutes, {})[row.source] = row
    products = {key: {lead: it for lead, it in pairs[key].items() if len(it) == len(SOURCES)} for key in sorted(pairs)}
    products = {key: leads for key, leads in products.items() if leads}
    told = len({(row.init_time, row.run, row.lead_minutes) for row in rows})
    left_out = told - sum(len(leads) for leads in products.values())
    if not products:
        return SkillTable(domain.name, domain.feed.quantity, "", (), left_out, (), {}, {})
    lead_minutes = tuple(sorted({lead for leads in products.values() for lead in leads}))
    return _summed(domain.name, list(products.values()), lead_minutes, left_out)


def _summed(
    name: str, products: Sequence[Mapping[float, Mapping[Source, ScoreRow]]], leads: tuple[float, ...], left_out: int
) -> SkillTable:
    firsts = [next(iter(product.values()))["product"] for product in products]
    issues = tuple(Issue(it.run, it.init_time, it.rung, it.model_name, it.model_version) for it in firsts)
    empty = _zero_like(firsts[0], len(leads))
    by_source = {
        source: [_product_statistics(product, source, leads, empty) for product in products] for source in SOURCES
    }
    wet = np.array([is_wet(statistics.contingency) for statistics in by_source["product"]], dtype=bool)
    chosen: dict[Windows, list[int]] = {"all": list(range(len(products))), "wet": np.flatnonzero(wet).tolist()}
    sums = {
        windows: {source: _total([parts[number] for number in numbers], empty) for source, parts in by_source.items()}
        for windows, numbers in chosen.items()
    }
    windows = {source: _apart(parts, issues, leads, wet) for source, parts in by_source.items()}
    return SkillTable(name, firsts[0].quantity, firsts[0].units, issues, left_out, leads, sums, windows)


def _total(parts: Sequence[Statistics], empty: Statistics) -> Statistics:
    total = empty
    for part in parts:
        total = total + part
    return total


def _apart(
    parts: Sequence[Statistics], issues: Sequence[Issue], leads: tuple[float, ...], wet: np.ndarray[Any, Any]
) -> WindowCounts:
    tables = [part.contingency for part in parts]
    return WindowCounts(
        np.stack([table.hits for table in tables]),
        np.stack([table.misses for table in tables]),
        np.stack([table.false_alarms for table in tables]),
        tables[0].thresholds,
        leads,
        np.array([issue.init_time.replace(tzinfo=None) for issue in issues], "datetime64[ns]"),
        np.array([issue.run for issue in issues], dtype=np.str_),
        wet,
    )


def _zero_like(row: ScoreRow, leads: int) -> Statistics:
    shape, windows = (leads, len(row.thresholds)), (leads, len(row.neighbourhoods_km), len(row.thresholds))
    none = np.zeros(shape, np.int64)
    nothing, width = np.zeros(leads), (row.neighbourhoods_km, row.window_cells, row.thresholds)
    return Statistics(
        Contingency(none, none, none, none, row.thresholds),
        Errors(np.zeros(leads, np.int64), nothing, nothing, nothing),
        Fractions(np.zeros(windows), np.zeros(windows), *width),
    )


def _product_statistics(
    product: Mapping[float, Mapping[Source, ScoreRow]], source: Source, leads: tuple[float, ...], empty: Statistics
) -> Statistics:
    """The rows of one source of one product laid out on all leads; a lead without a row holds zeros."""
    places = [leads.index(lead) for lead in product]
    rows = [sources[source] for sources in product.values()]

    def lay(name: str, zeros: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        out = zeros.copy()
        out[places] = [getattr(row, name) for row in rows]
        return out

    table, errors, fractions = empty.contingency, empty.errors, empty.fractions
    counted = ("hits", "misses", "false_alarms", "correct_negatives")
    hits, misses, false_alarms, correct_negatives = (lay(name, table.hits) for name in counted)
    return Statistics(
        Contingency(hits, misses, false_alarms, correct_negatives, table.thresholds),
        Errors(lay("count", errors.count), *(lay(name, errors.error) for name in ("error", "absolute", "squared"))),
        replace(
            fractions,
            error=lay("fraction_error", fractions.error),
            reference=lay("fraction_reference", fractions.reference),
        ),
    )
