"""Forecast probabilities against what happened: reliability and Brier score of an ensemble, from whole numbers.

M members give M + 1 probabilities, so that the counts of forecasts and of events at each of them hold everything that
the reliability curve and both Brier scores need, and add up exactly. `scores` computes the same Brier score from
fields (the tests hold us to it); it has no reliability table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.verification.ensemble_scores import Ensemble, known_cells
from tasks.verification.scores import Counts, Sums, ascending, ratio


@dataclass(frozen=True)
class Reliability:
    """Counts per lead, threshold and number k of members at or above the threshold (forecast probability k / M).

    Attributes:
        forecasts: Cells with that probability, int64 (lead, threshold, M + 1).
        events: Of these, cells observed at or above the threshold.
        thresholds: In the field's units, ascending.

    References:
        Murphy (1973), doi:10.1175/1520-0450(1973)012<0595:ANVPOT>2.0.CO;2. Ferro (2014), doi:10.1002/qj.2270.
    """

    forecasts: Counts
    events: Counts
    thresholds: tuple[float, ...]

    def __add__(self, other: Reliability) -> Reliability:
        if self.thresholds != other.thresholds or self.members != other.members:
            ours, theirs = ((it.members, it.thresholds) for it in (self, other))
            raise ValueError(f"expected members and thresholds {ours} on both sides; got {theirs}")
        return Reliability(self.forecasts + other.forecasts, self.events + other.events, self.thresholds)

    @property
    def members(self) -> int:
        """M."""
        return int(self.forecasts.shape[-1]) - 1

    @property
    def probabilities(self) -> Sums:
        """Forecast probabilities k / M, (M + 1,)."""
        return np.arange(self.members + 1) / self.members

    @property
    def frequencies(self) -> Sums:
        """Observed relative frequency at each probability, (lead, threshold, M + 1); NaN where never forecast."""
        return ratio(self.events, self.forecasts)

    def over_leads(self) -> Reliability:
        """All leads as one."""
        return Reliability(self.forecasts.sum(0, keepdims=True), self.events.sum(0, keepdims=True), self.thresholds)

    def brier(self, *, fair: bool = True) -> Sums:
        """Brier score (lead, threshold), 0 is best; NaN where nothing was compared.

        The fair score takes i (M - i) / (M^2 (M - 1)) off each forecast of i members, what M members score worse than
        the infinite ensemble they were drawn from; a single member has no such correction.
        """
        p, members = self.probabilities, self.members
        squared = (p**2 * self.forecasts + (1 - 2 * p) * self.events).sum(axis=-1)
        if fair and members > 1:
            squared = squared - (p * (1 - p) / (members - 1) * self.forecasts).sum(axis=-1)
        return ratio(squared, self.forecasts.sum(axis=-1))

    def brier_skill(self) -> Sums:
        """1 - fair Brier score / that of the sample's own frequency, (lead, threshold); NaN where no event or only."""
        frequency = ratio(self.events.sum(axis=-1), self.forecasts.sum(axis=-1))
        return 1.0 - ratio(self.brier(), frequency * (1 - frequency))


def reliability(forecast: Ensemble, observed: Ensemble, thresholds: Sequence[float]) -> Reliability:
    """Counts of one window.

    Args:
        forecast: (member, lead, y, x) in physical units; NaN = not forecast.
        observed: (lead, y, x), same units; NaN = not observed. A cell with a NaN in either is left out.
        thresholds: Ascending, same units; an event is value >= threshold.

    Raises:
        ValueError: shapes do not fit, or thresholds do not ascend.
    """
    known, levels = known_cells(forecast, observed), ascending(thresholds)
    members, leads = len(forecast), len(observed)
    shape = (leads, len(levels), members + 1)
    forecasts, events = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for column, level in enumerate(levels):
        votes, happened = (forecast >= level).sum(axis=0), observed >= level
        for lead in range(leads):
            chosen = known[lead]
            forecasts[lead, column] = np.bincount(votes[lead][chosen], minlength=members + 1)
            events[lead, column] = np.bincount(votes[lead][chosen & happened[lead]], minlength=members + 1)
    return Reliability(forecasts, events, levels)
