"""Scores of an ENSO forecast: the Nino3.4 index from sea surface temperature and its correlation by lead month."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.verification.scores import Sums

# Nino3.4 on the 24 x 48 grid of the ICAR-ENSO benchmark.
ROWS, COLUMNS = slice(10, 13), slice(19, 30)
MONTHS = 3
# Weight per lead month, the steps of the TianChi challenge: from month 1, 5, 12 and 19.
_FIRST_MONTH, _STEP = (1, 5, 12, 19), (1.5, 2.0, 3.0, 4.0)
EPS = 1e-6

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class EnsoSkill:
    """Skill of an index forecast over many starts.

    Attributes:
        correlation: Pearson correlation per lead month, float64 (lead,).
        rmse: Root mean squared error per lead month, index units (degC).
    """

    correlation: Sums
    rmse: Sums

    @property
    def c_nino_m(self) -> float:
        """Mean correlation over leads (C-Nino3.4-M)."""
        return float(self.correlation.mean())

    @property
    def c_nino_wm(self) -> float:
        """Correlation weighted by lead (C-Nino3.4-WM)."""
        return float((lead_weights(len(self.correlation)) * self.correlation).mean())

    @property
    def rmse_mean(self) -> float:
        """Mean over leads of the root mean squared error [degC]."""
        return float(self.rmse.mean())


def nino_index(sst: Array) -> Sums:
    """Three-month running mean of the Nino3.4 box.

    Args:
        sst: Anomalies [degC] (sample, month, lat, lon), the whole grid or cut to the 3 x 11 box; NaN propagates.

    Returns:
        float64 (sample, month - 2).
    """
    box = sst if sst.shape[-2:] == (3, 11) else sst[..., ROWS, COLUMNS]
    monthly = box.astype(np.float64).mean(axis=(-2, -1))
    months: Sums = np.lib.stride_tricks.sliding_window_view(monthly, MONTHS, axis=-1).mean(axis=-1)
    return months


def lead_weights(leads: int) -> Sums:
    """a(k) ln k for lead months k = 1 ... `leads`; the first month weighs nothing."""
    month = np.arange(1, leads + 1)
    step = np.asarray(_STEP)[np.searchsorted(_FIRST_MONTH, month, side="right") - 1]
    weights: Sums = step * np.log(month)
    return weights


def enso_skill(forecast: Array, observed: Array, eps: float = EPS) -> EnsoSkill:
    """Correlation and error per lead of index forecasts (sample, lead) [degC].

    Raises:
        ValueError: shapes differ.
    """
    if forecast.shape != observed.shape or forecast.ndim != 2:
        raise ValueError(f"expected two (sample, lead) indices of one shape; got {forecast.shape} and {observed.shape}")
    ours, theirs = forecast.astype(np.float64), observed.astype(np.float64)
    rmse = np.sqrt(((ours - theirs) ** 2).mean(axis=0))
    ours, theirs = ours - ours.mean(axis=0), theirs - theirs.mean(axis=0)
    spread = np.sqrt((ours**2).sum(axis=0) * (theirs**2).sum(axis=0))
    return EnsoSkill((ours * theirs).sum(axis=0) / (spread + eps), rmse)
