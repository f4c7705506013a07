"""What was known at a moment: which of an archive's frames had been received by then, and which of them are usable.

A frame that observes nothing, next to nothing, or loses its rain faster than weather can is as good as missing.

Faster than weather: the last accepted frame of the window had at least 5 % wet cells (of those observed), and this one
has fewer than a tenth of that share, halved for every five minutes beyond the first five, or fewer than 0.5 % however
long it took. One way out: in the slot right after, rain that has been leaving steadily over the last three accepted
frames, by no more than a fifth of the grid in five minutes, may lose one and a half times as much again, be it all.
So an outage ends the context instead of drying it, and `max_age` refuses it in the end. The window is `max_age` and
the context long: once no accepted wet frame is left in it, dry frames are taken as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
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
# Wet shares of the observed cells: from which rain cannot vanish at once, and below which a frame has next to none.
_RAINED, _DRY = 0.05, 0.005
# Share of its wet area that a frame keeps over five minutes at the very least, and over each five minutes more.
_KEPT, _HALVED, _FIVE_MINUTES = 0.1, 0.5, 5.0
# Rain that leaves steadily: the most of the grid that it frees [min-1], and how much it may speed up.
_FASTEST, _SPEED_UP = 0.2 / 5, 1.5


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
    times = data["time"].values
    minutes = (times - times[:1]) / np.timedelta64(1, "m")
    wet = _wet_shares(data.values, coverage, quantity)
    notes, accepted = list[str](), list[int]()
    for step in map(int, np.flatnonzero(coverage > 0)):
        name = f"frame {as_datetime(times[step]):%H:%M}"
        if usable[step] and wet[step] < _least_wet(wet, minutes, accepted, step):
            usable[step] = False
            before = f"{wet[accepted[-1]]:.0%} at {as_datetime(times[accepted[-1]]):%H:%M}"
            notes.append(f"{name} has lost its rain at once ({wet[step]:.1%} wet, {before}): taken as missing")
        elif coverage[step] < _FLAGGED * usual:
            verb = "flagged" if usable[step] else "taken as missing"
            notes.append(f"{name} observes {coverage[step]:.0%} of the grid, usual are {usual:.0%}: {verb}")
        if usable[step]:
            accepted.append(step)
    return tuple(bool(flag) for flag in usable), tuple(notes)


def _wet_shares(frames: Field, coverage: NDArray[np.float64], quantity: str) -> NDArray[np.float64]:
    """Wet share [1] of the observed cells of `frames` (time, y, x); 0 where `coverage` (time) is."""
    shares = [
        float((frame >= WET[quantity]).mean() / seen) if seen else 0.0
        for frame, seen in zip(frames, coverage, strict=True)
    ]
    return np.array(shares, np.float64)


def _least_wet(wet: NDArray[np.float64], minutes: NDArray[np.float64], accepted: Sequence[int], step: int) -> float:
    """Wet share [1] that weather leaves at `step` at the least, given the `accepted` steps before it.

    A tenth of the last accepted share, halved per five minutes beyond the first five, and never below 0.5 %; less where
    rain leaves steadily; nothing where less than 5 % was wet or no frame is accepted yet.
    """
    if not accepted or wet[accepted[-1]] < _RAINED:
        return 0.0
    last = accepted[-1]
    further = max(0.0, (minutes[step] - minutes[last]) / _FIVE_MINUTES - 1)
    least = max(_DRY, _KEPT * wet[last] * _HALVED**further)
    return float(min(least, wet[last] - _leaving(wet, minutes, accepted, step)))


def _leaving(wet: NDArray[np.float64], minutes: NDArray[np.float64], accepted: Sequence[int], step: int) -> float:
    """Wet share [1] that rain which leaves steadily frees until `step`.

    Zero unless `step` follows the last of three accepted frames directly and neither loss between these was too fast.
    """
    if len(accepted) < 3 or step != accepted[-1] + 1:
        return 0.0
    steps = list(accepted[-3:])
    rates = -np.diff(wet[steps]) / np.diff(minutes[steps])
    if rates.min() <= 0 or rates.max() > _FASTEST:
        return 0.0
    return float(_SPEED_UP * rates.min() * (minutes[step] - minutes[steps[-1]]))
