"""The promotion rule for ensembles: a lower fair CRPS on paired, out-of-sample windows, with uncertainty, or none.

Judged on held-out wet windows at equal member count. A first champion must beat persistence (whose CRPS is its absolute
error), a later one persistence and the reigning champion: the lower bound of the 95 % interval of the rival's CRPS
minus the challenger's must be above zero. The dressed deterministic model and STEPS are scored beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tasks.verification.promotion import Unavailable, without_nan
from tasks.verification.resampling import Interval


@dataclass(frozen=True)
class EnsembleVerdict:
    """Whether the challenger becomes the champion, and why; every interval is the rival's CRPS minus the challenger's.

    Attributes:
        promote: The decision.
        reason: One sentence.
        ladder_rank: "above" extrapolation only where the lower bound of that difference is above zero.
        against: By rival.
        crps: Fair CRPS by forecaster, the quantity's units.
        windows: Judged.
        members: Of each ensemble.
    """

    promote: bool
    reason: str
    ladder_rank: Literal["above", "below"]
    against: Mapping[str, Interval]
    crps: Mapping[str, float] = field(default_factory=dict)
    windows: int = 0
    members: int = 0

    @property
    def against_extrapolation(self) -> Interval | None:
        """Extrapolation's CRPS minus the challenger's."""
        return self.against.get("extrapolation")

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values; a bound that does not exist is null."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


def decide_ensemble(
    against: Mapping[str, Interval],
    lost: Unavailable | None = None,
    *,
    crps: Mapping[str, float],
    windows: int,
    members: int,
) -> EnsembleVerdict:
    """Judge a challenger by its CRPS differences.

    Args:
        against: Rival's CRPS minus the challenger's; "persistence" always, "champion" where there is one.
        lost: A champion that could not be compared: never a win by default.
        crps: By forecaster, for the record.
        windows: Judged.
        members: Of each ensemble.
    """
    refusal = None
    if lost is not None:
        refusal = f"not promoted: the champion could not be compared ({lost.name}: {lost.reason})"
    for rival in ("persistence", "champion"):
        if refusal is None and rival in against and not against[rival].above_zero:
            told = "is not below" if against[rival].conclusive else "could not be told from"
            refusal = f"not promoted: fair CRPS {told} that of {rival}: {against[rival]}"
    above = "extrapolation" in against and against["extrapolation"].above_zero
    praise = ", ".join(f"{rival} by {against[rival]}" for rival in ("persistence", "champion") if rival in against)
    reason = refusal or f"promoted: fair CRPS is below that of {praise}"
    return EnsembleVerdict(
        refusal is None, reason, "above" if above else "below", dict(against), dict(crps), windows, members
    )
