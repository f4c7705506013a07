"""What a comparison of ensembles says: one line per forecaster, as numbers, as text and as a labelled dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.training.ensemble_comparison import EnsembleComparison
from tasks.verification.resampling import Interval

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class EnsembleRow:
    """Scores of one forecaster over all windows and leads; NaN = no evidence.

    Attributes:
        name: Of the forecaster.
        crps: Fair CRPS, units of the field.
        against: CRPS minus the reference's, with its interval; None for the reference itself.
        spread_skill: Spread over error, corrected for the number of members.
        brier: Fair Brier score, mean over thresholds and leads.
        csi: Of the ensemble mean, mean over thresholds.
        csi_pool4: The same over maxima of 4 x 4 cells.
        csi_pool16: The same over maxima of 16 x 16 cells.
        member_csi_pool4: Of single members, over maxima of 4 x 4 cells.
        member_csi_pool16: Over maxima of 16 x 16 cells.
        power_ratio: Members' over observed power in the shortest resolved decade of wavelengths.
        mean_power_ratio: That of the ensemble mean.
        intensity_bias: Ensemble mean minus observation, units of the field.
        rank_error: Sum of |share - 1 / (M + 1)| over ranks of wet cells; 0 is a flat rank histogram.
        frechet: Distance of clips in feature space; NaN without a feature network.
        seconds: Median of one ensemble.
    """

    name: str
    crps: float
    against: Interval | None
    spread_skill: float
    brier: float
    csi: float
    csi_pool4: float
    csi_pool16: float
    member_csi_pool4: float
    member_csi_pool16: float
    power_ratio: float
    mean_power_ratio: float
    intensity_bias: float
    rank_error: float
    frechet: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values; the difference as text."""
        return asdict(self) | {"against": str(self.against) if self.against else None}

    def numbers(self) -> dict[str, float]:
        """Every score that is a number, by name."""
        names = [field.name for field in fields(self) if field.name not in ("name", "against")]
        return {name: float(getattr(self, name)) for name in names}


def tabulate_ensembles(comparison: EnsembleComparison, reference: str | None = None) -> list[EnsembleRow]:
    """One row per forecaster, best fair CRPS first; differences are against `reference`, by default the best one.

    Raises:
        ValueError: the reference is not among the forecasters.
    """
    names = sorted(comparison.evidence, key=lambda name: comparison.evidence[name].sums.mean_crps)
    base = names[0] if reference is None else reference
    if base not in names:
        raise ValueError(f"expected a reference of {', '.join(names)}; got {base!r}")
    return [_row(comparison, name, base) for name in names]


def _row(comparison: EnsembleComparison, name: str, reference: str) -> EnsembleRow:
    found = comparison.evidence[name]
    shares = found.sums.rank_shares()
    return EnsembleRow(
        name=name,
        crps=found.sums.mean_crps,
        against=None if name == reference else comparison.difference(name, reference),
        spread_skill=found.sums.mean_spread_skill,
        brier=_mean_brier(found.reliability.over_leads().brier()),
        csi=_csi(comparison, name, 1),
        csi_pool4=_csi(comparison, name, 4),
        csi_pool16=_csi(comparison, name, 16),
        member_csi_pool4=_csi(comparison, name, 4, members=True),
        member_csi_pool16=_csi(comparison, name, 16, members=True),
        power_ratio=found.spectra.power_ratio(),
        mean_power_ratio=found.spectra.power_ratio(mean=True),
        intensity_bias=float((found.sums.forecast - found.sums.observed).sum() / max(int(found.sums.count.sum()), 1)),
        rank_error=float(np.abs(shares - 1 / len(shares)).sum()),
        frechet=comparison.frechet(name),
        seconds=float(np.median(found.seconds)),
    )


def _mean_brier(scores: np.ndarray[Any, Any]) -> float:
    known = scores[np.isfinite(scores)]
    return float(known.mean()) if known.size else float("nan")


def _csi(comparison: EnsembleComparison, name: str, pool: int, *, members: bool = False) -> float:
    pooled = comparison.evidence[name].pooled
    return pooled.csi(pool, members=members) if pool in pooled.pools else float("nan")


def as_text(rows: Sequence[EnsembleRow], comparison: EnsembleComparison) -> str:
    """The table in Markdown, with a line on what was compared."""
    columns = [name for name in rows[0].numbers() if not all(np.isnan(row.numbers()[name]) for row in rows)]
    lines = [
        f"{len(comparison)} windows of {len(set(comparison.events.tolist()))} events, {comparison.members} members, "
        f"{comparison.quantity}, seed {comparison.seed}; "
        f"{100 * comparison.judged_share:.1f} % of the observed cells are known to every member of every forecaster.",
        "",
        f"| forecaster | {' | '.join(columns)} | CRPS against the reference |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for row in rows:
        numbers = " | ".join(f"{row.numbers()[name]:.4g}" for name in columns)
        lines.append(f"| {row.name} | {numbers} | {row.against or 'reference'} |")
    return "\n".join(lines)


def as_dataset(comparison: EnsembleComparison) -> xr.Dataset:
    """Scores by forecaster and lead time [min]: CRPS, spread, error, their ratio, intensity bias and rank shares."""
    import xarray as xr

    sums = {name: found.sums for name, found in comparison.evidence.items()}

    def by_lead(score: str) -> tuple[tuple[str, str], np.ndarray[Any, Any]]:
        return ("forecaster", "lead_time"), np.stack([getattr(one, score) for one in sums.values()])

    scores = ("crps", "spread", "error", "spread_skill", "intensity_bias")
    ranks = np.stack([one.rank_shares() for one in sums.values()])
    return xr.Dataset(
        {name: by_lead(name) for name in scores} | {"rank_share": (("forecaster", "rank"), ranks)},
        coords={"forecaster": list(sums), "lead_time": ("lead_time", list(comparison.lead_minutes), {"units": "min"})},
        attrs={"quantity": comparison.quantity, "members": comparison.members, "windows": len(comparison)},
    )
