"""MeteoNet's five-minute rain depth over a quarter of France: ten days of frames in one npz, gaps listed beside them.

A code is 0.01 mm in 5 min; -1 is not observed. Slots of `miss_dates` have no frame and none is made up. The data set
does not say which end of the interval its dates mark; they are taken as its END, as everywhere here.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyproj

from tasks.feeds import FeedSource, FrameObject, FrameRejected, Packing
from tasks.feeds.bounded import unzip
from tasks.feeds.file_feed import packing_of
from tasks.feeds.frames import Float32, Float64, Frames, build_frame, ceiling_of
from tasks.feeds.listing import Objects, read_key, read_object, stored_objects
from tasks.feeds.npz import read_header, read_moments, read_numbers

_KEY = re.compile(r"rainfall_(NW|SE)_(\d{4})_(\d{2})\.([123])\.npz$")
_DEPTH_STEP = 0.01
_MISSING = -1
_CRS = pyproj.CRS.from_epsg(4326)
_DAY = timedelta(days=1)
# The north-western quarter's cells, used where radar_coords_NW.npz is not beside the data.
_NORTH_WEST = (51.891, -5.837, 0.01, 565, 784)


@dataclass(frozen=True)
class _Span:
    """Area of a file, and its first and last slot."""

    area: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class _Axes:
    """Latitudes (y,) from north to south and longitudes (x,) of the cells, degrees."""

    y: Float64
    x: Float64


def _packings(source: FeedSource) -> dict[str, Packing]:
    return {"rainfall_rate": Packing("uint16", _DEPTH_STEP * (timedelta(hours=1) / source.cadence), 0.0, 65_535)}


def _span(key: str, cadence: timedelta) -> _Span | None:
    match = _KEY.search(key)
    if match is None or not 1 <= int(match[3]) <= 12 or match[2] == "0000":
        return None
    year, month, third = int(match[2]), int(match[3]), int(match[4])
    first = datetime(year, month, 10 * third - 9, tzinfo=UTC)
    days = 10 if third < 3 else calendar.monthrange(year, month)[1] - 20
    return _Span(match[1], first, first + days * _DAY - cadence)


@lru_cache(maxsize=2)
def _table(scale: float) -> Float32:
    # Indexed by the code's bits as uint16: the upper half stands for negative codes.
    return np.where(np.arange(65_536) < 32_768, np.arange(65_536) * scale, np.nan).astype(np.float32)


@dataclass
class MeteonetFeed:
    """MeteoNet's rain files of one area (option `area`: NW or SE) under any fsspec root."""

    source: FeedSource

    @property
    def packing(self) -> Packing:
        """The source's own step: 0.01 mm per cadence."""
        return packing_of(self.source, _packings(self.source))

    @property
    def latency(self) -> timedelta:
        """What a live feed of this kind would take; the data set itself came years later."""
        return timedelta(minutes=5)

    @property
    def licence(self) -> str:
        """Open Licence 2.0."""
        return "etalab-2.0"

    @property
    def area(self) -> str:
        """Quarter of France."""
        return self.source.options.get("area", "NW")

    @cached_property
    def axes(self) -> _Axes:
        """Cell centres from radar_coords_<area>.npz, read once; it travels with the pickled feed.

        Raises:
            FrameRejected: wrong_grid, no such file and an area other than NW, or cells off a regular grid.
        """
        name = f"radar_coords_{self.area}.npz"
        keys = [item.key for item in stored_objects(self.source) if item.key.endswith(name)]
        if not keys and self.area == "NW":
            north, west, step, ny, nx = _NORTH_WEST
            return _Axes(north - step * np.arange(ny, dtype=np.float64), west + step * np.arange(nx, dtype=np.float64))
        if not keys:
            raise FrameRejected("wrong_grid", f"expected {name} beside the data of area {self.area}")
        members = unzip(read_key(self.source, keys[0]), self.source.max_bytes)
        lats, lons = (np.asarray(read_numbers(_member(members, axis), axis), np.float64) for axis in ("lats", "lons"))
        if lats.ndim != 2 or lats.shape != lons.shape or np.ptp(lats, axis=1).any() or np.ptp(lons, axis=0).any():
            raise FrameRejected("wrong_grid", f"{name} is no regular latitude-longitude grid")
        return _Axes(lats[:, 0].copy(), lons[0].copy())

    def list(self, start: datetime, end: datetime) -> Objects:
        """Files whose ten days meet [start, end]; an object's time is its last slot, when it is complete."""
        _ = self.axes
        items = []
        for stored in stored_objects(self.source):
            span = _span(stored.key, self.source.cadence)
            if span is not None and span.area == self.area and span.start <= end and start <= span.end:
                items.append(FrameObject(stored.key, stored.size, stored.etag, span.end))
        return sorted(items, key=lambda item: (item.time, item.key))

    def read(self, item: FrameObject) -> bytes:
        """The bytes of one file."""
        return read_object(self.source, item)

    def decode(self, data: bytes, key: str) -> Frames:
        """All frames of a file, oldest first; a listed missing slot is simply absent.

        Raises:
            FrameRejected: truncated, corrupt, wrong_quantity, wrong_grid or oversized.
        """
        members = unzip(data, self.source.max_bytes)
        codes = self._codes(members)
        moments = read_moments(_member(members, "dates"), "dates")
        _check_moments(moments, codes.shape[0], _span(key, self.source.cadence), key)
        listed, _, _ = read_header(_member(members, "miss_dates"), "miss_dates")
        table, ceiling = _table(self.packing.scale_factor), ceiling_of(self.source.quantity, self.packing)
        quality = {"slots_listed_missing": int(np.prod(listed))}
        return [
            build_frame(
                table[code.view(np.uint16)],
                quantity=self.source.quantity,
                time=moment,
                crs=_CRS,
                x=self.axes.x,
                y=self.axes.y,
                ceiling=ceiling,
                quality=quality,
            )
            for code, moment in zip(codes, moments, strict=True)
        ]

    def _codes(self, members: dict[str, bytes]) -> npt.NDArray[np.int16]:
        codes = read_numbers(_member(members, "data"), "data")
        shape = (self.axes.y.size, self.axes.x.size)
        if codes.dtype != np.int16:
            raise FrameRejected("wrong_quantity", f"expected int16 depths; got {codes.dtype}")
        if codes.shape[1:] != shape:
            raise FrameRejected("wrong_grid", f"expected frames of {shape} cells; got {codes.shape[1:]}")
        depths = np.asarray(codes, np.int16)
        if depths.size and int(depths.min()) < _MISSING:
            raise FrameRejected("corrupt", f"expected codes of -1 and above; got {depths.min()}")
        return depths


def _member(members: dict[str, bytes], name: str) -> bytes:
    if f"{name}.npy" not in members:
        raise FrameRejected("wrong_quantity", f"expected an array {name}; got {sorted(members)}")
    return members[f"{name}.npy"]


def _check_moments(moments: list[datetime], frames: int, span: _Span | None, key: str) -> None:
    if len(moments) != frames:
        raise FrameRejected("corrupt", f"{frames} frames have {len(moments)} dates")
    if any(later <= earlier for earlier, later in pairwise(moments)):
        raise FrameRejected("corrupt", f"the dates of {key} do not increase")
    if span is not None and moments and not (span.start <= moments[0] and moments[-1] <= span.end):
        raise FrameRejected("corrupt", f"dates {moments[0]} to {moments[-1]} are outside {key}'s days")


def open_feed(source: FeedSource) -> MeteonetFeed:
    """MeteoNet's rain files under any fsspec root.

    Raises:
        ValueError: another quantity than rain, or another area than NW and SE.
    """
    packing_of(source, _packings(source))
    if source.options.get("area", "NW") not in ("NW", "SE"):
        raise ValueError(f"expected area NW or SE; got {source.options['area']!r}")
    return MeteonetFeed(source)
