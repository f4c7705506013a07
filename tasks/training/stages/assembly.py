"""A PreDiff from its trained parts: scales measured on its latents, members calibrated on validation windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoint import load_checkpoint, save_checkpoint
from models.prediff.calibration import ReadingCalibration, calibrate_reading
from models.prediff.configuration import PreDiffConfig
from models.prediff.forecaster import PreDiffForecaster
from models.prediff.mapping import QuantileMapping, fit_mapping
from models.prediff.network import PreDiffNetwork
from models.transform import Transform
from tasks.training.sample_set import SampleSet
from tasks.training.samples import Window
from tasks.training.stages.denoiser import latent_batch
from tasks.training.stages.latents import LatentSet
from tasks.verification.ensemble_scores import EnsembleSums, ensemble_sums

if TYPE_CHECKING:
    from torch import nn

Fields = NDArray[np.float32]

_READ_WINDOWS = 64  # calibrate_reading denoises so many at once
_CALIBRATED = float(np.log(1.1))
_FACTORS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)


@dataclass(frozen=True)
class SpreadTrial:
    """One factor on the initial noise with its quantile mapping, on validation windows.

    Attributes:
        spread: The factor.
        crps: Fair CRPS, units of the quantity.
        spread_skill: Spread over error; 1 is calibrated.
    """

    spread: float
    crps: float
    spread_skill: float


def start_network(config: PreDiffConfig, anchor: Path | None, seed: int) -> PreDiffNetwork:
    """Fresh networks with the anchor's trained weights among them."""
    torch.manual_seed(seed)
    network = PreDiffNetwork(config)
    if network.anchor is not None and anchor is not None:
        _, trained = load_checkpoint(anchor)
        network.anchor.load_state_dict(trained.state_dict())
        network.anchor.requires_grad_(False)
    return network


def take_weights(module: nn.Module, path: Path) -> None:
    """Give a part the weights that its stage left."""
    module.load_state_dict(load_file(path))


def measure_scales(network: PreDiffNetwork, latents: LatentSet, floor: float) -> None:
    """Set the buffers from training latents; `floor` is the least observed value, network space."""
    known = torch.cat([latents.context.flatten(0, -2), latents.future[::4].flatten(0, -2)])
    network.latent_mean.copy_(known.mean(dim=0))
    network.latent_std.copy_(known.std(dim=0).clamp(min=1e-6))
    network.floor.fill_(floor)
    if latents.anchor is None:
        network.residual_std.fill_(1.0)
        return
    residual = (latents.future - latents.anchor) / network.latent_std  # (n, T_out, h, w, c)
    mean = residual.mean(dim=(0, 2, 3))  # (T_out, c): what the anchor misses everywhere
    network.residual_mean.copy_(mean)
    own = (residual - mean[:, None, None]).square().mean(dim=(0, 2, 3)).sqrt().clamp(min=1e-3)  # (T_out, c)
    overall = own.square().mean(dim=1, keepdim=True).sqrt()
    # Half-way to whiteness: strong components keep a lead, and are settled first on the way from noise.
    network.residual_std.copy_((own * overall).sqrt())


def usual_intensity(latents: LatentSet) -> float:
    """Mean of the constraint's values over the training windows: the estimator's scale."""
    values = latents.values
    return max(float(values[~values.isnan()].mean()), 1e-6)


def measure_reading(network: PreDiffNetwork, latents: LatentSet, seed: int) -> ReadingCalibration:
    """How much of the constraint's value predictions from noise still show, on at most 64 windows."""
    picks = torch.arange(min(len(latents), _READ_WINDOWS))
    batch = latent_batch(network, latents, picks, None)
    anchor = batch.get("anchor")

    def denoise(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        answer: Tensor = network.denoiser(z, t, context, anchor)
        return answer

    def estimate(z: Tensor, t: Tensor) -> Tensor:
        value: Tensor = network.alignment(z, t, anchor)
        return value

    network.eval()
    return calibrate_reading(denoise, network.objective(), estimate, batch["residual"], batch["context"], seed=seed)


def calibrate_members(
    forecaster: PreDiffForecaster,
    samples: SampleSet,
    windows: Sequence[Window],
    *,
    members: int = 8,
    seed: int = 0,
    factors: Sequence[float] = _FACTORS,
) -> tuple[PreDiffConfig, list[SpreadTrial]]:
    """The configuration with the best factor on the initial noise, and all trials.

    Factors are tried on validation windows from 1 towards where spread over error approaches 1, until it moves away
    again; each with the quantile mapping that its own members want. Of those within a tenth of 1 the one of the least
    CRPS is taken; without any, the nearest.
    """
    trials: dict[float, tuple[SpreadTrial, PreDiffConfig]] = {}

    def off(factor: float) -> float:
        if factor not in trials:
            trials[factor] = _try_spread(forecaster, samples, windows, factor, members, seed)
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


def _try_spread(
    forecaster: PreDiffForecaster,
    samples: SampleSet,
    windows: Sequence[Window],
    factor: float,
    members: int,
    seed: int,
) -> tuple[SpreadTrial, PreDiffConfig]:
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
    found = SpreadTrial(factor, total.mean_crps, total.mean_spread_skill)
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


def save_prediff(folder: Path, config: PreDiffConfig, network: PreDiffNetwork) -> Path:
    """Write the whole PreDiff as one checkpoint."""
    return save_checkpoint(folder, config, network.state_dict())
