"""Events of an archive and their split: the unit that goes whole into training, validation or test.

Neighbouring frames are nearly copies of each other, so windows are never dealt out one by one. An event is a stretch
of frames without a long gap or a long dry spell; whole events are dealt, and a guard keeps splits apart in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
UNUSED = -1


@dataclass(frozen=True)
class EventRule:
    """What separates events, in slots of the archive's cadence.

    Attributes:
        dry_gap: A dry spell or a gap of at least so many slots ends an event.
        limit: Events longer than this are cut.
        guard: Least distance between frames of two splits.
        wet_fraction: A frame is wet when at least this fraction of its observed cells is.
    """

    dry_gap: int
    limit: int
    guard: int
    wet_fraction: float


def find_events(slots: NDArray[np.int64], wet: NDArray[np.float32], rule: EventRule) -> NDArray[np.int64]:
    """Number of the event each frame belongs to, ascending from 0.

    Args:
        slots: (frame,) slot of each present frame, ascending.
        wet: (frame,) fraction of observed cells that are wet, 0..1; NaN = nothing observed, counts as dry.
        rule: What separates events.
    """
    if slots.size == 0:
        return np.zeros(0, np.int64)
    gap = np.diff(slots, prepend=slots[0]) > rule.dry_gap
    is_wet = np.nan_to_num(wet) >= rule.wet_fraction
    frames = np.arange(slots.size)
    last_wet = np.maximum.accumulate(np.where(is_wet, frames, -1))
    previous = np.r_[-1, last_wet[:-1]]
    revived = is_wet & (previous >= 0) & (slots - slots[np.maximum(previous, 0)] > rule.dry_gap)
    coarse = np.cumsum(gap | revived)
    first = np.searchsorted(coarse, coarse, side="left")
    piece = (slots - slots[first]) // rule.limit
    starts = np.r_[False, (np.diff(coarse) != 0) | (np.diff(piece) != 0)]
    return np.cumsum(starts)


def deal_events(events: NDArray[np.int64], is_wet: NDArray[np.bool_], fractions: Sequence[float]) -> NDArray[np.int8]:
    """Split of each frame, 0 train, 1 val, 2 test: each event goes where the share of wet frames lags most.

    The rule looks backwards only, so an event keeps its split when the archive grows.

    Args:
        events: (frame,) event numbers, ascending.
        is_wet: (frame,) whether the frame is wet; a dry one weighs a twentieth.
        fractions: Shares of train, val and test; they add up to 1.
    """
    weight = np.bincount(events, weights=np.where(is_wet, 1.0, 0.05))
    target, dealt = np.asarray(fractions, np.float64), np.zeros(len(SPLITS))
    choice = np.zeros(weight.size, np.int8)
    for event, amount in enumerate(weight):
        lag = np.where(target > 0, target * (dealt.sum() + amount) - dealt, -np.inf)
        choice[event] = int(np.argmax(lag))
        dealt[choice[event]] += amount
    return choice[events]


def guard_splits(slots: NDArray[np.int64], splits: NDArray[np.int8], guard: int) -> NDArray[np.int8]:
    """The splits with `UNUSED` (-1) on frames less than `guard` slots before the next frame of another split."""
    guarded = splits.copy()
    for boundary in np.flatnonzero(np.diff(splits)) + 1:
        near = np.searchsorted(slots, slots[boundary] - guard, side="right")
        guarded[near:boundary] = UNUSED
    return guarded


def window_starts(slots: NDArray[np.int64], splits: NDArray[np.int8], length: int) -> list[NDArray[np.int64]]:
    """Per split, the first frames of all windows of `length` frames that cross no gap and no split."""
    count = slots.size - length + 1
    if count <= 0:
        return [np.zeros(0, np.int64) for _ in SPLITS]
    unbroken = slots[length - 1 :] - slots[:count] == length - 1
    changes = np.r_[0, np.cumsum(np.diff(splits) != 0)]
    whole = changes[length - 1 :] == changes[:count]
    return [np.flatnonzero(unbroken & whole & (splits[:count] == number)) for number in range(len(SPLITS))]
