"""Earthformer presets: the paper's models, the released ones, and small ones for two CPU cores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.configuration import Anchor, ForecasterConfig, build_network
from models.earthformer.config import EarthformerConfig
from models.earthformer.execution import Execution, set_execution
from models.transform import Transform

_PUBLISHED: dict[str, Any] = {
    "attn_drop": 0.1,
    "proj_drop": 0.1,
    "ffn_drop": 0.1,
    "use_global_vector_ffn": False,
}


def _stacked(dims: tuple[int, ...], scales: tuple[int, ...], convs: tuple[int, ...]) -> dict[str, Any]:
    return {
        "initial_downsample_type": "stack_conv",
        "initial_downsample_stack_conv_num_layers": len(dims),
        "initial_downsample_stack_conv_dim_list": dims,
        "initial_downsample_stack_conv_downscale_list": scales,
        "initial_downsample_stack_conv_num_conv_list": convs,
    }


_SEVIR = {
    **_PUBLISHED,
    **_stacked((16, 64, 128), (3, 2, 2), (2, 2, 2)),
    "input_shape": (13, 384, 384, 1),
    "target_shape": (12, 384, 384, 1),
    "base_units": 128,
    "num_global_vectors": 8,
}
_ENSO = {
    **_PUBLISHED,
    "input_shape": (12, 24, 48, 1),
    "target_shape": (14, 24, 48, 1),
    "base_units": 64,
    "initial_downsample_scale": (1, 1, 2),
    "initial_downsample_conv_layers": 2,
    "final_upsample_conv_layers": 1,
}
_SEPARATE = {"separate_global_qkv": True, "use_global_self_attn": True}


@dataclass(frozen=True)
class Preset:
    """One named model: architecture fields and the data it is meant for."""

    architecture: Mapping[str, Any]
    quantity: str = "rainfall_rate"
    cadence_s: int = 300
    cell_size_m: float = 1000.0
    anchor: Anchor = "none"

    def config(self, name: str) -> ForecasterConfig:
        """The configuration a training starts from."""
        architecture = EarthformerConfig.model_validate(self.architecture)
        return ForecasterConfig(
            preset=name,
            architecture=architecture,
            t_in=architecture.input_shape[0] - (architecture.target_shape[0] if self.anchor == "extrapolation" else 0),
            t_out=architecture.target_shape[0],
            cadence_s=self.cadence_s,
            cell_size_m=self.cell_size_m,
            quantity=self.quantity,
            transform=Transform.of_quantity(self.quantity),
            anchor=self.anchor,
        )


_MONTH_S = 2_629_746  # a mean Gregorian month
_PRESETS: dict[str, Preset] = {
    "earthformer/sevir": Preset({**_SEVIR, **_SEPARATE}, "vil"),
    "earthformer/sevir-paper": Preset({**_SEVIR, "enc_depth": (2, 2), "dec_depth": (2, 2)}, "vil"),
    "earthformer/sevir-lr": Preset(
        {
            **_PUBLISHED,
            **_stacked((4, 16, 64), (1, 2, 2), (2, 2, 2)),
            "input_shape": (7, 128, 128, 1),
            "target_shape": (6, 128, 128, 1),
            "base_units": 64,
        },
        "vil",
        cadence_s=600,
        cell_size_m=3000.0,
    ),
    "earthformer/enso": Preset(_ENSO, "sea_surface_temperature", _MONTH_S, 500_000.0),
    "earthformer/enso-paper": Preset(
        {**_ENSO, "enc_depth": (4, 4), "dec_depth": (4, 4), "num_global_vectors": 8},
        "sea_surface_temperature",
        _MONTH_S,
        500_000.0,
    ),
    "earthformer/nbody": Preset(
        {
            **_PUBLISHED,
            "input_shape": (10, 64, 64, 1),
            "target_shape": (10, 64, 64, 1),
            "base_units": 64,
            "enc_depth": (4, 4),
            "dec_depth": (4, 4),
            "pos_embed_type": "t+hw",
            "initial_downsample_scale": 2,
            "initial_downsample_conv_layers": 2,
            "final_upsample_conv_layers": 1,
        },
        "brightness",
    ),
    "earthformer/earthnet": Preset(
        {
            **_PUBLISHED,
            **_SEPARATE,
            **_stacked((64, 256), (2, 2), (2, 2)),
            "input_shape": (10, 128, 128, 4),
            "target_shape": (20, 128, 128, 4),
            "base_units": 256,
            "num_global_vectors": 8,
            "pos_embed_type": "t+hw",
            "auxiliary_channels": 7,
            "unet_dec_cross_mode": "both",
        },
        "brightness",
        cadence_s=5 * 86400,
        cell_size_m=20.0,
    ),
    "earthformer/small-64": Preset(
        {
            **_stacked((8, 16, 32), (2, 2, 1), (1, 1, 1)),
            "use_global_vector_ffn": False,
            "input_shape": (25, 64, 64, 1),
            "target_shape": (12, 64, 64, 1),
            "base_units": 32,
            "num_global_vectors": 8,
        },
        anchor="extrapolation",
    ),
    "earthformer/tiny": Preset(
        {
            **_stacked((8, 16), (2, 2), (1, 1)),
            "use_global_vector_ffn": False,
            "input_shape": (13, 32, 32, 1),
            "target_shape": (12, 32, 32, 1),
            "base_units": 16,
            "num_heads": 2,
            "num_global_vectors": 4,
        },
        anchor="persistence",
    ),
    "earthformer/demo": Preset(
        {
            **_stacked((16,), (2,), (1,)),
            "use_global_vector_ffn": False,
            "input_shape": (12, 32, 32, 1),
            "target_shape": (6, 32, 32, 1),
            "base_units": 16,
            "num_heads": 2,
            "num_global_vectors": 4,
        },
        cadence_s=120,
        cell_size_m=2000.0,
        anchor="extrapolation",
    ),
}


def preset_names() -> tuple[str, ...]:
    """Every preset, `family/preset`."""
    return tuple(_PRESETS)


class PresetSummary(NamedTuple):
    """One line of a table of presets; `gmac` are multiply-adds of one forward pass of one sample, in 10⁹."""

    name: str
    parameters: int
    gmac: float


def list_presets() -> Iterator[PresetSummary]:
    """Every preset with its size, measured one by one on networks without storage."""
    for name in preset_names():
        yield summarise(name, preset_config(name).architecture)


def summarise(name: str, architecture: EarthformerConfig) -> PresetSummary:
    """Count the parameters and, by torch's flop counter, the multiply-adds of `architecture` in the plain way."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = build_network(architecture)
        set_execution(network, Execution.PLAIN)
        inputs = _example_inputs(architecture)
        with FlopCounterMode(display=False) as counter:
            network(*inputs)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return PresetSummary(name, parameters, counter.get_total_flops() / 2e9)


def _example_inputs(architecture: EarthformerConfig) -> list[Tensor]:
    inputs = [torch.empty(1, *architecture.input_shape)]
    if architecture.auxiliary_channels is not None:
        channels = architecture.auxiliary_channels
        inputs += [
            torch.empty(1, *shape[:3], channels) for shape in (architecture.input_shape, architecture.target_shape)
        ]
    return inputs


def preset_config(name: str) -> ForecasterConfig:
    """The configuration of preset `name`, to be completed (cell size, cadence) by what is trained on.

    Raises:
        ValueError: no such preset.
    """
    full = name if "/" in name else f"earthformer/{name}"
    if full not in _PRESETS:
        raise ValueError(f"expected a preset of {', '.join(_PRESETS)}; got {name!r}")
    return _PRESETS[full].config(full)
