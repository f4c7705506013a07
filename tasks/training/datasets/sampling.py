"""Windows of a published dataset for a training: every window once per epoch, every sequence read once for it.

An epoch permutes the sequences, takes them in blocks that fit the reader's cache, and permutes the windows within a
block: neighbouring windows of one event land in different batches, and a decoded event serves all its windows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.training.datasets.sequences import DatasetInfo, Raw, Sequences, window_starts
from tasks.training.events import SPLITS
from tasks.training.loading import turn
from tasks.training.samples import SampleSpec, Window

BLOCK = 64  # sequences whose windows are mixed; 64 events of SEVIR are 460 MB of bytes
BLOCK_BYTES = 512 * 2**20


class DatasetSamples:
    """The windows of a dataset in the shape a model wants; `Window.frame` counts all sequences laid end to end."""

    def __init__(self, sequences: Sequences, spec: SampleSpec) -> None:
        """Cut the windows at the dataset's strides; of `spec` only t_in, t_out and crop count.

        Raises:
            ValueError: no training window of that length, or the crop is larger than a frame.
        """
        if spec.crop is not None and spec.crop > min(sequences.info.shape):
            raise ValueError(f"expected a crop of at most {min(sequences.info.shape)} cells; got {spec.crop}")
        self.sequences, self.spec = sequences, spec
        self.offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sequences.lengths, dtype=np.int64)])
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}
        if not self.windows("train").size:
            longest = int(sequences.lengths.max(initial=0))
            raise ValueError(
                f"expected training sequences of {spec.length} frames or more in {sequences.info.dataset}; "
                f"got {sequences.splits['train'].size} sequences, the longest of {longest}"
            )

    @property
    def info(self) -> DatasetInfo:
        """What the values are."""
        return self.sequences.info

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
        """Cells along y, x of a window."""
        return (self.spec.crop, self.spec.crop) if self.spec.crop else self.info.shape

    def windows(self, split: str) -> NDArray[np.int64]:
        """First frames of all windows of a split, sequence by sequence."""
        return self._windows[split]

    @cached_property
    def _windows(self) -> dict[str, NDArray[np.int64]]:
        none = [np.zeros(0, np.int64)]
        return {
            split: np.concatenate(none + [self._starts(int(number), split) for number in self.sequences.splits[split]])
            for split in SPLITS
        }

    def _starts(self, sequence: int, split: str) -> NDArray[np.int64]:
        length, stride = int(self.sequences.lengths[sequence]), self.sequences.strides[split]
        return window_starts(length, self.spec.length, stride) + int(self.offsets[sequence])

    def sequence_of(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the sequences that frames belong to."""
        return np.asarray(np.searchsorted(self.offsets, frames, side="right") - 1, np.int64)

    @cached_property
    def block(self) -> int:
        """Sequences of a block: as many as fit the cache, at most 64."""
        frame = self.info.shape[0] * self.info.shape[1] * (1 if self.info.quantity == "vil_code" else 4)
        return int(np.clip(BLOCK_BYTES // (frame * max(int(self.sequences.lengths.max()), 1)), 1, BLOCK))

    def epoch(self, seed: int, number: int) -> NDArray[np.int64]:
        """All training windows in the order of epoch `number`."""
        random = np.random.default_rng((seed, number, self.windows("train").size))
        starts = self.windows("train")
        members, sequence = np.unique(self.sequence_of(starts), return_inverse=True)
        block = random.permutation(members.size)[sequence] // self.block
        order = np.lexsort((random.random(starts.size), block))
        return np.asarray(starts[order], np.int64)

    def draw(self, seed: int, step: int, count: int, *, augment: bool = False) -> list[Window]:
        """The `count` training windows of batch `step`; epochs follow each other without a remainder."""
        total = self.windows("train").size
        numbers, places = np.divmod(np.arange(step * count, (step + 1) * count), total)
        frames = [int(self._order(seed, int(number))[place]) for number, place in zip(numbers, places, strict=True)]
        random = np.random.default_rng((seed, step, count))
        square = self.size[0] == self.size[1]
        turns = random.integers(0, 8, count) if augment else np.zeros(count, np.int64)
        room = np.subtract(self.info.shape, self.size) + 1
        corners = random.integers(0, room, (count, 2))
        return [
            Window(frame, int(y), int(x), int(s) if square else int(s) // 4 * 4)
            for frame, (y, x), s in zip(frames, corners, turns, strict=True)
        ]

    def _order(self, seed: int, number: int) -> NDArray[np.int64]:
        if (seed, number) not in self._orders:
            while len(self._orders) > 1:  # a batch spans two epochs at most, or a handful of tiny ones
                self._orders.pop(next(iter(self._orders)))
            self._orders[seed, number] = self.epoch(seed, number)
        return self._orders[seed, number]

    def held_out(self, split: str, limit: int | None = None, *, wet: bool = False) -> list[Window]:
        """Windows of a split in the dataset's order, evenly thinned to `limit`, cropped in the middle.

        A dataset has no index of wet windows: `wet` changes nothing.
        """
        starts = self.windows(split)
        if limit is not None and starts.size > limit:
            starts = starts[np.linspace(0, starts.size - 1, limit).round().astype(np.int64)]
        y, x = ((whole - part) // 2 for whole, part in zip(self.info.shape, self.size, strict=True))
        return [Window(int(frame), y, x) for frame in starts]

    def reader(self) -> SequenceReader:
        """A reader with a cache of one block and what the next batch needs of the block after it."""
        return SequenceReader(self)

    def init_time(self, window: Window) -> np.datetime64:
        """Valid time of the newest context frame."""
        sequence = int(self.sequence_of(np.array([window.frame]))[0])
        frames = window.frame - int(self.offsets[sequence]) + self.spec.t_in - 1
        elapsed = np.timedelta64(frames * self.info.cadence_s, "s")
        newest: np.datetime64 = self.sequences.start(sequence) + elapsed
        return newest

    def event(self, window: Window) -> str:
        """Name of the sequence."""
        return self.sequences.name(int(self.sequence_of(np.array([window.frame]))[0]))

    def describe(self) -> dict[str, object]:
        """The split in words and numbers."""
        splits = self.sequences.splits
        return {
            "rule": f"as published for {self.info.dataset}",
            "sequences": {split: int(splits[split].size) for split in SPLITS},
            "windows": {split: int(self.windows(split).size) for split in SPLITS},
            "strides": dict(self.sequences.strides),
            "t_in": self.spec.t_in,
            "t_out": self.spec.t_out,
            "crop": self.spec.crop,
        }


class SequenceReader:
    """Windows as physical values; keeps the sequences it read last, as stored."""

    def __init__(self, samples: DatasetSamples) -> None:
        self.samples = samples
        self.reads = 0
        self._cache: OrderedDict[int, Raw] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict(), "reads": 0}

    def read(self, windows: Sequence[Window]) -> NDArray[np.float32]:
        """Windows (window, t_in + t_out, y, x) float32 in the quantity's units; NaN = not observed.

        Raises:
            DatasetError: a file is missing, damaged, or laid out in another way.
        """
        samples, (rows, columns) = self.samples, self.samples.size
        fields = np.empty((len(windows), samples.spec.length, rows, columns), np.float32)
        for field, window in zip(fields, windows, strict=True):
            sequence = int(samples.sequence_of(np.array([window.frame]))[0])
            first = window.frame - int(samples.offsets[sequence])
            raw = self._sequence(sequence)[first : first + samples.spec.length]
            cut = raw[:, window.y : window.y + rows, window.x : window.x + columns]
            field[:] = samples.sequences.values(turn(cut, window.symmetry))
        return fields

    def _sequence(self, number: int) -> Raw:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        self.reads += 1
        self._cache[number] = self.samples.sequences.read(number)
        while len(self._cache) > self.samples.block:
            self._cache.popitem(last=False)
        return self._cache[number]
