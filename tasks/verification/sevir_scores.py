"""The skill protocol of the SEVIR benchmark: VIL scaled to 0..255, six thresholds, eps in every denominator.

Counts are int64 (published float32 counters stop counting at 2^24). The frequency bias stands beside the transform of
it that published tables carry under the name "bias", whose best value is 2.08 and not 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tasks.verification.scores import Contingency, Sums, contingency

THRESHOLDS = (16.0, 74.0, 133.0, 160.0, 181.0, 219.0)
SCALE = 255.0
EPS = 1e-4

Mode = Literal["0", "1", "2"]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SevirSkill:
    """Scores per threshold: float64 (threshold,), or (threshold, lead) in mode "1"; a threshold never reached scores 0.

    Attributes:
        csi: Critical success index.
        pod: Probability of detection.
        sucr: Success ratio, 1 - FAR.
        bias: Frequency bias (H + F) / (H + M).
        legacy_bias: (bias / ln 2) squared, as published.
        thresholds: VIL in 0..255.
    """

    csi: Sums
    pod: Sums
    sucr: Sums
    bias: Sums
    legacy_bias: Sums
    thresholds: tuple[float, ...]

    def mean(self) -> SevirSkill:
        """The mean over thresholds (CSI-M and its like)."""
        scores = (self.csi, self.pod, self.sucr, self.bias, self.legacy_bias)
        csi, pod, sucr, bias, legacy = (np.asarray(score.mean(axis=0)) for score in scores)
        return SevirSkill(csi, pod, sucr, bias, legacy, self.thresholds)


def sevir_counts(forecast: Float32, observed: Float32, pool: int = 1) -> Contingency:
    """Counts (lead, threshold) of a batch; batches add up with `+`.

    Args:
        forecast: (sample, lead, y, x, channel) VIL scaled to 0..1; NaN on either side leaves the cell out.
        observed: Same shape.
        pool: Take the maximum over blocks of pool x pool cells first; a remainder at the far edges is dropped.

    Raises:
        ValueError: shapes differ.
    """
    ours, theirs = (_block_maximum(_frames(batch), pool) for batch in (forecast, observed))
    table = contingency(ours, theirs, THRESHOLDS)
    parts = (table.hits, table.misses, table.false_alarms, table.correct_negatives)
    hits, misses, false_alarms, correct_negatives = (part.sum(axis=(0, 2)) for part in parts)
    return Contingency(hits, misses, false_alarms, correct_negatives, table.thresholds)


def sevir_skill(counts: Contingency, mode: Mode = "0", eps: float = EPS) -> SevirSkill:
    """Scores of summed counts (lead, threshold).

    Args:
        counts: Of all samples.
        mode: "0" sums over leads before the ratio; "1" keeps leads; "2" averages the ratios over leads.
        eps: Added to every denominator (1e-4 published; 1e-6 in the authors' helper functions).
    """
    if mode == "0":
        return _scores(counts.over_leads(), eps)
    by_lead = _scores(counts, eps)
    scores = (by_lead.csi, by_lead.pod, by_lead.sucr, by_lead.bias, by_lead.legacy_bias)
    csi, pod, sucr, bias, legacy = (score.T if mode == "1" else score.mean(axis=0) for score in scores)
    return SevirSkill(csi, pod, sucr, bias, legacy, counts.thresholds)


def _scores(counts: Contingency, eps: float) -> SevirSkill:
    hits, misses, false_alarms = counts.hits, counts.misses, counts.false_alarms
    bias = (hits + false_alarms) / (hits + misses + eps)
    return SevirSkill(
        hits / (hits + misses + false_alarms + eps),
        hits / (hits + misses + eps),
        hits / (hits + false_alarms + eps),
        bias,
        (bias / np.log(2.0)) ** 2,
        counts.thresholds,
    )


def _frames(batch: Float32) -> Float32:
    """(sample, lead, y, x, channel) in 0..1 as (sample, lead, channel, y, x) in 0..255.

    Divided by the scale as published: multiplied by 255, float32(219 / 255) would reach 219 and here it does not.
    """
    return np.moveaxis(batch.astype(np.float32) / np.float32(1 / SCALE), -1, 2)


def _block_maximum(frames: Float32, pool: int) -> npt.NDArray[Any]:
    if pool == 1:
        return frames
    *leading, height, width = frames.shape
    rows, columns = height // pool, width // pool
    whole = frames[..., : rows * pool, : columns * pool]
    blocks: npt.NDArray[Any] = whole.reshape(*leading, rows, pool, columns, pool).max(axis=(-3, -1))
    return blocks
