"""Samples: windows (t_in, y, x) -> (t_out, y, x) of the training data, dealt by event, drawn as a function of a step.

Which windows make batch `step` of a training depends on (seed, step) and nothing else, so that the sampler's position
is one number and a resumed training sees exactly the samples the killed one would have seen.

References:
    Ravuri et al. (2021), importance sampling of rainy crops, doi:10.1038/s41586-021-03854-z.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tasks.training.data import BLOCK, TrainingData, TrainingDataInfo
from tasks.training.events import SPLITS, UNUSED, EventRule, deal_events, find_events, guard_splits, window_starts

if TYPE_CHECKING:
    from tasks.training.loading import WindowReader

HOURS_TRIED = (24, 12, 6, 4, 3, 2, 1)


@dataclass(frozen=True)
class SampleSpec:
    """How windows are cut, split and drawn.

    Attributes:
        t_in: Context frames.
        t_out: Forecast frames.
        crop: Side of the square cut from each frame [cells]; None for the whole frame.
        fractions: Shares of train, val and test.
        guard: Least time between two splits; None for t_out slots.
        dry_gap: A dry spell this long separates events.
        event_limit: Longer events are cut; None for the longest limit that gives every split its windows.
        wet_fraction: A window is wet when this share of its observed cells reaches the wet threshold.
        floor: Relative weight of a dry window when windows are drawn; a very wet one weighs 1.
    """

    t_in: int = 13
    t_out: int = 12
    crop: int | None = None
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    guard: timedelta | None = None
    dry_gap: timedelta = timedelta(hours=2)
    event_limit: timedelta | None = None
    wet_fraction: float = 0.05
    floor: float = 0.05

    @property
    def length(self) -> int:
        """Frames of a window."""
        return self.t_in + self.t_out


@dataclass(frozen=True)
class Window:
    """One sample's place.

    Attributes:
        frame: Index of its first frame in the training data.
        y: First row of the crop.
        x: First column of the crop.
        symmetry: 0..7: quarter turns (symmetry % 4) after a mirror along x (symmetry >= 4).
    """

    frame: int
    y: int = 0
    x: int = 0
    symmetry: int = 0


class SampleSource:
    """All samples of one training layout under one rule; holds indexes only, frames stay on disk."""

    def __init__(self, data: TrainingData, spec: SampleSpec) -> None:
        """Cut and deal the windows.

        Raises:
            ValueError: a split with a positive share gets no window, or the crop is larger than a frame.
        """
        if spec.crop is not None and spec.crop > min(data.info.shape):
            raise ValueError(f"expected a crop of at most {min(data.info.shape)} cells; got {spec.crop}")
        self.data, self.spec = data, spec
        self._deal()

    @property
    def info(self) -> TrainingDataInfo:
        """What the values are."""
        return self.data.info

    @property
    def t_in(self) -> int:
        """Context frames."""
        return self.spec.t_in

    @property
    def t_out(self) -> int:
        """Forecast frames."""
        return self.spec.t_out

    @property
    def size(self) -> tuple[int, int]:
        """Cells along y, x of a sample."""
        return (self.spec.crop, self.spec.crop) if self.spec.crop else self.data.info.shape

    def _deal(self) -> None:
        step, spec = self.data.info.cadence_s, self.spec
        limits = [spec.event_limit] if spec.event_limit else [timedelta(hours=hours) for hours in HOURS_TRIED]
        for limit in limits:
            rule = EventRule(
                dry_gap=max(1, int(spec.dry_gap.total_seconds() // step)),
                limit=max(1, int(limit.total_seconds() // step)),
                guard=spec.t_out if spec.guard is None else int(spec.guard.total_seconds() // step),
                wet_fraction=spec.wet_fraction,
            )
            self.events = find_events(self.data.slots, self.data.wet, rule)
            dealt = deal_events(self.events, np.nan_to_num(self.data.wet) >= spec.wet_fraction, spec.fractions)
            self.splits = guard_splits(self.data.slots, dealt, rule.guard)
            self._windows = window_starts(self.data.slots, self.splits, spec.length)
            self.rule = rule
            if all(len(found) or not share for found, share in zip(self._windows, spec.fractions, strict=True)):
                return
        counts = dict(zip(SPLITS, map(len, self._windows), strict=True))
        raise ValueError(
            f"expected windows of {spec.length} unbroken frames in every split; "
            f"got {counts} from {self.data.slots.size} frames"
        )

    def windows(self, split: str) -> NDArray[np.int64]:
        """First frames of all windows of a split, ascending (frame indexes of the training data)."""
        return self._windows[SPLITS.index(split)]

    @cached_property
    def _cumulated(self) -> NDArray[np.float64]:
        return np.concatenate([np.zeros(1), np.cumsum(np.nan_to_num(self.data.wet), dtype=np.float64)])

    def wet_share(self, starts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Wet share of the observed cells of the forecast frames of each window, 0..1."""
        ends = starts + self.spec.length
        total: NDArray[np.float64] = self._cumulated[ends] - self._cumulated[starts + self.spec.t_in]
        return total / self.spec.t_out

    def is_wet(self, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each window is wet: its forecast frames' wet share reaches `spec.wet_fraction`."""
        return self.wet_share(starts) >= self.spec.wet_fraction

    @cached_property
    def _draw_weights(self) -> NDArray[np.float64]:
        wet = 1.0 - np.exp(-self.wet_share(self.windows("train")) / max(self.spec.wet_fraction, 1e-6))
        return np.concatenate([np.zeros(1), np.cumsum(self.spec.floor + (1.0 - self.spec.floor) * wet)])

    def draw(self, seed: int, step: int, count: int, *, augment: bool = False) -> list[Window]:
        """The `count` training windows of batch `step`: wet ones more often, a function of (seed, step) alone.

        The draws of a batch are spread evenly over the total weight, which makes batches alike and gradients calmer.

        Args:
            seed: Of the training.
            step: Optimiser step, from 0.
            count: Windows of the batch.
            augment: Also turn and mirror (dihedral group); wind and orography then lose their direction.
        """
        random = np.random.default_rng((seed, step))
        edges, starts = self._draw_weights, self.windows("train")
        points = (np.arange(count) + random.random(count)) / count * edges[-1]
        picks = np.clip(np.searchsorted(edges, points, side="right") - 1, 0, starts.size - 1)
        frames = starts[random.permutation(picks)]
        symmetries = random.integers(0, 8, count) if augment else np.zeros(count, np.int64)
        return [self._place(int(f), random, int(s)) for f, s in zip(frames, symmetries, strict=True)]

    def _place(self, frame: int, random: np.random.Generator, symmetry: int) -> Window:
        if self.spec.crop is None:
            return Window(frame, symmetry=symmetry if self.size[0] == self.size[1] else symmetry // 4 * 4)
        wet = self._block_wetness(frame)
        weights = self.spec.floor + wet.ravel() / max(float(wet.max()), 1e-6)
        block = int(np.searchsorted(np.cumsum(weights), random.random() * weights.sum()))
        corner = [index * BLOCK for index in np.unravel_index(min(block, wet.size - 1), wet.shape)]
        offsets = random.integers(0, max(self.spec.crop - BLOCK, 0) + 1, 2)  # the block lies inside the crop
        y, x = (self._clamp(int(c - o), axis) for axis, (c, o) in enumerate(zip(corner, offsets, strict=True)))
        return Window(frame, y, x, symmetry)

    def _block_wetness(self, frame: int) -> NDArray[np.float64]:
        ahead = self.data.wetness[frame + self.spec.t_in : frame + self.spec.length]
        mean: NDArray[np.float64] = ahead.mean(axis=0, dtype=np.float64)
        return mean

    def _clamp(self, corner: int, axis: int) -> int:
        return min(max(corner, 0), self.data.info.shape[axis] - self.size[axis])

    def held_out(self, split: str, limit: int | None = None, *, wet: bool = False) -> list[Window]:
        """Windows of a split, in time order and evenly thinned to `limit`, each cropped where it is wettest.

        Args:
            split: train, val or test.
            limit: At most so many.
            wet: Wet windows only, where there are any.
        """
        starts = self.windows(split)
        if wet and self.is_wet(starts).any():
            starts = starts[self.is_wet(starts)]
        if limit is not None and starts.size > limit:
            starts = starts[np.linspace(0, starts.size - 1, limit).round().astype(np.int64)]
        return [self._wettest(int(frame)) for frame in starts]

    def _wettest(self, frame: int) -> Window:
        if self.spec.crop is None:
            return Window(frame)
        block = np.unravel_index(int(np.argmax(self._block_wetness(frame))), self.data.wetness.shape[1:])
        centre = [int(index) * BLOCK + BLOCK // 2 - self.size[0] // 2 for index in block]
        return Window(frame, self._clamp(centre[0], 0), self._clamp(centre[1], 1))

    def reader(self) -> WindowReader:
        """A reader of these windows."""
        from tasks.training.loading import WindowReader

        return WindowReader(self)

    def init_time(self, window: Window) -> np.datetime64:
        """Valid time (UTC) of the newest context frame."""
        slot = self.data.slots[window.frame + self.spec.t_in - 1]
        return np.datetime64(self.data.info.time(slot).replace(tzinfo=None), "ns")

    def event(self, window: Window) -> str:
        """When the window's event began."""
        first = int(np.searchsorted(self.events, self.events[window.frame]))
        return f"{self.data.info.time(self.data.slots[first]):%Y-%m-%dT%H:%M}Z"

    def describe(self) -> dict[str, object]:
        """The split in words and numbers, for a training run's `squall.split` tag."""
        used = {name: int(np.sum(self.splits == number)) for number, name in enumerate(SPLITS)}
        return {
            "rule": "by event, dealt to the split whose share of wet frames lags most",
            "frames": {**used, "guard": int(np.sum(self.splits == UNUSED))},
            "windows": {name: len(self.windows(name)) for name in SPLITS},
            "wet_windows": {name: int(self.is_wet(self.windows(name)).sum()) for name in SPLITS},
            "events": int(self.events[-1]) + 1,
            "event_limit_slots": self.rule.limit,
            "guard_slots": self.rule.guard,
            "fractions": list(self.spec.fractions),
            "t_in": self.spec.t_in,
            "t_out": self.spec.t_out,
            "crop": self.spec.crop,
        }
