"""An issued product as verification reads it: how it came about, and its deterministic forecast."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from infra.objects import ObjectStore
from tasks.archive.slots import as_datetime
from tasks.products.encoding import open_product
from tasks.products.report import Report, read_report


@dataclass(frozen=True)
class Issued:
    """One product, opened to be scored.

    Attributes:
        report: How it came about.
        forecast: (lead, y, x) float32 in the quantity's units, the mean of the members; NaN = not forecast.
        valid_times: Aware, UTC, one per lead.
        y: Cell centres (y,) in the CRS's units.
        x: Cell centres (x,) in the CRS's units.
    """

    report: Report
    forecast: NDArray[np.float32]
    valid_times: tuple[datetime, ...]
    y: NDArray[np.float64]
    x: NDArray[np.float64]

    @property
    def latency(self) -> timedelta:
        """Delay assumed where receipt was not recorded."""
        return timedelta(seconds=self.report.latency_s)


def read_issued(store: ObjectStore, path: str) -> Issued:
    """The product in folder `path`. Raises FileNotFoundError."""
    report = read_report(store, path)
    product = open_product(store, path)
    mean = product[f"{report.quantity}_mean"].load()
    times = tuple(as_datetime(time) for time in product["time"].values)
    return Issued(report, mean.values, times, product["y"].values, product["x"].values)
