"""Feeds: what objects a source publishes, and how the bytes of one become frames.

A feed is one module of this package with a class that keeps the `Feed` protocol and a module-level
`open_feed(source: FeedSource) -> Feed`. `decode` is pure (no I/O, no clock), so Dask workers may run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib import import_module
from typing import Protocol

import xarray as xr

Frames = list[xr.DataArray]
"""Frames of one object, oldest first."""

KINDS = ("mrms", "fmi", "mch", "knmi", "bom", "odim", "radolan", "meteonet", "taasrad19", "simulated")


class FrameRejected(ValueError):
    """The bytes of an object are not the frame they claim to be.

    The message says what was expected, what came and where; `reason` is a short stable word for tables:
    truncated, corrupt, wrong_grid, wrong_quantity, future, oversized, unreadable, no_data.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


@dataclass(frozen=True)
class FrameObject:
    """One object of a feed's store.

    Attributes:
        key: Path inside the feed's root (never a machine path).
        size: Bytes.
        etag: The store's entity tag, or size and modification time on a local path.
        time: Nominal valid time from the key (aware, UTC, end of interval); the true one is inside the bytes.
    """

    key: str
    size: int
    etag: str
    time: datetime


@dataclass(frozen=True)
class Packing:
    """How a quantity is stored without loss: value = code * scale_factor + add_offset.

    Attributes:
        dtype: numpy name of the unsigned integer code, `uint8`, `uint16` or `uint32`.
        scale_factor: Physical units per code step.
        add_offset: Physical value of code 0 (0 for rain: code 0 is exactly dry).
        fill: Code that means "not observed"; never 0.
    """

    dtype: str
    scale_factor: float
    add_offset: float
    fill: int


@dataclass(frozen=True)
class FeedSource:
    """Where a feed reads from and what of it is wanted.

    Attributes:
        kind: Module of this package.
        url: Any fsspec URL of the feed's root.
        quantity: CF-style name: rainfall_rate [mm h-1], equivalent_reflectivity_factor [dBZ], vil [kg m-2].
        cadence: Nominal step between frames.
        storage: fsspec options (anon, endpoint, ...), already resolved.
        options: Feed-specific words from the domain file (`product` of mrms, `area` of meteonet, ...).
        max_bytes: Ceiling on decoded bytes of one object (decompression bombs).
    """

    kind: str
    url: str
    quantity: str
    cadence: timedelta
    storage: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    max_bytes: int = 2_000_000_000


class Feed(Protocol):
    """What every feed offers; tests/feeds/test_contract.py holds all of them to it."""

    source: FeedSource

    @property
    def packing(self) -> Packing:
        """Lossless packing of this feed's quantity in the archive."""

    @property
    def latency(self) -> timedelta:
        """Typical delay from valid time to availability, used where receipt was not recorded."""

    @property
    def licence(self) -> str:
        """SPDX identifier (or LicenseRef-...) of the data."""

    def list(self, start: datetime, end: datetime) -> list[FrameObject]:
        """Objects whose nominal time lies in [start, end] (aware, UTC), oldest first, without reading them.

        An object holding many frames (a TAASRAD19 sheet) is listed when any of its frames lies in the window.
        """

    def read(self, item: FrameObject) -> bytes:
        """The bytes of one object. Raises FrameRejected(oversized) above the ceiling."""

    def decode(self, data: bytes, key: str) -> Frames:
        """Frames in the bytes, oldest first.

        Each is float32 (y, x), named after the quantity, in mm h-1 | dBZ | kg m-2; NaN = not observed, 0 = dry
        (for reflectivity, no echo is the value of `attrs["no_echo"]`). Scalar coordinates: `time`
        (datetime64[ns], UTC, END of the interval), `lead_time` (timedelta64[ns], 0 for an observation), `member`
        (int, 0), `spatial_ref` (int 0 with CF grid_mapping attributes and crs_wkt). 1-D coordinates y, x (float64,
        cell centres, in the CRS's units with CF attributes; y may descend). attrs: units, standard_name, long_name,
        grid_mapping, `clipped_cells` (int: cells above the physical ceiling, clipped to it), `quality` (JSON str).

        Raises:
            FrameRejected: the bytes are truncated, corrupt, of another quantity or grid, or inflate too far.
        """


def open_feed(source: FeedSource) -> Feed:
    """The feed of `source.kind`.

    Raises:
        ValueError: no such kind.
    """
    if source.kind not in KINDS:
        raise ValueError(f"expected a feed kind of {', '.join(KINDS)}; got {source.kind!r}")
    feed: Feed = import_module(f"tasks.feeds.{source.kind}").open_feed(source)
    return feed
