"""Small archives: a 4 x 5 grid, five-minute slots, frames whose every cell is known."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyproj
import xarray as xr

from tasks.archive.archive import Archive, ArchiveSpec, Received
from tasks.feeds import Packing
from tasks.feeds.frames import build_frame

START = datetime(2026, 1, 1, tzinfo=UTC)
STEP = timedelta(minutes=5)
TENTHS = Packing("uint16", 0.1, 0.0, 65535)
LAEA = pyproj.CRS.from_epsg(3035)


def at(slot: int, seconds: float = 0.0) -> datetime:
    """The time of a slot, or so many seconds beside it."""
    return START + slot * STEP + timedelta(seconds=seconds)


def frame(time: datetime, rain: float = 1.0, shape: tuple[int, int] = (4, 5), cell: float = 1000.0) -> xr.DataArray:
    """Rain everywhere [mm h-1] but in the first cell (not observed) and the second (dry)."""
    values = np.full(shape, rain, np.float32)
    values[0, 0], values[0, 1] = np.nan, 0.0
    return build_frame(
        values,
        quantity="rainfall_rate",
        time=time,
        crs=LAEA,
        x=4e6 + cell * np.arange(shape[1], dtype=np.float64),
        y=3e6 - cell * np.arange(shape[0], dtype=np.float64),
    )


def received(
    time: datetime,
    rain: float = 1.0,
    *,
    key: str | None = None,
    etag: str = "e1",
    arrived: datetime | None = None,
    **options: object,
) -> Received:
    """A frame of `frame` with provenance that follows from its time and rain."""
    content = hashlib.sha256(f"{time} {rain}".encode()).digest()
    return Received(frame(time, rain, **options), key or f"{time:%Y%m%d-%H%M%S}.bin", etag, content, arrived)  # type: ignore[arg-type]


def spec(**changes: object) -> ArchiveSpec:
    """The spec of the frames of `frame`."""
    sample = frame(START)
    fields: dict[str, object] = {
        "domain": "tiny",
        "feed": "test",
        "quantity": "rainfall_rate",
        "cadence": STEP,
        "tolerance": timedelta(seconds=90),
        "start": START,
        "packing": TENTHS,
        "y": sample.y.values,
        "x": sample.x.values,
        "grid_mapping": dict(sample.spatial_ref.attrs),
        "y_attrs": dict(sample.y.attrs),
        "x_attrs": dict(sample.x.attrs),
        "licence": "CC-BY-4.0",
        "no_echo": None,
        "late_after": timedelta(minutes=15),
        "attrs": {"units": "mm h-1", "standard_name": "rainfall_rate", "long_name": "Rainfall rate"},
    }
    return ArchiveSpec(**{**fields, **changes})  # type: ignore[arg-type]


def tiny_archive(path: Path | str, storage: dict[str, object] | None = None, **changes: object) -> Archive:
    """A new archive of `spec`."""
    return Archive.create(str(path), storage or {}, spec(**changes))
