"""A published dataset as its papers cut it: whole sequences, dealt to splits, windows at fixed strides within each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Raw = NDArray[Any]


@dataclass(frozen=True)
class DatasetInfo:
    """What the sequences of a dataset hold.

    Attributes:
        dataset: Its name, `sevir`.
        archive_snapshot: `<dataset>-<fingerprint>`: changes with the list of sequences.
        quantity: vil_code [0..255], sea_surface_temperature [anomaly, K] or brightness [0..1].
        cadence_s: Seconds between frames.
        cell_size_m: Side of a grid cell.
        shape: Cells along y, x.
    """

    dataset: str
    archive_snapshot: str
    quantity: str
    cadence_s: int
    cell_size_m: float
    shape: tuple[int, int]


class Sequences(Protocol):
    """A dataset of sequences; picklable, holds no open file when pickled."""

    @property
    def info(self) -> DatasetInfo:
        """What they hold."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(sequence,) frames of each."""

    @property
    def splits(self) -> Mapping[str, NDArray[np.int64]]:
        """Numbers of the sequences of train, val and test, in the dataset's order."""

    @property
    def strides(self) -> Mapping[str, int]:
        """Frames between the starts of two windows of a sequence, by split."""

    def read(self, sequence: int) -> Raw:
        """One whole sequence (frame, y, x) as stored, in one read.

        Raises:
            DatasetError: the file is missing, damaged, or not what the dataset's layout says.
        """
        ...

    def values(self, raw: Raw) -> NDArray[np.float32]:
        """Frames as read -> float32 in the quantity's units."""
        ...

    def start(self, sequence: int) -> np.datetime64:
        """Valid time (UTC) of a sequence's first frame."""
        ...

    def name(self, sequence: int) -> str:
        """What the dataset calls the sequence."""
        ...


class DatasetError(ValueError):
    """A file of a dataset is missing, damaged or laid out in another way; the message names file and key."""


def fingerprint(dataset: str, *facts: object) -> str:
    """`<dataset>-<12 hex digits>` of all that decides which windows there are."""
    return f"{dataset}-{sha256(repr(facts).encode()).hexdigest()[:12]}"


def window_starts(length: int, span: int, stride: int) -> NDArray[np.int64]:
    """First frames of the windows of `span` frames in a sequence of `length`: 0, stride, 2 stride, ..."""
    return np.arange(0, max(length - span + 1, 0), stride, dtype=np.int64)
