"""Members calibrated on validation windows: how many sampler steps they take, how far they spread, how they map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray

from models.prediff.configuration import PreDiffConfig
from models.prediff.forecaster import PreDiffForecaster
from models.prediff.mapping import QuantileMapping, fit_mapping
from models.transform import Transform
from tasks.training.sample_set import SampleSet
from tasks.training.samples import Window
from tasks.training.sampling_steps import fewest_steps
from tasks.verification.ensemble_scores import EnsembleSums, ensemble_sums

if TYPE_CHECKING:
    from torch import Tensor

Fields = NDArray[np.float32]

_STEPS, _FLOW_STEPS = (20, 10), (20, 10, 4)
_CALIBRATED = float(np.log(1.1))
_FACTORS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)


@dataclass(frozen=True)
class MemberTrial:
    """Sampler steps and a factor on the initial noise, with the quantile mapping they want, on validation windows.

    Attributes:
        steps: Of the sampler.
        spread: The factor.
        crps: Fair CRPS, units of the quantity.
        spread_skill: Spread over error; 1 is calibrated.
    """

    steps: int
    spread: float
    crps: float
    spread_skill: float


def choose_steps(
    forecaster: PreDiffForecaster,
    samples: SampleSet,
    windows: Sequence[Window],
    *,
    members: int = 8,
    seed: int = 0,
    candidates: Sequence[int] | None = None,
) -> tuple[PreDiffConfig, list[MemberTrial]]:
    """The configuration with the fewest sampler steps within 2 % of the best fair CRPS, and all trials.

    Candidates are 20 and 10 steps, and 4 of flows, each with the quantile mapping that its members want. More steps
    are not tried: from 20 on they change the CRPS by less than the tolerance (`squall benchmark ensembles --steps`).
    """
    objective = forecaster.config.objective
    asked = candidates or (_FLOW_STEPS if objective == "flow" else _STEPS)
    trials = [_try(replace(forecaster, steps=steps), samples, windows, 1.0, members, seed)[0] for steps in asked]
    chosen = fewest_steps(trials)
    if chosen is None:
        raise ValueError("expected validation windows with observed cells; got none")
    sampler = forecaster.config.sampler.model_copy(update={"steps": chosen.steps})
    return forecaster.config.model_copy(update={"sampler": sampler}), trials


def calibrate_members(
    forecaster: PreDiffForecaster,
    samples: SampleSet,
    windows: Sequence[Window],
    *,
    members: int = 8,
    seed: int = 0,
    factors: Sequence[float] = _FACTORS,
) -> tuple[PreDiffConfig, list[MemberTrial]]:
    """The configuration with the best factor on the initial noise, and all trials.

    Factors are tried on validation windows from 1 towards where spread over error approaches 1, until it moves away
    again; each with the quantile mapping that its own members want. Of those within a tenth of 1 the one of the least
    CRPS is taken; without any, the nearest.
    """
    trials: dict[float, tuple[MemberTrial, PreDiffConfig]] = {}

    def off(factor: float) -> float:
        if factor not in trials:
            trials[factor] = _try(forecaster, samples, windows, factor, members, seed)
        return abs(float(np.log(max(trials[factor][0].spread_skill, 1e-6))))

    ordered = sorted(factors)
    place = int(np.argmin(np.abs(np.asarray(ordered) - 1.0)))
    off(ordered[place])
    step = 1 if trials[ordered[place]][0].spread_skill < 1 else -1
    while 0 <= place + step < len(ordered) and off(ordered[place + step]) < off(ordered[place]):
        place += step
    calibrated = [factor for factor in trials if off(factor) <= _CALIBRATED]
    best = min(calibrated, key=lambda factor: trials[factor][0].crps) if calibrated else min(trials, key=off)
    return trials[best][1], sorted((trial for trial, _ in trials.values()), key=lambda trial: trial.spread)


def _try(
    forecaster: PreDiffForecaster,
    samples: SampleSet,
    windows: Sequence[Window],
    factor: float,
    members: int,
    seed: int,
) -> tuple[MemberTrial, PreDiffConfig]:
    config = forecaster.config.model_copy(update={"spread": factor, "mapping": None})
    trial, reader, pairs = replace(forecaster, config=config), samples.reader(), list[tuple[Fields, Fields]]()
    for number, window in enumerate(windows):
        fields = reader.read([window])[0]
        drawn = trial.forecast(fields[: samples.t_in], samples.t_out, members=members, seed=seed + number)
        pairs.append((drawn, fields[samples.t_in :]))
    if not pairs:
        raise ValueError("expected validation windows; got none")
    mapping = _fit(pairs, config.transform)
    lowest, total = _lowest(forecaster), cast("EnsembleSums | None", None)
    for drawn, observed in pairs:
        mapped = config.transform.inverse(mapping.apply(config.transform.forward(torch.from_numpy(drawn))))
        sums = ensemble_sums(mapped.numpy(), observed, lowest)
        total = sums if total is None else total + sums
    assert total is not None
    found = MemberTrial(forecaster.sampling.steps, factor, total.mean_crps, total.mean_spread_skill)
    return found, config.model_copy(update={"mapping": mapping})


def _fit(pairs: Sequence[tuple[Fields, Fields]], transform: Transform) -> QuantileMapping:
    """From members (member, lead, y, x) to observations (lead, y, x), over the cells that both know."""
    ours, theirs = list[Fields](), list[Fields]()
    for drawn, observed in pairs:
        known = np.isfinite(observed) & np.isfinite(drawn).all(axis=0)
        ours.append(drawn[:, known].ravel())
        theirs.append(observed[known])
    both = (transform.forward(torch.from_numpy(np.concatenate(values))) for values in (ours, theirs))
    return fit_mapping(*both)


def _lowest(forecaster: PreDiffForecaster) -> float:
    """Least value of the quantity, physical units."""
    floor: Tensor = forecaster.network.floor
    return float(forecaster.config.transform.inverse(floor[None].cpu())[0])
