"""What a training draws its windows from: the samples of an archive, or a published dataset read in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tasks.training.samples import Window


class SampleInfo(Protocol):
    """What the values of the windows are."""

    @property
    def archive_snapshot(self) -> str:
        """Where they come from, exactly: an archive's snapshot id, or `<dataset>-<fingerprint>`."""

    @property
    def quantity(self) -> str:
        """What is measured; its transform brings it into network space."""

    @property
    def cadence_s(self) -> int:
        """Seconds between frames."""

    @property
    def cell_size_m(self) -> float:
        """Side of a grid cell [m]."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells along y, x of a whole frame."""


class Reader(Protocol):
    """Reads windows; picklable, opened in the process that reads."""

    @property
    def samples(self) -> SampleSet:
        """Whose windows."""

    def read(self, windows: Sequence[Window]) -> NDArray[np.float32]:
        """Windows (window, t_in + t_out, y, x) float32 in the quantity's units; NaN = not observed."""
        ...


class SampleSet(Protocol):
    """Windows (t_in, y, x) -> (t_out, y, x) of three splits; which ones make a batch depends on (seed, step) alone."""

    @property
    def info(self) -> SampleInfo:
        """What the values are."""

    @property
    def t_in(self) -> int:
        """Context frames."""

    @property
    def t_out(self) -> int:
        """Forecast frames."""

    @property
    def size(self) -> tuple[int, int]:
        """Cells along y, x of a window."""

    def draw(self, seed: int, step: int, count: int, *, augment: bool = False) -> list[Window]:
        """The `count` training windows of batch `step`, turned and mirrored at random where `augment`."""
        ...

    def held_out(self, split: str, limit: int | None = None, *, wet: bool = False) -> list[Window]:
        """Windows of a split in a fixed order, evenly thinned to `limit`; `wet` ones only, if any are known."""
        ...

    def reader(self) -> Reader:
        """A reader of these windows."""
        ...

    def init_time(self, window: Window) -> np.datetime64:
        """Valid time (UTC) of the newest context frame."""
        ...

    def event(self, window: Window) -> str:
        """Name of the event or sequence that a window belongs to."""
        ...

    def describe(self) -> dict[str, object]:
        """The split in words and numbers."""
        ...
