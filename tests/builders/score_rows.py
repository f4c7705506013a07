"""Rows of the score table for products of known skill, without any field behind them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from infra.settings import ArchiveSettings, Domain, FeedSettings, ProductSettings, VerificationSettings
from tasks.verification.score_table import SOURCES, ScoreRow, Source

START = datetime(2020, 6, 1, 12, tzinfo=UTC)
CELLS, OBSERVED = 10_000, 1_000


def small_domain(url: str = "products", **verification: object) -> Domain:
    """A five-minute rain domain with two thresholds and two neighbourhoods."""
    rule = {"thresholds": (0.5, 2.0), "neighbourhoods_km": (1.0, 5.0), **verification}
    return Domain(
        name="testland",
        feed=FeedSettings(kind="simulated", url="feed", cadence="5min", tolerance="90s"),
        archive=ArchiveSettings(url="archive"),
        product=ProductSettings(url=url),
        verification=VerificationSettings(**rule),
    )


def score_row(
    source: Source = "product", *, number: int = 0, lead: float = 15.0, hits: int = 500, **other: object
) -> ScoreRow:
    """A row of product `number`, issued every five minutes; as many false alarms as misses, at both thresholds."""
    init = START + number * timedelta(minutes=5)
    observed = int(other.pop("observed", OBSERVED))  # type: ignore[call-overload]
    rest = observed - hits
    values: dict[str, object] = {
        "domain": "testland",
        "run": f"run-{number:03}",
        "product": f"products/testland/2020/06/01/{init:%H%M}/run-{number:03}",
        "init_time": init,
        "lead_minutes": lead,
        "valid_time": init + timedelta(minutes=lead),
        "source": source,
        "rung": "earthformer",
        "model_name": "testland-earthformer",
        "model_version": "3",
        "observation": "ab" * 32,
        "archive_snapshot": "SNAPSHOT",
        "supersedes": "",
        "scored_at": START + timedelta(hours=6),
        "quantity": "rainfall_rate",
        "units": "mm h-1",
        "thresholds": (0.5, 2.0),
        "hits": (hits, hits),
        "misses": (rest, rest),
        "false_alarms": (rest, rest),
        "correct_negatives": (CELLS - observed - rest,) * 2,
        "count": CELLS,
        "error": 12.5,
        "absolute": 100.0,
        "squared": 400.0,
        "neighbourhoods_km": (1.0, 5.0),
        "window_cells": (1, 5),
        "fraction_error": ((10.0, 5.0), (100.0, 50.0)),
        "fraction_reference": ((20.0, 20.0), (200.0, 200.0)),
    }
    return ScoreRow(**(values | other))  # type: ignore[arg-type]


def scored_products(count: int, hits: dict[Source, int], **other: object) -> list[ScoreRow]:
    """Rows of `count` products at leads of 5, 15 and 30 minutes; the skill wobbles a little from product to product."""
    return [
        score_row(source, number=number, lead=lead, hits=hits[source] + number * 7 % 5, **other)
        for number in range(count)
        for lead in (5.0, 15.0, 30.0)
        for source in SOURCES
    ]
