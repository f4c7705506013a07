"""What the feed contract suite must know of one kind: valid bytes, their frames by hand, and ways to break them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tasks.feeds import Feed, FeedSource, open_feed


@dataclass(frozen=True)
class FeedCase:
    """One kind (or product of a kind) under the contract.

    Attributes:
        kind: As in tasks.feeds.KINDS.
        quantity: As in FeedSource.
        cadence: Nominal step.
        key_of: Key of an object whose nominal time is the argument.
        time: Nominal time of the built object (its last frame's, where it holds many).
        build: Valid bytes of the object `key_of(time)`, as small as the format allows.
        times: Valid times of its frames, oldest first.
        expected: (frame, y, x) float32 values of its frames, written down without the feed's code; holds NaN, dry
            and wet cells.
        dry: Value of a dry cell (0, or the no-echo value of reflectivity).
        wrong_quantity: Bytes of another quantity in the same format.
        wrong_grid: Bytes of the right quantity on an inconsistent or foreign grid.
        bomb: Bytes that declare or inflate to more than `bomb_ceiling` bytes.
        bomb_ceiling: FeedSource.max_bytes of the bomb test; valid bytes stay below it.
        checksummed: Every bit of the values is under a checksum of the format.
        spans: An object holds many frames: it is listed when any of them lies in the window.
        leads: Lead times of the frames; empty: all are observations.
        options: FeedSource.options.
        beside: Other files under the root that the feed needs, by key.
    """

    kind: str
    quantity: str
    cadence: timedelta
    key_of: Callable[[datetime], str]
    time: datetime
    build: Callable[[], bytes]
    times: tuple[datetime, ...]
    expected: Callable[[], npt.NDArray[np.float32]]
    wrong_quantity: Callable[[], bytes]
    wrong_grid: Callable[[], bytes]
    bomb: Callable[[], bytes]
    bomb_ceiling: int
    dry: float = 0.0
    checksummed: bool = True
    spans: bool = False
    leads: tuple[timedelta, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    beside: Callable[[], Mapping[str, bytes]] = dict

    @property
    def key(self) -> str:
        """Key of the built object."""
        return self.key_of(self.time)

    def open(self, root: Path, max_bytes: int = 2_000_000_000) -> Feed:
        """The feed over `root`, with the files that it needs beside its objects."""
        for key, data in self.beside().items():
            self.put(root, key, data)
        return open_feed(
            FeedSource(self.kind, str(root), self.quantity, self.cadence, options=self.options, max_bytes=max_bytes)
        )

    def put(self, root: Path, key: str, data: bytes) -> None:
        """Write one object under `root`."""
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
