"""PreDiff presets: the published networks, and small ones for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from models.configuration import ForecasterConfig
from models.earthformer.execution import Execution, set_execution
from models.prediff.architecture import AutoencoderConfig, PreDiffArchitecture
from models.prediff.configuration import PreDiffAnchor, PreDiffConfig
from models.prediff.intensity_estimator import IntensityEstimatorConfig
from models.prediff.objective import ObjectiveKind
from models.prediff.published import build
from models.prediff.samplers import SamplerConfig, default_sampler
from models.transform import Transform

# Narrow networks: 32 groups would leave one channel each, which cancels a step that is only added to it.
_NARROW: dict[str, Any] = {
    "attn_drop": 0.0,
    "proj_drop": 0.0,
    "ffn_drop": 0.0,
    "norm_groups": 8,
    "time_embed_use_scale_shift_norm": True,
}


@dataclass(frozen=True)
class PreDiffPreset:
    """One named PreDiff: its networks, how they are trained and sampled, and the data they are meant for."""

    architecture: PreDiffArchitecture
    quantity: str = "rainfall_rate"
    cadence_s: int = 300
    cell_size_m: float = 1000.0
    # Observed frames a forecast wants, for the anchor as well; None: as many as the denoiser sees.
    t_in: int | None = None
    anchor: PreDiffAnchor = "none"
    objective: ObjectiveKind = "noise"
    sampler: SamplerConfig | None = None
    # Share of the autoencoder's training after which a discriminator judges its frames; None: none ever does.
    discriminator_from: float | None = None

    def config(self, name: str, anchor_model: ForecasterConfig | None = None, **changes: Any) -> PreDiffConfig:
        """The configuration a training starts from; `changes` complete it (quantity, cadence, cell size).

        Raises:
            ValueError: an anchor model is missing, not wanted, or does not fit.
        """
        parts = self.architecture
        quantity = changes.pop("quantity", self.quantity)
        fields: dict[str, Any] = {
            "preset": name,
            "architecture": parts,
            "t_in": self.t_in or parts.t_in,
            "t_out": parts.t_out,
            "cadence_s": self.cadence_s,
            "cell_size_m": self.cell_size_m,
            "quantity": quantity,
            "transform": Transform.of_quantity(quantity),
            "anchor": self.anchor,
            "anchor_model": anchor_model,
            "objective": self.objective,
            "sampler": self.sampler or default_sampler(self.objective),
            "estimator": IntensityEstimatorConfig(frames_out=parts.t_out),
        }
        return PreDiffConfig.model_validate(fields | changes)


_PRESETS: dict[str, PreDiffPreset] = {
    "prediff/sevir-lr": PreDiffPreset(
        PreDiffArchitecture.sized(7, 6, (128, 128), AutoencoderConfig(), {}, {}),
        "vil_code",
        cadence_s=600,
        cell_size_m=3000.0,
        discriminator_from=0.076,  # from step 25,000 of 327,963
    ),
    # Made for two CPU cores: 8 x 8 x 32 latents, and a denoiser that sees the extrapolated frame of each
    # lead time. Around the Trentino champion instead, whose loss favours hits over unbiased weak echo, CRPS was worse.
    "prediff/small-64": PreDiffPreset(
        PreDiffArchitecture.sized(
            4,
            12,
            (64, 64),
            AutoencoderConfig(
                block_out_channels=(64, 64),
                layers_per_block=1,
                latent_channels=32,
                norm_num_groups=8,
                patch_size=4,
                cosine_shortcut=True,
            ),
            {**_NARROW, "base_units": 40, "depth": (1, 1), "condition_channels": 32, "input_skip": True},
            {**_NARROW, "base_units": 32, "depth": (1, 1), "condition_channels": 32},
        ),
        t_in=13,
        anchor="extrapolation",
        objective="flow",
    ),
    "prediff/tiny": PreDiffPreset(
        PreDiffArchitecture.sized(
            4,
            3,
            (16, 16),
            AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4),
            {**_NARROW, "base_units": 16, "depth": (1, 1), "num_heads": 2},
            {**_NARROW, "base_units": 16, "depth": (1, 1), "num_heads": 2},
        ),
        discriminator_from=0.75,
    ),
}


def preset_names() -> tuple[str, ...]:
    """Every preset, `prediff/preset`."""
    return tuple(_PRESETS)


def preset(name: str) -> PreDiffPreset:
    """The preset called `name`, with or without "prediff/".

    Raises:
        ValueError: no such preset.
    """
    full = name if "/" in name else f"prediff/{name}"
    if full not in _PRESETS:
        raise ValueError(f"expected a preset of {', '.join(_PRESETS)}; got {name!r}")
    return _PRESETS[full]


class NetworkSummary(NamedTuple):
    """One network of a preset; `gmac`: 10⁹ multiply-adds of one evaluation, of one frame for encode and decode."""

    preset: str
    network: str
    parameters: int
    gmac: float


def summarise(name: str) -> list[NetworkSummary]:
    """Size of each network of preset `name`, counted by torch in the plain way on networks without storage."""
    parts = preset(name).architecture
    with torch.device("meta"):
        autoencoder, denoiser, alignment = (build(c) for c in (parts.autoencoder, parts.denoiser, parts.alignment))
        for network in (denoiser, alignment):
            set_execution(network, Execution.PLAIN)
        frame = torch.empty(1, parts.autoencoder.in_channels, *parts.patch)
        latent, context = torch.empty(1, *parts.latent_shape), torch.empty(1, *parts.denoiser.input_shape)
        step = torch.zeros(1, dtype=torch.long)
        small = latent[:, 0].permute(0, 3, 1, 2)
        condition = torch.empty(*latent.shape[:-1], parts.denoiser.condition_channels)
        return [
            NetworkSummary(name, "encode", _parameters(autoencoder), _gmac(autoencoder.encode, frame)),
            NetworkSummary(name, "decode", _parameters(autoencoder), _gmac(autoencoder.decode, small)),
            NetworkSummary(name, "denoiser", _parameters(denoiser), _gmac(denoiser, latent, step, context, condition)),
            NetworkSummary(name, "alignment", _parameters(alignment), _gmac(alignment, latent, step, condition)),
        ]


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _gmac(evaluate: Any, *inputs: torch.Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        evaluate(*inputs)
    return float(counter.get_total_flops()) / 2e9
