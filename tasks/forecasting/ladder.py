"""The ladder: the best forecaster that can still answer, with every rung that was passed over and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infra.settings import Domain
from models.baselines.extrapolation import Extrapolation
from models.baselines.persistence import Persistence
from tasks.forecasting.adaptation import Needs, adapt, restore
from tasks.forecasting.context import Context, Verdict
from tasks.forecasting.ensemble import (
    DeadlineUnreachable,
    EnsembleForecaster,
    EnsembleRun,
    Ensembles,
    Unsteerable,
    choose_size,
    draw_ensemble,
    intensity_in_words,
)
from tasks.forecasting.forecast import Forecast, ModelIdentity, Skipped, forecast_dataset
from tasks.forecasting.guardrails import guard, limit_overshoot
from tasks.grid import cell_size_m

if TYPE_CHECKING:
    from models.forecaster import Forecaster

__all__ = [
    "Forecast",
    "ModelIdentity",
    "NoForecast",
    "Request",
    "Rung",
    "Skipped",
    "baseline_rung",
    "run_ladder",
]

Fields = NDArray[np.float32]

# What a model may die of (missing weights, a wrong checkpoint, no memory, no device) costs its rung, not the nowcast.
_FAILURES = (ValueError, LookupError, OSError, RuntimeError, MemoryError, ImportError, ArithmeticError)


_TWO_FRAMES = 2  # fewer show no motion


class NoForecast(RuntimeError):
    """No product: the context was refused, or every rung failed; the message says why."""


@dataclass(frozen=True)
class Rung:
    """One step of the ladder.

    Attributes:
        name: As in the domain file.
        load: Gives the forecaster; what it raises costs the rung.
        model: Whose forecast it is.
        needs: What the model was trained on.
        expected_s: Seconds that it is known to take, loading included; None = not measured, so it is tried.
        ensembles: What its ensembles may be; None = it gives one member, and cannot be steered.
    """

    name: str
    load: Callable[[], Forecaster]
    model: ModelIdentity
    needs: Needs
    expected_s: float | None = None
    ensembles: Ensembles | None = None


@dataclass(frozen=True)
class Request:
    """What every rung is asked for.

    Attributes:
        members: How many are wanted.
        seed: Of the members.
        intensity: n of the average intensity mu + n sigma that members are steered to; None: not steered.
        until: End of the time there is, on `perf_counter`'s clock [s].
    """

    members: int
    seed: int
    intensity: float | None
    until: float

    def left(self) -> float:
        """Seconds left."""
        return self.until - perf_counter()


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
    context: Context,
    rungs: Sequence[Rung],
    domain: Domain,
    *,
    deadline: timedelta,
    seed: int,
    members: int = 1,
    intensity: float | None = None,
) -> Forecast:
    """The forecast of the first rung that loads, fits the context, is quick enough and keeps the guardrails.

    The last rung is tried whatever the time: a late forecast is worth more than none, and says that it is late.

    Args:
        context: What is known.
        rungs: Best first.
        domain: Its lead times and cadence rule.
        deadline: Time left from now.
        seed: Of the members.
        members: How many are wanted of a rung that gives an ensemble; the others give one.
        intensity: A what-if: n of the average intensity mu + n sigma that members are steered to. Rungs that cannot be
            steered are passed over; what they say would be no answer.

    Raises:
        NoForecast: the context is refused, or every rung failed.
    """
    if context.verdict is Verdict.REFUSED:
        raise NoForecast(f"context refused: {'; '.join(context.reasons)}")
    request = Request(members, seed, intensity, perf_counter() + deadline.total_seconds())
    skipped = list[Skipped]()
    for rung in rungs:
        try:
            return _climb(rung, context, domain, request, last=rung is rungs[-1], skipped=tuple(skipped))
        except _FAILURES as error:
            skipped.append(Skipped(rung.name, type(error).__name__, str(error)))
    reasons = "; ".join(f"{entry.rung}: {entry.kind}: {entry.reason}" for entry in skipped)
    raise NoForecast(f"every rung failed: {reasons or 'the ladder is empty'}")


def _climb(
    rung: Rung, context: Context, domain: Domain, request: Request, *, last: bool, skipped: tuple[Skipped, ...]
) -> Forecast:
    _check_request(rung, request, last=last)
    start = perf_counter()
    adapted = adapt(context.frames, rung.needs, domain.feed.cadence.total_seconds())
    forecaster = rung.load()
    loaded = perf_counter()
    raw, ensemble = _ask(rung, forecaster, adapted.values, domain.forecast.lead_times, request, last=last)
    values = restore(raw, adapted, context.frames, rung.needs)
    expected = (len(raw), domain.forecast.lead_times, context.frames.sizes["y"], context.frames.sizes["x"])
    if values.shape != expected:
        raise ValueError(f"expected a forecast (member, lead_time, y, x) of {expected}; got {values.shape}")
    done = perf_counter()
    values = np.require(values, np.float32, ["C", "W"])
    np.copyto(values, np.float32(np.nan), where=~context.observed.values)
    overshot = limit_overshoot(values, context)
    guardrails = (*guard(values, context, request.intensity), overshot)
    if context.quantity != "equivalent_reflectivity_factor":
        np.maximum(values, 0, out=values)
    if ensemble is not None:
        ensemble = replace(ensemble, cost=replace(ensemble.cost, load_s=loaded - start))
    return Forecast(
        dataset=forecast_dataset(values, context, domain.feed.cadence, rung.model, rung.name, request.seed, ensemble),
        rung=rung.name,
        model=rung.model,
        skipped=skipped,
        guardrails=guardrails,
        seed=request.seed,
        seconds={"load": loaded - start, "forecast": done - loaded, "guard": perf_counter() - done},
        note=adapted.note,
        late=request.left() < 0,
        ensemble=ensemble,
    )


def _check_request(rung: Rung, request: Request, *, last: bool) -> None:
    """Whether it is worth loading the model.

    Raises:
        Unsteerable: a what-if is asked for, and the rung cannot be steered.
        DeadlineUnreachable: it is known to take longer than what is left, and is not the last.
    """
    left = request.left()
    if rung.ensembles is None:
        if request.intensity is not None:
            raise Unsteerable(f"expected a model that can be steered to {intensity_in_words(request.intensity)}")
        if not last and rung.expected_s is not None and rung.expected_s > left:
            raise DeadlineUnreachable(f"expected {rung.expected_s:.1f} s, {max(left, 0):.1f} s are left")
    elif rung.ensembles.cost is not None:
        choose_size(rung.ensembles, rung.ensembles.cost, request.members, left, must=last)


def _ask(
    rung: Rung, forecaster: Forecaster, frames: Fields, leads: int, request: Request, *, last: bool
) -> tuple[Fields, EnsembleRun | None]:
    if rung.ensembles is None:
        return forecaster.forecast(frames, leads, seed=request.seed), None
    if not isinstance(forecaster, EnsembleForecaster):
        raise ValueError(f"expected a forecaster of ensembles; got {forecaster.family}")
    return draw_ensemble(
        forecaster,
        rung.ensembles,
        frames,
        leads,
        members=request.members,
        seed=request.seed,
        intensity=request.intensity,
        left=request.left,
        must=last,
    )
