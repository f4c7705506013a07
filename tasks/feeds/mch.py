"""MeteoSwiss AQC: rain depth of five minutes over Switzerland as the palette indices of a GIF.

An index i of 2..250 is (10^((i - 71.5) / 20) / 316)^(1 / 1.5) mm in 5 min: reflectivity in half-dBZ steps through
Z = 316 R^1.5. Below 2 and above 250 there is no rain; 255 is not observed. Times are year and day of year.

References:
    Germann et al. (2006), doi:10.1256/qj.05.190 (the product and its Z-R).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
import pyproj

from tasks.feeds import FeedSource, FrameRejected, Packing
from tasks.feeds.file_feed import FileFeed, packing_of
from tasks.feeds.frames import Float32, Frames, build_frame, ceiling_of, check_time
from tasks.feeds.images import read_gif

_KEY = re.compile(r"AQC(\d{9})[A-Z]?_\d{5}\.\d{3}\.gif$")
_FIELD = re.compile(r"(\w+)=(\S+)")
_RADARS = ("ALB", "DOE", "MLE", "PPM", "WEI")
_INTERVAL = timedelta(minutes=5)
_A, _B = 316.0, 1.5
_FIRST_WET, _LAST_WET, _MISSING = 2, 250, 255
# Index i is 10 log10(316 R^1.5) = (i - 71.5) / 2 with R in mm per 5 min, and 12 times as much rain per hour.
_STEP = 0.5
_NO_ECHO = -71.5 * _STEP + 10.0 * _B * math.log10(timedelta(hours=1) / _INTERVAL)
_PACKINGS = {
    "rainfall_rate": Packing("uint32", 2.0**-22, 0.0, 4_294_967_295),
    "equivalent_reflectivity_factor": Packing("uint8", _STEP, _NO_ECHO, _MISSING),
}
_SHAPE = (640, 710)
_CRS = pyproj.CRS.from_epsg(21781)
_X = 255_000.0 + 1000.0 * (np.arange(_SHAPE[1], dtype=np.float64) + 0.5)
_Y = 480_000.0 - 1000.0 * (np.arange(_SHAPE[0], dtype=np.float64) + 0.5)


@lru_cache(maxsize=2)
def _table(quantity: str) -> Float32:
    index = np.arange(256)
    wet = (index >= _FIRST_WET) & (index <= _LAST_WET)
    if quantity == "rainfall_rate":
        depth = (10.0 ** ((index - 71.5) / 20.0) / _A) ** (1.0 / _B)
        values = np.where(wet, depth * (timedelta(hours=1) / _INTERVAL), 0.0)
    else:
        values = np.where(wet, index * _STEP + _NO_ECHO, _NO_ECHO)
    return np.where(index == _MISSING, np.nan, values).astype(np.float32)


def _moment(digits: str) -> datetime | None:
    try:
        return datetime.strptime(digits, "%y%j%H%M").replace(tzinfo=UTC)
    except ValueError:
        return None


def _time_of(key: str) -> datetime | None:
    match = _KEY.search(key)
    return _moment(match[1]) if match else None


def _fields(comment: str) -> dict[str, str]:
    """Words of the GIF's comment: product, scale, depth's interval and which radars contributed."""
    return {name: value for name, value in _FIELD.findall(comment) if name not in ("VERSION", "CFG_INFO", "AF")}


def _check(fields: Mapping[str, str], source: FeedSource, key: str) -> datetime:
    product = fields.get("PRDT", "AQC")
    scale, minutes = fields.get("SCALE", "LASSEN8bit"), fields.get("ACCUm", "5")
    if not product.startswith("AQC") or "LASSEN8bit" not in scale or minutes.lstrip("0") != "5":
        raise FrameRejected("wrong_quantity", f"expected AQC, LASSEN8bit, 5 min; got {product}, {scale}, {minutes} min")
    expected = _time_of(key)
    time = _moment(product.removeprefix("AQC")) or expected
    if time is None:
        raise FrameRejected("corrupt", f"neither the comment ({product}) nor {key} tells a time")
    check_time(time, expected, source.cadence / 2, key)
    return time


def _frames_of(source: FeedSource, data: bytes, key: str) -> Frames:
    gif = read_gif(data, source.max_bytes)
    fields = _fields(gif.comment)
    time = _check(fields, source, key)
    if gif.indices.shape != _SHAPE:
        raise FrameRejected("wrong_grid", f"expected {_SHAPE} cells; got {gif.indices.shape}")
    frame = build_frame(
        _table(source.quantity)[gif.indices],
        quantity=source.quantity,
        time=time,
        crs=_CRS,
        x=_X,
        y=_Y,
        ceiling=ceiling_of(source.quantity, packing_of(source, _PACKINGS)),
        no_echo=_NO_ECHO if source.quantity == "equivalent_reflectivity_factor" else None,
        quality={"radars": [name for name in _RADARS if fields.get(name, "0").strip("0")]},
    )
    return [frame]


def open_feed(source: FeedSource) -> FileFeed:
    """MeteoSwiss AQC files under any fsspec root; published about five minutes after the interval's end.

    Rain is packed in steps of 2^-22 mm h-1 (the weakest is 1.2e-3 mm h-1), reflectivity in the source's half dBZ.

    Raises:
        ValueError: another quantity than rain or reflectivity.
    """
    packing = packing_of(source, _PACKINGS)
    return FileFeed(source, packing, timedelta(minutes=5), "LicenseRef-MeteoSwiss", _time_of, _frames_of)
