"""Simulated rain in MRMS's own file format and key layout, read by the decoder of the live feed."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyproj

from tasks.feeds import FeedSource
from tasks.feeds.grib import Header, encode_field
from tasks.feeds.mrms import PRODUCTS, MrmsFeed, object_key, product_of
from tasks.simulation import simulate

Float32 = npt.NDArray[np.float32]

_PRODUCT = PRODUCTS["PrecipRate"]
_CENTRE = (40.0, -97.0)
_IAU_1965 = pyproj.CRS.from_user_input("+proj=longlat +a=6378160 +b=6356775 +no_defs +type=crs")


def open_feed(source: FeedSource) -> MrmsFeed:
    """The simulator's frames at `source`: MRMS's feed without a network's delay.

    Raises:
        ValueError: a quantity other than rainfall_rate.
    """
    return MrmsFeed(source, product_of(source), latency=timedelta(0))


def write_frame(time: datetime, rain: Float32, cell_size_m: float = 1000.0) -> tuple[str, bytes]:
    """Key and bytes (.grib2.gz) of one frame.

    Args:
        time: Valid time, whole seconds (aware).
        rain: Rate (y, x) [mm h-1], rows from north to south; NaN becomes MRMS's flag for no coverage. Rates are
            rounded to MRMS's step of 0.1, a wet cell never to dry.
        cell_size_m: Side of a cell at the grid's centre.
    """
    wet = np.maximum(np.round(rain.astype(np.float64), 1), np.where(rain > 0, 0.1, 0.0))
    values = np.where(np.isnan(rain), _PRODUCT.no_coverage, wet)
    south, east = _steps(cell_size_m)
    ny, nx = rain.shape
    header = Header(
        parameter=_PRODUCT.parameter,
        time=time.astimezone(UTC),
        resolution=_PRODUCT.packing.scale_factor,
        reference=0.0,
        crs=_IAU_1965,
        latitude=_CENTRE[0] + south * ((ny - 1) / 2.0 - np.arange(ny)),
        longitude=_CENTRE[1] + east * (np.arange(nx) - (nx - 1) / 2.0),
    )
    # No time stamp in the gzip header: the same frame gives the same bytes.
    return object_key(_PRODUCT, time), gzip.compress(encode_field(values, header), compresslevel=1, mtime=0)


@lru_cache(maxsize=8)
def _steps(cell_size_m: float) -> tuple[float, float]:
    """Whole microdegrees of latitude and longitude, in degrees, that a cell spans at the grid's centre."""
    latitude, longitude = _CENTRE
    geod = pyproj.Geod(a=6378160, b=6356775)
    metres_south = geod.inv(longitude, latitude - 0.5, longitude, latitude + 0.5)[2]
    metres_east = geod.inv(longitude - 0.05, latitude, longitude + 0.05, latitude)[2] * 10.0
    return round(cell_size_m / metres_south, 6), round(cell_size_m / metres_east, 6)


def simulated_objects(
    start: datetime,
    steps: int,
    cadence: timedelta,
    shape: tuple[int, int] = (256, 256),
    cell_size_m: float = 1000.0,
    seed: int = 0,
) -> Iterator[tuple[datetime, str, bytes]]:
    """(time, key, bytes) of each simulated frame: what fills a bucket as MRMS would."""
    for time, rain in simulate(start, steps, cadence, shape, cell_size_m, seed):
        yield time, *write_frame(time, rain, cell_size_m)
