"""The promotion rule: a challenger is promoted on paired, out-of-sample evidence with uncertainty, or not at all.

Judged on held-out wet windows, mean CSI over the stated thresholds and leads of at least ten minutes. A first champion
must beat persistence, a later one persistence and the reigning champion: the lower bound of the 95 % interval of the
paired difference must be above zero. Strictly better, not merely no worse: a tie keeps the champion. A missing score,
too few blocks or a rival that could not be run is never a win by default.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

import numpy as np

from tasks.verification.resampling import BLOCK, CONFIDENCE, RESAMPLES, Interval, blocks_of, mean_csi, paired_difference
from tasks.verification.scores import WindowCounts

FIRST_LEAD = timedelta(minutes=10)


@dataclass(frozen=True)
class Unavailable:
    """A forecaster that should have been compared and could not: its checkpoint does not load, its scores are missing.

    Attributes:
        name: Which one.
        reason: Why, in words.
    """

    name: str
    reason: str


Rival = WindowCounts | Unavailable


@dataclass(frozen=True)
class Evidence:
    """What a promotion verdict rests on.

    Attributes:
        windows: Held-out windows that came.
        wet_windows: Those that were judged.
        lead_minutes: Leads that were judged.
        thresholds: In the quantity's units.
        mean_csi: By forecaster name; a forecaster that could not be scored is absent.
        block_hours: An event longer than this is cut into blocks of this length.
        confidence: Of the intervals.
        resamples: Bootstrap draws.
        seed: Of the draws.
    """

    windows: int
    wet_windows: int
    lead_minutes: tuple[float, ...]
    thresholds: tuple[float, ...]
    mean_csi: dict[str, float]
    block_hours: float
    confidence: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class PromotionVerdict:
    """Whether the challenger becomes the champion, and why.

    Attributes:
        promote: The decision.
        beats_persistence: Challenger minus persistence; None = could not be compared.
        against_extrapolation: Challenger minus extrapolation; None = could not be compared.
        against_champion: Challenger minus champion; None = there is none, or it could not be compared.
        ladder_rank: "above" extrapolation only where the lower bound of that difference is above zero.
        reason: One sentence.
        evidence: What it rests on.
    """

    promote: bool
    beats_persistence: Interval | None
    against_extrapolation: Interval | None
    against_champion: Interval | None
    ladder_rank: Literal["above", "below"]
    reason: str
    evidence: Evidence

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values; a bound that does not exist is null."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain


def decide(
    challenger: WindowCounts,
    champion: Rival | None,
    persistence: Rival,
    extrapolation: Rival,
    *,
    first_lead: timedelta = FIRST_LEAD,
    block: timedelta = BLOCK,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PromotionVerdict:
    """Judge a challenger against persistence, extrapolation and the champion on the same held-out windows.

    Args:
        challenger: Counts of the candidate on windows it was neither trained nor selected on.
        champion: Counts of the reigning champion on the same windows; None only where there is no champion at all.
        persistence: Counts of persistence.
        extrapolation: Counts of extrapolation; decides the rank in the ladder, not the promotion.
        first_lead: Shorter leads are left out.
        block: Longer events are cut into blocks of this length.
        confidence: Two-sided coverage of the intervals.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        NotPaired: the forecasters were not scored on the same windows and cells.
    """
    ours = _judged(challenger, first_lead)
    labels, run = blocks_of(ours, block)

    def compare(rival: Rival | None) -> Interval | None:
        if rival is None or isinstance(rival, Unavailable):
            return None
        theirs = _judged(rival, first_lead)
        return paired_difference(ours, theirs, labels, run=run, resamples=resamples, confidence=confidence, seed=seed)

    intervals = compare(persistence), compare(extrapolation), compare(champion)
    refusal = _refusal("persistence", persistence, intervals[0])
    if refusal is None and champion is not None:
        refusal = _refusal("the champion", champion, intervals[2])
    above = intervals[1] is not None and intervals[1].above_zero
    named = {"challenger": challenger, "champion": champion, "persistence": persistence, "extrapolation": extrapolation}
    scores = {name: _score(counts, first_lead) for name, counts in named.items() if isinstance(counts, WindowCounts)}
    hours = block.total_seconds() / 3600
    evidence = Evidence(
        len(challenger), len(ours), ours.lead_minutes, ours.thresholds, scores, hours, confidence, resamples, seed
    )
    reason = refusal or _praise(intervals[0], intervals[2])
    return PromotionVerdict(refusal is None, *intervals, "above" if above else "below", reason, evidence)


def _judged(counts: WindowCounts, first_lead: timedelta) -> WindowCounts:
    """Wet windows and the leads from `first_lead` on."""
    leads = np.array([minutes >= first_lead.total_seconds() / 60 for minutes in counts.lead_minutes], dtype=bool)
    return WindowCounts(
        counts.hits[counts.wet][:, leads],
        counts.misses[counts.wet][:, leads],
        counts.false_alarms[counts.wet][:, leads],
        counts.thresholds,
        tuple(minutes for minutes, kept in zip(counts.lead_minutes, leads, strict=True) if kept),
        counts.init_times[counts.wet],
        counts.events[counts.wet],
        counts.wet[counts.wet],
    )


def _score(counts: WindowCounts, first_lead: timedelta) -> float:
    return mean_csi(_judged(counts, first_lead))


def _refusal(name: str, rival: Rival, interval: Interval | None) -> str | None:
    """Why this comparison forbids a promotion; None where it allows it."""
    if isinstance(rival, Unavailable):
        return f"not promoted: {name} could not be compared ({rival.name}: {rival.reason})"
    if interval is None or not interval.conclusive:
        return f"not promoted: no evidence against {name}: {interval}"
    if not interval.above_zero:
        return f"not promoted: mean CSI is not above {name}: {interval}"
    return None


def _praise(persistence: Interval | None, champion: Interval | None) -> str:
    against = "" if champion is None else f" and the champion by {champion}"
    return f"promoted: mean CSI beats persistence by {persistence}{against}"


def without_nan(value: Any) -> Any:
    """Nested values with tuples as lists and a float that is not finite as None: what JSON can hold."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
