"""One frame as a DataArray: CF attributes, coordinates and grid mapping, clipped to what rain can be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyproj
import xarray as xr

from tasks.feeds import FrameRejected, Packing
from tasks.grid import grid_coordinates

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Frames = list[xr.DataArray]

_ZERO = timedelta(0)


@dataclass(frozen=True)
class Quantity:
    """CF description of a quantity and the value above which a cell is an error, not weather.

    Attributes:
        units: UDUNITS string.
        standard_name: CF standard name.
        long_name: Words for a plot's axis.
        ceiling: Physical maximum in those units.
    """

    units: str
    standard_name: str
    long_name: str
    ceiling: float


# Highest credible values at kilometre scale: gauges' records over minutes are 400 to 1900 mm h-1, giant hail is
# near 80 dBZ, and vertically integrated liquid stays below 150 kg m-2. Clutter reached 8647 mm h-1 (OPERA, 2018).
QUANTITIES: Mapping[str, Quantity] = {
    "rainfall_rate": Quantity("mm h-1", "rainfall_rate", "Rainfall rate", 1000.0),
    "equivalent_reflectivity_factor": Quantity(
        "dBZ", "equivalent_reflectivity_factor", "Equivalent reflectivity factor", 80.0
    ),
    "vil": Quantity(
        "kg m-2",
        "atmosphere_mass_content_of_liquid_precipitation",
        "Vertically integrated liquid",
        200.0,
    ),
}


def build_frame(
    values: Float32,
    *,
    quantity: str,
    time: datetime,
    crs: pyproj.CRS,
    x: Float64,
    y: Float64,
    lead: timedelta = _ZERO,
    member: int = 0,
    ceiling: float | None = None,
    no_echo: float | None = None,
    quality: Mapping[str, object] | None = None,
) -> xr.DataArray:
    """A frame as `Feed.decode` promises it.

    Args:
        values: (y, x) in the quantity's units; NaN = not observed, 0 (or `no_echo`) = dry.
        quantity: A key of `QUANTITIES`.
        time: Valid time, END of the interval (aware).
        crs: Coordinate reference system of `x` and `y`.
        x: Cell centres (x,), metres or degrees east.
        y: Cell centres (y,), metres or degrees north; may descend.
        lead: Lead time; 0 for an observation.
        member: Ensemble member.
        ceiling: Cells above it are set to it and counted; None takes the quantity's.
        no_echo: Value that stands for "no echo" (reflectivity only).
        quality: What a reader may want to know about this frame; JSON-serialisable.

    Raises:
        ValueError: the values' shape is not (y, x).
    """
    if values.shape != (y.size, x.size):
        raise ValueError(f"expected values of shape {(y.size, x.size)}; got {values.shape}")
    described = QUANTITIES[quantity]
    values, clipped = clip(values, described.ceiling if ceiling is None else ceiling)
    attrs: dict[str, object] = {
        "units": described.units,
        "standard_name": described.standard_name,
        "long_name": described.long_name,
        "grid_mapping": "spatial_ref",
        "clipped_cells": clipped,
        "quality": json.dumps(dict(quality or {}), sort_keys=True),
    }
    if no_echo is not None:
        attrs["no_echo"] = float(no_echo)
    grid = _grid(crs.srs, x.tobytes(), y.tobytes())
    moment = np.datetime64(time.astimezone(UTC).replace(tzinfo=None), "ns")
    scalars = {
        "time": xr.Variable((), moment, {"standard_name": "time"}),
        "lead_time": xr.Variable((), np.timedelta64(lead, "ns"), {"standard_name": "forecast_period"}),
        "member": xr.Variable((), np.int64(member), {"standard_name": "realization"}),
    }
    # The grid's own indexes, built once: aligning them anew would cost more than decoding a small frame.
    coords = xr.Coordinates({**grid.variables, **scalars}, indexes=grid.xindexes)
    return xr.DataArray(values, dims=("y", "x"), coords=coords, name=quantity, attrs=attrs)


def ceiling_of(quantity: str, packing: Packing) -> float:
    """The quantity's physical ceiling, lowered to the nearest value that the packing stores exactly."""
    steps = math.floor((QUANTITIES[quantity].ceiling - packing.add_offset) / packing.scale_factor)
    return steps * packing.scale_factor + packing.add_offset


def clip(values: Float32, ceiling: float) -> tuple[Float32, int]:
    """`values` with cells above `ceiling` set to it, and how many there were; NaN stays NaN."""
    above = values > np.float32(ceiling)
    count = int(np.count_nonzero(above))
    return (np.where(above, np.float32(ceiling), values) if count else values), count


@lru_cache(maxsize=32)
def _grid(srs: str, x: bytes, y: bytes) -> xr.Coordinates:
    crs = pyproj.CRS.from_user_input(srs)
    return xr.Coordinates(grid_coordinates(crs, np.frombuffer(x, np.float64), np.frombuffer(y, np.float64)))


def check_time(found: datetime, expected: datetime | None, tolerance: timedelta, key: str) -> None:
    """Hold the time inside the bytes against the key's; `expected` is None where the key tells none.

    Raises:
        FrameRejected: corrupt, they differ by more than `tolerance`.
    """
    if expected is not None and abs(found - expected) > tolerance:
        raise FrameRejected(
            "corrupt", f"{key} says {expected:%Y-%m-%dT%H:%M:%SZ}, its bytes {found:%Y-%m-%dT%H:%M:%SZ}"
        )
