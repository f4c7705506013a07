"""Neighbourhood CSI by block maxima (CSI-pool4, CSI-pool16) of the ensemble mean and of the members one by one.

Gao et al. (2023), PreDiff, arXiv:2307.10422, table 2: "pooled" scores take the maximum over pool x pool blocks of both
fields before the thresholds, so that rain a few cells away still counts. Blurred means lose it, sharp members keep it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.verification.ensemble_scores import Ensemble, known_cells
from tasks.verification.scores import Contingency, Field, Sums, contingency

POOLS = (1, 4, 16)


@dataclass(frozen=True)
class PooledCounts:
    """Contingency counts (lead, threshold) per pool size.

    Attributes:
        mean: Of the ensemble mean, one table per pool.
        members: Of each member against the observation, summed over members.
        pools: Block sides [cells].
    """

    mean: tuple[Contingency, ...]
    members: tuple[Contingency, ...]
    pools: tuple[int, ...]

    def __add__(self, other: PooledCounts) -> PooledCounts:
        if self.pools != other.pools:
            raise ValueError(f"expected pools {self.pools} on both sides; got {other.pools}")
        added = ([a + b for a, b in zip(*pair, strict=True)] for pair in self._pairs(other))
        mean, members = added
        return PooledCounts(tuple(mean), tuple(members), self.pools)

    def _pairs(self, other: PooledCounts) -> tuple[tuple[tuple[Contingency, ...], tuple[Contingency, ...]], ...]:
        return (self.mean, other.mean), (self.members, other.members)

    def csi(self, pool: int, *, members: bool = False) -> float:
        """CSI of all leads together, mean over the thresholds that occurred (CSI-M of the papers)."""
        tables = self.members if members else self.mean
        values = tables[self.pools.index(pool)].over_leads().csi
        known = values[np.isfinite(values)]
        return float(known.mean()) if known.size else float("nan")

    def csi_by_threshold(self, pool: int, *, members: bool = False) -> Sums:
        """CSI of all leads together per threshold; NaN where no event was forecast or observed."""
        tables = self.members if members else self.mean
        return tables[self.pools.index(pool)].over_leads().csi


def pooled_counts(
    forecast: Ensemble, observed: Ensemble, thresholds: Sequence[float], pools: Sequence[int] = POOLS
) -> PooledCounts:
    """Counts of one window; a pool larger than the grid is left out.

    Args:
        forecast: (member, lead, y, x) in physical units; NaN = not forecast.
        observed: (lead, y, x), same units; NaN = not observed. A cell with a NaN in either is left out.
        thresholds: Ascending, same units.
        pools: Block sides [cells].

    Raises:
        ValueError: shapes do not fit, or thresholds do not ascend.
    """
    known = known_cells(forecast, observed)
    ours, theirs = np.where(known, forecast, np.nan), np.where(known, observed, np.nan)
    sizes = tuple(pool for pool in pools if pool <= min(observed.shape[-2:]))
    mean, members = [], []
    for pool in sizes:
        truth = block_maximum(theirs, pool)
        mean.append(contingency(block_maximum(ours.mean(axis=0), pool), truth, thresholds))
        members.append(_summed([contingency(block_maximum(member, pool), truth, thresholds) for member in ours]))
    return PooledCounts(tuple(mean), tuple(members), sizes)


def block_maximum(fields: Field, pool: int) -> Field:
    """Maximum of the known cells of each pool x pool block of (..., y, x), same units.

    NaN where less than half of a block is known (on a fully known field, the published definition). A remainder at the
    far edges is dropped.
    """
    if pool == 1:
        return fields
    *leading, height, width = fields.shape
    rows, columns = height // pool, width // pool
    blocks = fields[..., : rows * pool, : columns * pool].reshape(*leading, rows, pool, columns, pool)
    highest = np.where(np.isnan(blocks), -np.inf, blocks).max(axis=(-3, -1))
    enough = np.isfinite(blocks).mean(axis=(-3, -1)) >= 0.5
    maximum: Field = np.where(enough, highest, np.nan).astype(fields.dtype)
    return maximum


def _summed(tables: Sequence[Contingency]) -> Contingency:
    total = tables[0]
    for table in tables[1:]:
        total = total + table
    return total
