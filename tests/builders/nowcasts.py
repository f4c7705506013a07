"""Small domains, archives and contexts of moving rain for tests of contexts, ladders and products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyproj
from numpy.typing import NDArray

from infra.settings import (
    ArchiveSettings,
    ContextSettings,
    Domain,
    FeedSettings,
    ForecastSettings,
    ProductSettings,
)
from tasks.archive.archive import Archive, ArchiveSpec, Received
from tasks.feeds import Packing
from tasks.feeds.frames import build_frame
from tasks.forecasting.context import Context, build_context
from tasks.grid import grid_coordinates

START = datetime(2016, 9, 28, 15, 0, tzinfo=UTC)
STEP = timedelta(minutes=5)
LATENCY = timedelta(seconds=90)
CRS = pyproj.CRS.from_epsg(3067)
PACKING = Packing("uint32", 2.0**-22, 0.0, 2**32 - 1)

Frames = NDArray[np.float32]


def slot_time(step: int) -> datetime:
    """Time of the slot `step` steps after START."""
    return START + step * STEP


def small_domain(root: Path, *, frames: int = 5, lead_times: int = 12, max_missing: int = 1) -> Domain:
    """A domain of five-minute rain whose archive and products lie below `root`."""
    return Domain(
        name="meadow",
        title="A meadow",
        feed=FeedSettings(kind="fmi", url=str(root), cadence="5min", tolerance="90s"),
        archive=ArchiveSettings(url=f"{root}/archive"),
        context=ContextSettings(frames=frames, max_missing=max_missing, max_age="15min"),
        forecast=ForecastSettings(lead_times=lead_times, ladder=("extrapolation", "persistence")),
        product=ProductSettings(url=f"{root}/store", thresholds=(0.5, 1, 5), retention="7d"),
    )


def moving_rain(
    steps: int,
    shape: tuple[int, int] = (64, 72),
    velocity: tuple[float, float] = (2.0, 1.0),
    origin: tuple[int, int] = (0, 0),
) -> Frames:
    """(time, y, x) [mm h-1]: three smooth cells that move `velocity` (x, y) cells a step, dry around them."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float64)
    out = np.zeros((steps, *shape), np.float32)
    for column, row, width, peak in ((12, 14, 4.0, 20.0), (30, 40, 5.0, 10.0), (20, 28, 3.0, 30.0)):
        for step in range(steps):
            dx = columns - origin[0] - column - velocity[0] * step
            dy = rows - origin[1] - row - velocity[1] * step
            out[step] += peak * np.exp(-(dx**2 + dy**2) / (2 * width**2))
    out[out < 0.05] = 0
    return out


def write_archive(
    domain: Domain, frames: Mapping[int, Frames] | Sequence[Frames], received: Mapping[int, datetime] | None = None
) -> Archive:
    """An archive that holds `frames` (slot -> (y, x) mm h-1), received when `received` says, else not recorded."""
    held = dict(enumerate(frames)) if not isinstance(frames, Mapping) else dict(frames)
    shape = next(iter(held.values())).shape
    y, x = 7_000_000.0 - 1000.0 * np.arange(shape[0]), 100_000.0 + 1000.0 * np.arange(shape[1])
    grid = grid_coordinates(CRS, x, y)
    spec = ArchiveSpec(
        domain=domain.name,
        feed="fmi",
        quantity="rainfall_rate",
        cadence=STEP,
        tolerance=timedelta(seconds=90),
        start=START - timedelta(hours=2),
        packing=PACKING,
        y=y,
        x=x,
        grid_mapping=dict(grid["spatial_ref"].attrs),
        y_attrs=dict(grid["y"].attrs),
        x_attrs=dict(grid["x"].attrs),
        licence="CC-BY-4.0",
        no_echo=None,
        late_after=timedelta(minutes=15),
        attrs={"units": "mm h-1", "standard_name": "rainfall_rate", "long_name": "Rainfall rate"},
    )
    archive = Archive.create(domain.archive.url, {}, spec)
    archive.write(
        [
            Received(
                build_frame(values, quantity="rainfall_rate", time=slot_time(step), crs=CRS, x=x, y=y),
                f"frame-{step}",
                f"tag-{step}",
                bytes([step % 256]) * 32,
                (received or {}).get(step),
            )
            for step, values in held.items()
        ]
    )
    return archive


def newest_context(domain: Domain, archive: Archive, last: int, *, wait: timedelta = LATENCY) -> Context:
    """The context known `wait` after slot `last`."""
    return build_context(archive, domain, slot_time(last) + wait, latency=LATENCY)
