"""Scores of ensembles as sums per lead that add up: CRPS, spread and error, ranks of the observation, mean intensity.

CRPS and ranks of one window come from `scores` (its definitions are the papers'); only their sums are ours, because an
average of averages would weigh windows with few observed cells too much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tasks.verification.scores import Counts, Sums, ratio

Ensemble = npt.NDArray[np.floating[Any]]
Estimator = Literal["ecdf", "fair"]


@dataclass(frozen=True)
class EnsembleSums:
    """Sums over cells where the observation and every member are known; all others are left out.

    Attributes:
        count: Cells compared, int64 (lead,).
        crps_ecdf: Sum of the CRPS of the empirical distribution of the members, float64 (lead,), units of the field.
        crps_fair: Sum of the fair CRPS, likewise; NaN for a single member (no spread to estimate).
        variance: Sum of the members' variance with denominator M - 1, units squared; NaN for a single member.
        squared: Sum of (ensemble mean - observation) squared.
        forecast: Sum of the ensemble mean.
        observed: Sum of the observation.
        ranks: Cells by rank of the observation among the members, float64 (lead, M + 1); a tie is shared evenly.
        wet_ranks: The same over cells where the observation or a member reaches the lowest threshold.
        members: M.
    """

    count: Counts
    crps_ecdf: Sums
    crps_fair: Sums
    variance: Sums
    squared: Sums
    forecast: Sums
    observed: Sums
    ranks: Sums
    wet_ranks: Sums
    members: int

    def __add__(self, other: EnsembleSums) -> EnsembleSums:
        if self.members != other.members:
            raise ValueError(f"expected {self.members} members on both sides; got {other.members}")
        sums = ("crps_ecdf", "crps_fair", "variance", "squared", "forecast", "observed", "ranks", "wet_ranks")
        added = {name: getattr(self, name) + getattr(other, name) for name in sums}
        return EnsembleSums(count=self.count + other.count, members=self.members, **added)

    @property
    def crps(self) -> Sums:
        """Mean fair CRPS per lead; NaN where nothing was compared, or for a single member."""
        return ratio(self.crps_fair, self.count)

    @property
    def spread(self) -> Sums:
        """Root of the mean ensemble variance per lead, units of the field."""
        return np.sqrt(ratio(self.variance, self.count))

    @property
    def error(self) -> Sums:
        """Root mean squared error of the ensemble mean per lead, units of the field."""
        return np.sqrt(ratio(self.squared, self.count))

    @property
    def spread_skill(self) -> Sums:
        """Spread over error per lead: sqrt((M + 1) / M) * spread / error, 1 for a reliable ensemble of any size.

        The factor (M + 1) / M is what the error of the mean of M members has beyond that of an infinite ensemble.

        References:
            Fortin et al. (2014), doi:10.1175/JHM-D-14-0008.1.
        """
        return _spread_skill(self.variance, self.squared, self.members)

    @property
    def mean_spread_skill(self) -> float:
        """The same of all leads together."""
        return float(_spread_skill(self.variance.sum(), self.squared.sum(), self.members))

    @property
    def intensity_bias(self) -> Sums:
        """Mean of the ensemble minus mean of the observation per lead, units of the field."""
        return ratio(self.forecast - self.observed, self.count)

    @property
    def mean_crps(self) -> float:
        """Fair CRPS of all cells and leads together."""
        return float(ratio(self.crps_fair.sum(), self.count.sum()))

    def rank_shares(self, *, wet: bool = True) -> Sums:
        """Share of cells at each rank over all leads (M + 1,); 1 / (M + 1) everywhere for a reliable ensemble.

        Whether a cell belongs to the wet ones depends on the set of members and observation and not on which of them is
        the observation, so that conditioning on it leaves a reliable ensemble's histogram flat.
        """
        total = (self.wet_ranks if wet else self.ranks).sum(axis=0)
        return ratio(total, total.sum())


def _spread_skill(variance: Any, squared: Any, members: int) -> Sums:
    return np.sqrt((members + 1) / members * ratio(variance, squared))


def ensemble_sums(forecast: Ensemble, observed: Ensemble, lowest: float) -> EnsembleSums:
    """Sums of one window.

    Args:
        forecast: (member, lead, y, x) in physical units; NaN = not forecast.
        observed: (lead, y, x), same units; NaN = not observed. A cell with a NaN in either is left out.
        lowest: Threshold that makes a cell wet, same units.

    Raises:
        ValueError: shapes do not fit.

    References:
        Hamill (2001), rank histogram, doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2.
    """
    known = known_cells(forecast, observed)
    members = len(forecast)
    ours = np.where(known, forecast, 0.0).astype(np.float64)
    theirs = np.where(known, observed, 0.0).astype(np.float64)
    mean = ours.mean(axis=0)
    variance = ours.var(axis=0, ddof=1) if members > 1 else np.full(mean.shape, np.nan)
    wet = known & (np.maximum(ours.max(axis=0), theirs) >= lowest)

    def total(values: Sums) -> Sums:
        summed: Sums = values.sum(axis=(-2, -1))
        return summed

    return EnsembleSums(
        count=known.sum(axis=(-2, -1), dtype=np.int64),
        crps_ecdf=total(_crps(ours, theirs, "ecdf")),
        crps_fair=total(_crps(ours, theirs, "fair")) if members > 1 else np.full(len(observed), np.nan),
        variance=total(variance),
        squared=total((mean - theirs) ** 2),
        forecast=total(mean),
        observed=total(theirs),
        ranks=_ranks(ours, theirs, known),
        wet_ranks=_ranks(ours, theirs, wet),
        members=members,
    )


def known_cells(forecast: Ensemble, observed: Ensemble) -> npt.NDArray[np.bool_]:
    """Where the observation and every member are known, bool (lead, y, x).

    Raises:
        ValueError: not (member, lead, y, x) and (lead, y, x) of one grid.
    """
    if forecast.ndim != 4 or forecast.shape[1:] != observed.shape or not len(forecast):
        raise ValueError(
            f"expected members (member, lead, y, x) of an observation (lead, y, x); "
            f"got {forecast.shape} and {observed.shape}"
        )
    known: npt.NDArray[np.bool_] = np.isfinite(forecast).all(axis=0) & np.isfinite(observed)
    return known


def crps_of_cells(forecast: Ensemble, observed: Ensemble, estimator: Estimator) -> Sums:
    """CRPS of each cell, float64 (lead, y, x), units of the field; NaN where the observation or a member is.

    "ecdf" is the exact CRPS of the empirical distribution, mean|x_i - y| - sum|x_i - x_j| / (2 M^2), which falls with
    the number of members; "fair" divides by 2 M (M - 1) and estimates that of an infinite ensemble without bias.

    References:
        Gneiting & Raftery (2007), doi:10.1198/016214506000001437. Ferro (2014), doi:10.1002/qj.2270.
        Zamo & Naveau (2018), doi:10.1007/s11004-017-9709-7.
    """
    known = known_cells(forecast, observed)
    if estimator == "fair" and len(forecast) < 2:
        raise ValueError("expected at least 2 members for the fair CRPS; got 1")
    # `scores` would quietly go on with fewer members where some are NaN.
    found = _crps(np.where(known, forecast, 0.0), np.where(known, observed, 0.0), estimator)
    return np.where(known, found, np.nan)


def crps_gaussian(forecast: Ensemble, observed: Ensemble, ddof: int = 1) -> Sums:
    """CRPS of the normal distribution with the members' mean and standard deviation, (lead, y, x); NaN likewise.

    The form behind the tables of CasCast (Gong et al. 2024, arXiv:2402.04290): not comparable with the other two.

    References:
        Gneiting et al. (2005), eq. 5, doi:10.1175/MWR2904.1.
    """
    from scipy.stats import norm

    known_cells(forecast, observed)
    mean, deviation = forecast.mean(axis=0, dtype=np.float64), forecast.std(axis=0, dtype=np.float64, ddof=ddof)
    error = observed - mean
    z = np.divide(error, deviation, out=np.zeros_like(mean), where=deviation > 0)
    normal = deviation * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    crps: Sums = np.where(deviation > 0, normal, np.abs(error))
    return np.where(np.isnan(mean) | np.isnan(observed), np.nan, crps)


def _crps(forecast: Ensemble, observed: Ensemble, estimator: Estimator) -> Sums:
    from scores.probability import crps_for_ensemble
    from xarray import DataArray

    members = DataArray(forecast.astype(np.float64), dims=("member", "lead", "y", "x"))
    truth = DataArray(observed.astype(np.float64), dims=("lead", "y", "x"))
    found: Sums = crps_for_ensemble(members, truth, "member", method=estimator, preserve_dims="all").values
    return found


def _ranks(forecast: Ensemble, observed: Ensemble, chosen: npt.NDArray[np.bool_]) -> Sums:
    from scores.probability import rank_histogram
    from xarray import DataArray

    members = DataArray(forecast, dims=("member", "lead", "y", "x"))
    truth = DataArray(np.where(chosen, observed, np.nan), dims=("lead", "y", "x"))
    shares = rank_histogram(members, truth, "member", preserve_dims=["lead"]).transpose("lead", "rank").values
    ranks: Sums = np.nan_to_num(shares) * chosen.sum(axis=(-2, -1))[:, None]
    return ranks
