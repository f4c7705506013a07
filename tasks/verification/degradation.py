"""The verdict on the skill of issued products: whether the model behind them has become worse than the baselines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.settings import Domain
from tasks.verification.promotion import FIRST_LEAD, without_nan
from tasks.verification.resampling import MIN_BLOCKS, Interval, paired_difference
from tasks.verification.score_table import Source
from tasks.verification.scores import WindowCounts
from tasks.verification.skill_table import SkillTable

BASELINES: tuple[Source, ...] = ("persistence", "extrapolation")
# Products of neighbouring cycles see the same rain: they are drawn two at a time.
_RUN = 2


@dataclass(frozen=True)
class SkillVerdict:
    """Whether the newest model's recent products ask for a retraining, and why.

    Attributes:
        degraded: Mean CSI significantly below a baseline's.
        reason: One sentence; without evidence it says what is lacking.
        model_name: Whose products were judged; empty where no model issued any.
        model_version: Its version.
        products: Wet products that were judged.
        against: Model minus baseline, by baseline.
    """

    degraded: bool
    reason: str
    model_name: str
    model_version: str
    products: int
    against: dict[str, Interval]

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values; a bound that does not exist is null."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


def judge_skill(
    table: SkillTable, domain: Domain, *, first_lead: timedelta = FIRST_LEAD, seed: int = 0
) -> SkillVerdict:
    """Judge the last `verification.window` wet products of the newest model against both baselines.

    Degraded is: for one of the baselines the upper bound of the 95 % interval of mean CSI (model - baseline, leads of
    at least ten minutes) lies below `verification.degraded_below`. Too few products or no rain is not degraded.
    """
    issued = [issue for issue in table.issues if issue.rung not in BASELINES]
    if not issued:
        return SkillVerdict(False, "no evidence: no model issued any of the scored products", "", "", 0, {})
    newest = issued[-1]
    model = (newest.model_name, newest.model_version)
    ours = np.array([it in issued and (it.model_name, it.model_version) == model for it in table.issues])
    chosen = np.flatnonzero(ours & table.windows["product"].wet)[-domain.verification.window :]
    against: dict[str, Interval] = {name: _compare(table, name, chosen, first_lead, seed) for name in BASELINES}
    limit = domain.verification.degraded_below
    worse = {name: it for name, it in against.items() if it.conclusive and it.upper < limit}
    return SkillVerdict(bool(worse), _reason(against, worse, len(chosen), limit), *model, len(chosen), against)


def _compare(
    table: SkillTable, baseline: Source, chosen: npt.NDArray[np.intp], first_lead: timedelta, seed: int
) -> Interval:
    leads = np.flatnonzero(np.array(table.lead_minutes) >= first_lead.total_seconds() / 60)
    one, other = (_selected(table.windows[source], chosen, leads) for source in ("product", baseline))
    return paired_difference(one, other, np.arange(len(chosen)), run=_RUN, seed=seed)


def _selected(counts: WindowCounts, products: npt.NDArray[np.intp], leads: npt.NDArray[np.intp]) -> WindowCounts:
    cut = {name: getattr(counts, name)[products][:, leads] for name in ("hits", "misses", "false_alarms")}
    kept = {name: getattr(counts, name)[products] for name in ("init_times", "events", "wet")}
    return replace(counts, **cut, **kept, lead_minutes=tuple(counts.lead_minutes[lead] for lead in leads))


def _reason(against: dict[str, Interval], worse: dict[str, Interval], products: int, limit: float) -> str:
    if worse:
        named = " and ".join(f"{name} ({interval})" for name, interval in worse.items())
        return f"degraded: over {products} wet products mean CSI minus that of {named} lies below {limit:g}"
    if not any(interval.conclusive for interval in against.values()):
        return f"no evidence: {products} wet products of the newest model, at least {_RUN * MIN_BLOCKS} are needed"
    named = ", ".join(f"{name} {interval}" for name, interval in against.items())
    return f"not degraded over {products} wet products: {named}"
