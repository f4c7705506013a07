"""The ladder: the best forecaster that can still answer, with every rung that was passed over and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from infra.revision import code_revision
from infra.settings import Domain
from models.baselines.extrapolation import Extrapolation
from models.baselines.persistence import Persistence
from tasks.feeds.frames import QUANTITIES
from tasks.forecasting.adaptation import Needs, adapt, restore
from tasks.forecasting.context import Context, Verdict
from tasks.forecasting.guardrails import Guardrail, guard
from tasks.grid import cell_size_m

if TYPE_CHECKING:
    from models.forecaster import Forecaster

Fields = NDArray[np.float32]

# What a model may die of (missing weights, a wrong checkpoint, no memory, no device) costs its rung, not the nowcast.
_FAILURES = (ValueError, LookupError, OSError, RuntimeError, MemoryError, ImportError, ArithmeticError)


_TWO_FRAMES = 2  # fewer show no motion


class NoForecast(RuntimeError):
    """No product: the context was refused, or every rung failed; the message says why."""


class DeadlineUnreachable(RuntimeError):
    """A rung is known to take longer than what is left."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which model made a forecast.

    Attributes:
        name: Registered name, or the baseline's.
        version: Registered version, or the baseline's.
        run_id: Training run in the tracking server; None for a baseline.
    """

    name: str
    version: str = "1"
    run_id: str | None = None


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        name: As in the domain file.
        load: Gives the forecaster; what it raises costs the rung.
        model: Whose forecast it is.
        needs: What the model was trained on.
        expected_s: Seconds that it is known to take, loading included; None = not measured, so it is tried.
    """

    name: str
    load: Callable[[], Forecaster]
    model: ModelIdentity
    needs: Needs
    expected_s: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A rung that was passed over.

    Attributes:
        rung: Its name.
        kind: Name of the error.
        reason: Its message.
    """

    rung: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Forecast:
    """What a rung answered.

    Attributes:
        dataset: <quantity>(member, lead_time, y, x) float32 in the domain's units, NaN = not forecast, with
            init_time, time, spatial_ref and provenance attributes.
        rung: Name of the rung.
        model: Whose forecast it is.
        skipped: Rungs above it, in order, and why they were passed over.
        guardrails: Checks it kept.
        seed: Of its members.
        seconds: By stage: load, forecast, guard.
        note: How the context was adapted to the model; empty for not at all.
        late: Whether it took longer than it had.
    """

    dataset: xr.Dataset
    rung: str
    model: ModelIdentity
    skipped: tuple[Skipped, ...]
    guardrails: tuple[Guardrail, ...]
    seed: int
    seconds: dict[str, float]
    note: str
    late: bool


def baseline_rung(name: str, context: Context, domain: Domain, expected_s: float | None = None) -> Rung:
    """The rung of a forecaster that needs no training: `extrapolation` or `persistence`.

    Raises:
        ValueError: another name.
    """
    cadence_s = domain.feed.cadence.total_seconds()
    leads = domain.forecast.lead_times
    if name == "persistence":
        return Rung(name, lambda: Persistence(t_out=leads), ModelIdentity(name), Needs(1), expected_s)
    if name == "extrapolation":
        frames = min(max(context.frames.sizes["time"], _TWO_FRAMES), Extrapolation.t_in)

        def load() -> Extrapolation:
            size = cell_size_m(context.frames)
            return Extrapolation(context.quantity, size, cadence_s, t_in=frames, t_out=leads)

        return Rung(name, load, ModelIdentity(name), Needs(frames), expected_s)
    raise ValueError(f"expected extrapolation or persistence; got {name!r}")


def run_ladder(
    context: Context, rungs: Sequence[Rung], domain: Domain, *, deadline: timedelta, seed: int, members: int = 1
) -> Forecast:
    """The forecast of the first rung that loads, fits the context, is quick enough and keeps the guardrails.

    The last rung is tried whatever the time: a late forecast is worth more than none, and says that it is late.

    Args:
        context: What is known.
        rungs: Best first.
        domain: Its lead times and cadence rule.
        deadline: Time left from now.
        seed: Of the members.
        members: How many are wanted.

    Raises:
        NoForecast: the context is refused, or every rung failed.
    """
    if context.verdict is Verdict.REFUSED:
        raise NoForecast(f"context refused: {'; '.join(context.reasons)}")
    started, skipped = perf_counter(), list[Skipped]()
    for rung in rungs:
        left = deadline.total_seconds() - (perf_counter() - started)
        try:
            if rung is not rungs[-1] and rung.expected_s is not None and rung.expected_s > left:
                raise DeadlineUnreachable(f"expected {rung.expected_s:.1f} s, {max(left, 0):.1f} s are left")
            values, guardrails, seconds, note = _climb(rung, context, domain, seed, members)
        except _FAILURES as error:
            skipped.append(Skipped(rung.name, type(error).__name__, str(error)))
            continue
        return Forecast(
            dataset=_dataset(values, context, domain, rung, seed),
            rung=rung.name,
            model=rung.model,
            skipped=tuple(skipped),
            guardrails=guardrails,
            seed=seed,
            seconds=seconds,
            note=note,
            late=perf_counter() - started > deadline.total_seconds(),
        )
    reasons = "; ".join(f"{entry.rung}: {entry.kind}: {entry.reason}" for entry in skipped)
    raise NoForecast(f"every rung failed: {reasons or 'the ladder is empty'}")


def _climb(
    rung: Rung, context: Context, domain: Domain, seed: int, members: int
) -> tuple[Fields, tuple[Guardrail, ...], dict[str, float], str]:
    cadence_s, leads = domain.feed.cadence.total_seconds(), domain.forecast.lead_times
    start = perf_counter()
    adapted = adapt(context.frames, rung.needs, cadence_s)
    forecaster = rung.load()
    loaded = perf_counter()
    raw = forecaster.forecast(adapted.values, leads, members=members, seed=seed)
    values = restore(raw, adapted, context.frames, rung.needs)
    expected = (members, leads, context.frames.sizes["y"], context.frames.sizes["x"])
    if values.shape != expected:
        raise ValueError(f"expected a forecast (member, lead_time, y, x) of {expected}; got {values.shape}")
    done = perf_counter()
    values = np.require(values, np.float32, ["C", "W"])
    np.copyto(values, np.float32(np.nan), where=~context.observed.values)
    guardrails = guard(values, context)
    if context.quantity != "equivalent_reflectivity_factor":
        np.maximum(values, 0, out=values)
    seconds = {"load": loaded - start, "forecast": done - loaded, "guard": perf_counter() - done}
    return values, guardrails, seconds, adapted.note


def _dataset(values: Fields, context: Context, domain: Domain, rung: Rung, seed: int) -> xr.Dataset:
    init = np.datetime64(context.init_time.replace(tzinfo=None), "ns")
    leads = np.arange(1, values.shape[1] + 1) * np.timedelta64(domain.feed.cadence, "ns")
    grid = {name: context.frames.coords[name] for name in ("y", "x", "spatial_ref")}
    coords = {
        "member": ("member", np.arange(values.shape[0])),
        "lead_time": ("lead_time", leads),
        "init_time": ((), init),
        "time": ("lead_time", init + leads),
        **grid,
    }
    described = QUANTITIES[context.quantity]
    attrs = {
        "units": described.units,
        "standard_name": described.standard_name,
        "long_name": described.long_name,
        "grid_mapping": "spatial_ref",
        **{name: context.frames.attrs[name] for name in ("no_echo",) if name in context.frames.attrs},
    }
    provenance = {
        "archive_snapshot": context.snapshot,
        "model_name": rung.model.name,
        "model_version": rung.model.version,
        "code_revision": code_revision(),
        "seed": seed,
        "rung": rung.name,
        "verdict": context.verdict.value,
    }
    dims = ("member", "lead_time", "y", "x")
    return xr.Dataset({context.quantity: (dims, values, attrs)}, coords, provenance)
