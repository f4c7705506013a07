"""Tiny PreDiff checkpoints with random weights, contexts for them, and ensembles without a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from builders.networks import small_architecture, small_config
from infra.settings import Domain
from models.configuration import ForecasterConfig
from models.prediff.architecture import AutoencoderConfig, PreDiffArchitecture
from models.prediff.configuration import PreDiffConfig
from models.prediff.forecaster import PreDiffForecaster
from models.prediff.network import PreDiffNetwork
from models.prediff.presets import preset
from models.prediff.samplers import SamplerConfig
from tasks.forecasting.adaptation import Needs
from tasks.forecasting.context import Context
from tasks.forecasting.ensemble import EnsembleCost, Ensembles
from tasks.forecasting.ladder import Forecast, ModelIdentity, Rung, baseline_rung, run_ladder

Fields = NDArray[np.float32]
RAIN_FLOOR = 0.0  # dry, network space


def tiny_prediff(**changes: Any) -> PreDiffConfig:
    """Four context frames, three leads of 16 x 16 cells of 1 km, four steps, anchored to nothing."""
    sampler = SamplerConfig(steps=4)
    return preset("prediff/tiny").config("prediff/tiny", **{"sampler": sampler, "objective": "flow"} | changes)


def anchored_prediff(anchor: str) -> PreDiffConfig:
    """As `tiny_prediff`, with networks that see a forecast: persistence, extrapolation or a small Earthformer's."""
    narrow = {
        "base_units": 16,
        "depth": (1, 1),
        "num_heads": 2,
        "norm_groups": 8,
        "time_embed_use_scale_shift_norm": True,
        "condition_channels": 4,
    }
    encoder = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4)
    architecture = PreDiffArchitecture.sized(4, 3, (16, 16), encoder, narrow, narrow)
    inner = anchor_model() if anchor == "earthformer" else None
    return tiny_prediff(architecture=architecture, anchor=anchor, anchor_model=inner)


def anchor_model() -> ForecasterConfig:
    """A small Earthformer of four frames in."""
    return small_config(architecture=small_architecture(input_shape=(4, 16, 16, 1)), t_in=4)


def random_network(config: PreDiffConfig, seed: int = 0) -> PreDiffNetwork:
    """Random weights, also where networks begin at zero, so that every input matters; nothing below dry."""
    torch.manual_seed(seed)
    network = PreDiffNetwork(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.startswith("autoencoder") and not parameter.any():
                parameter.normal_(0.0, 0.02)
        network.floor.fill_(RAIN_FLOOR)
    return network.eval()


def forecaster(config: PreDiffConfig | None = None, **changes: Any) -> PreDiffForecaster:
    """A forecaster of random weights."""
    config = config or tiny_prediff()
    return PreDiffForecaster(config, random_network(config), **changes)


def wet_network(config: PreDiffConfig) -> PreDiffNetwork:
    """Random weights whose decoded frames are rain of about 1 to 10 mm h-1 everywhere: guardrails let it pass."""
    network = random_network(config)
    with torch.no_grad():
        last = network.autoencoder.get_parameter("network.decoder.conv_out.bias")
        last.fill_(0.6)
        network.autoencoder.get_parameter("network.decoder.conv_out.weight").mul_(0.2)
    return network


def write_prediff(folder: Path, config: PreDiffConfig | None = None) -> Path:
    """A checkpoint of `wet_network` in `folder`."""
    from models.checkpoint import save_checkpoint

    config = config or tiny_prediff()
    return save_checkpoint(folder, config, wet_network(config).state_dict())


@dataclass(frozen=True)
class Drawn:
    """An ensemble without a network: rain of the newest frame times 1 + a tenth of the member's number.

    Each stage takes the seconds that it is told, as reported; nobody waits for them.
    """

    change: Callable[[Fields], Fields] = lambda values: values
    t_in: int = 5
    t_out: int = 12
    family: str = "prediff"
    steps: int | None = None
    intensity: float | None = None
    step_s: float = 0.0
    observe: Callable[[str, float], None] | None = None

    def asked(
        self, *, steps: int, intensity: float | None, observe: Callable[[str, float], None] | None = None
    ) -> Drawn:
        """The same, told so."""
        return replace(self, steps=steps, intensity=intensity, observe=observe)

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """Members that differ by a tenth of the rain."""
        assert self.steps is not None
        if self.observe is not None:
            self.observe("sampling", self.step_s * members * self.steps)
        factors = 1 + np.arange(members, dtype=np.float32)[:, None, None, None] / 10
        frames = np.repeat(context[None, -1:], lead_times, axis=1)
        return self.change((frames * factors).astype(np.float32))


def drawn_rung(change: Callable[[Fields], Fields] = lambda values: values) -> Rung:
    """A rung whose ensembles are made without a network; 8 members of 10 steps are expected to take 89 s."""
    ensembles = Ensembles(steps=10, sampler="euler", least_steps=4, least_members=2, cost=EnsembleCost(1.0, 1.0, 1.0))
    return Rung("prediff", lambda: Drawn(change), ModelIdentity("m"), Needs(5), ensembles=ensembles)


def drawn(context: Context, domain: Domain, rung: Rung, intensity: float | None = None, members: int = 6) -> Forecast:
    """The ensemble of a rung above extrapolation."""
    rungs = [rung, baseline_rung("extrapolation", context, domain)]
    hour = timedelta(hours=1)
    return run_ladder(context, rungs, domain, deadline=hour, seed=0, members=members, intensity=intensity)


def lost(values: Fields) -> Fields:
    """One member is not known anywhere."""
    values[2] = np.nan
    return values
