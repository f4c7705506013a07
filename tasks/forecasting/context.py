"""The context of a nowcast: the newest frames known at a moment, and a verdict on them.

Policy for what is missing (wholly unobserved, nearly so, or dry faster than weather): a gap of one frame with frames on
both sides is interpolated along the motion, at most `max_missing` of them; before anything worse the context
is cut short; a context whose newest expected frame is missing ends earlier and is stale; one whose newest frame is
older than `max_age` is refused. A missing frame is never dry.

`init_time` is the time of the newest frame used and lead times count from it, so that a stale forecast does not
claim to be younger than its data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from infra.settings import Domain
from models.baselines.extrapolation import between
from tasks.archive.epochs import EpochMismatch
from tasks.forecasting.availability import ContextFrame, Known, Rule, known_at
from tasks.grid import cell_size_m

if TYPE_CHECKING:
    from tasks.archive.archive import Archive

_SMOOTHING_M = 20_000.0


class Verdict(StrEnum):
    """What the context is worth, from best to worst."""

    COMPLETE = "complete"
    INTERPOLATED = "interpolated"
    SHORTENED = "shortened"
    STALE = "stale"
    REFUSED = "refused"


@dataclass(frozen=True)
class Context:
    """Frames of one nowcast with everything needed to judge them.

    Attributes:
        frames: (time, y, x) float32 in the quantity's units, regular in time, oldest first; NaN = not observed.
            Empty along `time` when refused.
        verdict: The worst of what `reasons` tell.
        reasons: One sentence per departure from a complete context.
        at: The moment whose knowledge this is.
        init_time: Time of the newest frame (forecast_reference_time); `at` when refused without any.
        slots: One entry per frame.
        observed: (y, x) bool: seen by the newest frame and by at least half of all frames.
        snapshot: Id of the archive's snapshot that was read.
        rule: How "received by `at`" was decided: from recorded receipts, from valid time + latency, or both.
        latency: Delay used where receipt was not recorded.
        licence: SPDX identifier of the observations.
    """

    frames: xr.DataArray
    verdict: Verdict
    reasons: tuple[str, ...]
    at: datetime
    init_time: datetime
    slots: tuple[ContextFrame, ...]
    observed: xr.DataArray
    snapshot: str
    rule: Rule
    latency: timedelta
    licence: str = ""

    @property
    def quantity(self) -> str:
        """CF-style name of what the frames hold."""
        return str(self.frames.name)


def build_context(
    archive: Archive, domain: Domain, at: datetime, *, as_of: str | None = None, latency: timedelta
) -> Context:
    """The newest context that was known at `at` (aware), from the archive's newest or a pinned snapshot.

    A corrected frame that was received after `at` hides the one it replaced: pin `as_of` to see that one.

    Args:
        archive: Where the frames are.
        domain: Its `[context]` and cadence rule.
        at: The moment; nothing received later is used.
        as_of: Snapshot id; None reads the newest.
        latency: Delay from valid time to receipt, where receipt was not recorded.

    Raises:
        SnapshotMissing: no such snapshot (any more).
    """
    cadence, wanted = domain.feed.cadence, domain.context.frames
    start = at - domain.context.max_age - (wanted + 1) * cadence
    try:
        stored = archive.read(start, at, as_of=as_of)
    except EpochMismatch:  # the grid has just changed: older frames are of no use
        stored = archive.read(archive.epochs(as_of)[-1].spec.start, at, as_of=as_of)
    known = known_at(stored, domain.feed.quantity, at, latency)
    context = _judge(known, domain, at, latency, str(stored.attrs.get("archive_snapshot", "")))
    return replace(context, licence=str(stored.attrs.get("license", "")))


def _judge(known: Known, domain: Domain, at: datetime, latency: timedelta, snapshot: str) -> Context:
    present = [step for step, flag in enumerate(known.usable) if flag]
    limit, wanted = domain.context.max_age, domain.context.frames
    if not present or known.slots[present[-1]].age > limit:
        newest = f"the newest frame is {_words(known.slots[present[-1]].age)} old" if present else "no frame is known"
        reasons = [*known.notes, f"{newest}; at most {_words(limit)} are allowed"]
        return _refused(known, reasons, at, latency, snapshot)
    last = present[-1]
    first, filled = _longest(known.usable, last, wanted, domain.context.max_missing)
    verdict, reasons = Verdict.COMPLETE, list(known.notes)
    if filled:
        verdict = Verdict.INTERPOLATED
        names = ", ".join(f"{known.slots[step].time:%H:%M}" for step in filled)
        reasons.append(f"missing and interpolated along the motion: {names}")
    if last - first + 1 < wanted:
        verdict = Verdict.SHORTENED
        reasons.append(f"only the newest {last - first + 1} of {wanted} frames: more are missing than may be filled")
    if known.slots[last].time + domain.feed.cadence + latency <= at:
        verdict = Verdict.STALE
        reasons.append(f"the newest expected frame is missing: the context ends {_words(known.slots[last].age)} ago")
    frames = _filled(known.data, first, last, filled)
    slots = tuple(replace(known.slots[step], interpolated=step in filled) for step in range(first, last + 1))
    return Context(
        frames=frames,
        verdict=verdict,
        reasons=tuple(reasons),
        at=at,
        init_time=slots[-1].time,
        slots=slots,
        observed=_observed(frames),
        snapshot=snapshot,
        rule=known.rule,
        latency=latency,
    )


def _refused(known: Known, reasons: Sequence[str], at: datetime, latency: timedelta, snapshot: str) -> Context:
    empty = known.data.isel(time=slice(0, 0))
    nowhere = xr.zeros_like(empty.any("time"), dtype=bool)
    return Context(empty, Verdict.REFUSED, tuple(reasons), at, at, (), nowhere, snapshot, known.rule, latency)


def _filled(data: xr.DataArray, first: int, last: int, gaps: Sequence[int]) -> xr.DataArray:
    frames = data.isel(time=slice(first, last + 1)).copy()
    smoothing = _SMOOTHING_M / cell_size_m(data) if gaps else 0.0
    for step in gaps:
        before, after = data.values[step - 1], data.values[step + 1]
        frames.values[step - first] = between(before, after, 0.5, quantity=str(data.name), smoothing=smoothing)
    return frames


def _observed(frames: xr.DataArray) -> xr.DataArray:
    seen = np.isfinite(frames.values)
    mask = seen[-1] & (2 * seen.sum(axis=0) >= len(seen))
    kept = {name: coord for name, coord in frames.coords.items() if "time" not in coord.dims}
    return xr.DataArray(mask, kept, ("y", "x"), "observed")


def _longest(usable: Sequence[bool], last: int, frames: int, max_missing: int) -> tuple[int, list[int]]:
    """First step of the longest admissible run of at most `frames` that ends at `last`, and the steps to fill in it."""
    first, filled = last, list[int]()
    for step in range(last - 1, max(last - frames, -1), -1):
        if usable[step]:
            first = step
        elif not usable[step + 1] or len(filled) >= max_missing:
            break
        else:
            filled.append(step)
    return first, sorted(step for step in filled if step > first)


def _words(age: timedelta) -> str:
    minutes = age.total_seconds() / 60
    return f"{minutes:.0f} min" if minutes >= 2 else f"{age.total_seconds():.0f} s"
