"""What was known at a moment: which of an archive's frames had been received by then, and which of them are usable.

A frame that observes nothing, next to nothing, or turns wholly dry at once where it rained is as good as missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tasks.archive.epochs import Status
from tasks.archive.slots import as_datetime

Field = NDArray[np.float32]
Rule = Literal["received_at", "valid_time + latency", "both"]

WET = {"rainfall_rate": 0.1, "equivalent_reflectivity_factor": 7.0, "vil": 0.1}
"""Values from which a cell counts as wet, in the quantity's units (0.1 mm h-1 is 7 dBZ by Marshall and Palmer)."""

# Shares of the usual coverage below which a frame is flagged, and below which it counts as missing.
_FLAGGED, _UNOBSERVED = 0.5, 0.1
# A frame without one wet cell within two steps of one with this share of wet cells is an outage, not weather.
_SUDDENLY_DRY = 0.05


@dataclass(frozen=True)
class ContextFrame:
    """One slot of the context.

    Attributes:
        time: The slot (aware, UTC, end of interval).
        age: From its true valid time to the moment asked for.
        status: The archive's word: present, late, corrected, missing, ...
        source_key: Object that it was decoded from; empty for none.
        interpolated: Whether it was filled in from its neighbours.
        coverage: Share of observed cells in the archive's frame.
    """

    time: datetime
    age: timedelta
    status: str
    source_key: str
    interpolated: bool
    coverage: float


@dataclass(frozen=True)
class Known:
    """Slots of a window as known at a moment.

    Attributes:
        data: (time, y, x) float32 in the quantity's units, as archived; NaN = not observed.
        slots: One entry per step of `data`.
        usable: Whether the step holds a frame to build on; where not, what `data` says does not count.
        notes: One sentence per frame that was flagged.
        rule: How receipt was decided.
    """

    data: xr.DataArray
    slots: tuple[ContextFrame, ...]
    usable: tuple[bool, ...]
    notes: tuple[str, ...]
    rule: Rule


def _received(stored: xr.Dataset, at: datetime, latency: timedelta) -> tuple[NDArray[np.bool_], Rule]:
    received, valid = stored["received_at"].values, stored["valid_time"].values
    recorded = ~np.isnat(received)
    valid = np.where(np.isnat(valid), stored["time"].values, valid)
    moment, delay = np.datetime64(at.replace(tzinfo=None), "ns"), np.timedelta64(latency, "ns")
    stored_frames = recorded | ~np.isnat(stored["valid_time"].values)
    rule: Rule = "both"
    if not (recorded & stored_frames).any():
        rule = "valid_time + latency"
    elif recorded[stored_frames].all():
        rule = "received_at"
    return np.where(recorded, received, valid + delay) <= moment, rule


def known_at(stored: xr.Dataset, quantity: str, at: datetime, latency: timedelta) -> Known:
    """The slots of `stored` (an archive's window) as known at `at` (aware).

    Args:
        stored: The quantity (time, y, x), status, valid_time, received_at and source_key (time).
        quantity: Name of the variable.
        at: The moment; a frame received later is as absent as one that never came.
        latency: Delay from valid time to receipt, where receipt was not recorded.
    """
    data = stored[quantity].transpose("time", "y", "x").load()
    received, rule = _received(stored, at, latency)
    coverage = np.isfinite(data.values).mean(axis=(1, 2)) * received
    usable, notes = _usable(data, coverage, quantity)
    valid = np.where(np.isnat(stored["valid_time"].values), stored["time"].values, stored["valid_time"].values)
    slots = tuple(
        ContextFrame(
            time=as_datetime(stored["time"].values[step]),
            age=at - as_datetime(valid[step]),
            status=Status(int(stored["status"].values[step]) if received[step] else Status.EXPECTED).name.lower(),
            source_key=str(stored["source_key"].values[step]),
            interpolated=False,
            coverage=round(float(coverage[step]), 4),
        )
        for step in range(data.sizes["time"])
    )
    return Known(data, slots, usable, notes, rule)


def _usable(
    data: xr.DataArray, coverage: NDArray[np.float64], quantity: str
) -> tuple[tuple[bool, ...], tuple[str, ...]]:
    usual = float(np.median(coverage[coverage > 0])) if (coverage > 0).any() else 0.0
    usable = (coverage > 0) & (coverage >= _UNOBSERVED * usual)
    notes = []
    for step in np.flatnonzero(coverage > 0):
        name = f"frame {as_datetime(data['time'].values[step]):%H:%M}"
        if usable[step] and _suddenly_dry(data.values, usable, int(step), quantity):
            usable[step] = False
            notes.append(f"{name} has no wet cell at once where it rained: taken as missing")
        elif coverage[step] < _FLAGGED * usual:
            verb = "flagged" if usable[step] else "taken as missing"
            notes.append(f"{name} observes {coverage[step]:.0%} of the grid, usual are {usual:.0%}: {verb}")
    return tuple(bool(flag) for flag in usable), tuple(notes)


def _suddenly_dry(frames: Field, usable: NDArray[np.bool_], step: int, quantity: str) -> bool:
    if (frames[step] >= WET[quantity]).any():
        return False
    before = [earlier for earlier in (step - 1, step - 2) if earlier >= 0 and usable[earlier]]
    if not before:
        return False
    frame = frames[before[0]]
    return bool((frame >= WET[quantity]).sum() >= _SUDDENLY_DRY * np.isfinite(frame).sum())
