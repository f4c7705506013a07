"""TAASRAD19's thumbnails: sheets of 32 x 32 frames (PNG, row by row) of maximum reflectivity over Trentino.

A code v is v * 52.5 / 255 dBZ; 0 is no echo. Frame i of sheet k is of date k * 1024 + i in umap_train_dates.json.
Frames span 240 km around the radar on Monte Macaion; cells centred beyond 120.5 km never held an echo in 31,744
frames and every nearer one did, so the former are not observed. Within the circle the source marks no gaps, and
fixed echoes of the Alps remain.

References:
    Franch et al. (2020), doi:10.1038/s41597-020-0574-8 (the data set).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import pyproj

from tasks.feeds import FeedSource, FrameObject, FrameRejected, Packing
from tasks.feeds.file_feed import packing_of
from tasks.feeds.frames import Float32, Frames, build_frame
from tasks.feeds.images import Codes, read_png
from tasks.feeds.listing import Objects, read_key, read_object, stored_objects
from tasks.units import dbz_to_rain

_KEY = re.compile(r"meteotn_tile_solid_(\d{1,6})\.png$")
_SIDE, _ACROSS = 64, 32
_FRAMES = _ACROSS * _ACROSS
_CELL = 3750.0
_RADIUS = 120_500.0
_TOP_DBZ, _TOP_CODE = 52.5, 255
_NO_ECHO = 0.0
_CRS = pyproj.CRS("+proj=aeqd +lat_0=46.4883 +lon_0=11.2106 +ellps=WGS84 +units=m")
_X = (np.arange(_SIDE, dtype=np.float64) - (_SIDE - 1) / 2) * _CELL
_Y = -_X
_OUTSIDE = np.hypot(_X[None, :], _Y[:, None]) > _RADIUS
# All 256 codes of the source are values, so "not observed" needs a wider integer.
_PACKINGS = {
    "equivalent_reflectivity_factor": Packing("uint16", _TOP_DBZ / _TOP_CODE, 0.0, 65_535),
    "rainfall_rate": Packing("uint32", 2.0**-22, 0.0, 4_294_967_295),
}


@lru_cache(maxsize=2)
def _table(quantity: str) -> Float32:
    dbz = (np.arange(256) * _TOP_DBZ / _TOP_CODE).astype(np.float32)
    return dbz if quantity == "equivalent_reflectivity_factor" else dbz_to_rain(dbz, no_echo=_NO_ECHO)


@dataclass
class Taasrad19Feed:
    """TAASRAD19's sheets and their dates (option `dates`: another file's name) under any fsspec root."""

    source: FeedSource

    @property
    def packing(self) -> Packing:
        """Reflectivity in the source's own step; rain (Marshall-Palmer) in steps of 2^-22 mm h-1."""
        return packing_of(self.source, _PACKINGS)

    @property
    def latency(self) -> timedelta:
        """What a live feed of this kind would take; the data set itself came years later."""
        return timedelta(minutes=5)

    @property
    def licence(self) -> str:
        """Not stated beside the sheets."""
        return "LicenseRef-TAASRAD19"

    @cached_property
    def dates(self) -> npt.NDArray[np.datetime64]:
        """Times (UTC, s) of all frames of all sheets, read once; they travel with the pickled feed.

        Raises:
            FileNotFoundError: no such list beside the sheets.
            FrameRejected: no list of dates (corrupt), or oversized.
        """
        name = self.source.options.get("dates", "umap_train_dates.json")
        try:
            dates = np.array(json.loads(read_key(self.source, name)), "datetime64[s]")
        except (ValueError, TypeError, RecursionError) as error:
            if isinstance(error, FrameRejected):
                raise
            raise FrameRejected("corrupt", f"{name}: {error}") from error
        if dates.ndim != 1 or np.isnat(dates).any():
            raise FrameRejected("corrupt", f"{name}: expected a list of dates; got shape {dates.shape}")
        return dates

    def list(self, start: datetime, end: datetime) -> Objects:
        """Sheets with any frame in [start, end]; a sheet's time is its last frame's, when it is complete."""
        first, last = _stamp(start), _stamp(end)
        items = []
        for stored in stored_objects(self.source):
            match = _KEY.search(stored.key)
            dates = self._sheet_dates(int(match[1])) if match else self.dates[:0]
            if np.any((dates >= first) & (dates <= last)):
                items.append(FrameObject(stored.key, stored.size, stored.etag, _moment(dates.max())))
        return sorted(items, key=lambda item: (item.time, item.key))

    def read(self, item: FrameObject) -> bytes:
        """The bytes of one sheet."""
        return read_object(self.source, item)

    def decode(self, data: bytes, key: str) -> Frames:
        """The frames of a sheet, oldest first; of frames with the same date the first is kept and counts the others.

        Raises:
            FrameRejected: truncated, corrupt, wrong_quantity, wrong_grid, oversized, or no_data (no dates).
        """
        match = _KEY.search(key)
        dates = self._sheet_dates(int(match[1])) if match else self.dates[:0]
        if dates.size == 0:
            raise FrameRejected("no_data", f"no dates are known for {key}")
        codes = _tiles(read_png(data, self.source.max_bytes))[: dates.size]
        if codes[:, _OUTSIDE].any():
            raise FrameRejected("corrupt", f"{key} has echoes beyond the radar's circle")
        values = _table(self.source.quantity)[codes]
        values[:, _OUTSIDE] = np.nan
        saturated = np.count_nonzero(codes == _TOP_CODE, axis=(1, 2))
        _, order, counts = np.unique(dates, return_index=True, return_counts=True)
        return [
            build_frame(
                values[index],
                quantity=self.source.quantity,
                time=_moment(dates[index]),
                crs=_CRS,
                x=_X,
                y=_Y,
                no_echo=_NO_ECHO if self.source.quantity == "equivalent_reflectivity_factor" else None,
                quality={
                    "index": int(index),
                    "saturated_cells": int(saturated[index]),
                    "others_of_this_date": int(count) - 1,
                },
            )
            for index, count in zip(order, counts, strict=True)
        ]

    def _sheet_dates(self, sheet: int) -> npt.NDArray[np.datetime64]:
        return self.dates[sheet * _FRAMES : (sheet + 1) * _FRAMES]


def _stamp(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def _moment(stamp: np.datetime64) -> datetime:
    return datetime.fromtimestamp(int(stamp.astype("datetime64[s]").astype(np.int64)), UTC)


def _tiles(pixels: Codes) -> Codes:
    """(frame, y, x) codes of a sheet's pixels."""
    side = _SIDE * _ACROSS
    if pixels.shape[:2] != (side, side):
        raise FrameRejected("wrong_grid", f"expected a sheet of {side} x {side} pixels; got {pixels.shape[:2]}")
    codes = pixels if pixels.ndim == 2 else pixels[..., 0]
    if pixels.ndim == 3 and any(not np.array_equal(codes, pixels[..., band]) for band in (1, 2)):
        raise FrameRejected("wrong_quantity", "expected grey pixels; got colours")
    sheet = codes.reshape(_ACROSS, _SIDE, _ACROSS, _SIDE).transpose(0, 2, 1, 3)
    return sheet.reshape(_FRAMES, _SIDE, _SIDE)


def open_feed(source: FeedSource) -> Taasrad19Feed:
    """TAASRAD19's sheets under any fsspec root.

    Raises:
        ValueError: another quantity than reflectivity or rain.
    """
    packing_of(source, _PACKINGS)
    return Taasrad19Feed(source)
