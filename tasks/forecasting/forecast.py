"""What a rung of the ladder answered: the members with their coordinates and provenance."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from infra.revision import code_revision
from tasks.feeds.frames import QUANTITIES
from tasks.forecasting.context import Context
from tasks.forecasting.ensemble import EnsembleRun, intensity_in_words
from tasks.forecasting.guardrails import Guardrail

Fields = NDArray[np.float32]


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
        ensemble: What was asked of its ensemble and given; None for one member.
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
    ensemble: EnsembleRun | None = None


def forecast_dataset(
    values: Fields,
    context: Context,
    cadence: timedelta,
    model: ModelIdentity,
    rung: str,
    seed: int,
    ensemble: EnsembleRun | None = None,
) -> xr.Dataset:
    """`values` (member, lead_time, y, x), in the context's quantity and units, with coordinates and provenance."""
    init = np.datetime64(context.init_time.replace(tzinfo=None), "ns")
    leads = np.arange(1, values.shape[1] + 1) * np.timedelta64(cadence, "ns")
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
        "model_name": model.name,
        "model_version": model.version,
        "code_revision": code_revision(),
        "seed": seed,
        "rung": rung,
        "verdict": context.verdict.value,
        **(_ensemble_attrs(ensemble) if ensemble else {}),
    }
    dims = ("member", "lead_time", "y", "x")
    return xr.Dataset({context.quantity: (dims, values, attrs)}, coords, provenance)


def _ensemble_attrs(run: EnsembleRun) -> dict[str, str | int]:
    """No seconds among them: the same members have to give the same product."""
    steered = {} if run.intensity is None else {"average_intensity": intensity_in_words(run.intensity)}
    return {
        "members_asked": run.members_asked,
        "sampler": run.sampler,
        "sampling_steps": run.steps,
        "sampling_steps_asked": run.steps_asked,
        "ensemble_choice": run.choice,
        **steered,
    }
