"""Small Earthformers and contexts for tests of models."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.configuration import ForecasterConfig
from models.earthformer.config import EarthformerConfig
from models.earthformer.presets import preset_config
from models.published import PublishedModel
from tasks.golden.recipe import weight

Fields = npt.NDArray[np.float32]


def small_architecture(**changes: Any) -> EarthformerConfig:
    """3 → 3 frames of 16 x 16, two levels of width 16, global vectors, a few thousand parameters."""
    fields: dict[str, Any] = {
        "input_shape": (3, 16, 16, 1),
        "target_shape": (3, 16, 16, 1),
        "base_units": 16,
        "num_heads": 2,
        "num_global_vectors": 2,
        "use_global_vector_ffn": False,
        "initial_downsample_type": "stack_conv",
        "initial_downsample_stack_conv_num_layers": 1,
        "initial_downsample_stack_conv_dim_list": (16,),
        "initial_downsample_stack_conv_downscale_list": (2,),
        "initial_downsample_stack_conv_num_conv_list": (1,),
    }
    return EarthformerConfig.model_validate(fields | changes)


def small_config(**changes: Any) -> ForecasterConfig:
    """A forecaster of `small_architecture`."""
    architecture = small_architecture()
    fields: dict[str, Any] = {"preset": "test/small", "architecture": architecture, "t_in": 3, "t_out": 3}
    return ForecasterConfig.model_validate(fields | changes)


def flow_anchored_config(**changes: Any) -> ForecasterConfig:
    """As `small_config`, anchored to extrapolation: the network sees three frames more."""
    architecture = small_architecture(input_shape=(6, 16, 16, 1))
    return small_config(architecture=architecture, anchor="extrapolation", **changes)


def tiny_config() -> ForecasterConfig:
    """The preset of the demo."""
    return preset_config("earthformer/tiny")


def rain_context(frames: int, size: tuple[int, int], seed: int = 0) -> Fields:
    """Patchy rain (frames, y, x) in mm h-1, about half of it dry."""
    draw = np.random.default_rng(seed)
    rain = draw.gamma(0.5, 4.0, (frames, *size)) * (draw.random((frames, *size)) < 0.5)
    return rain.astype(np.float32)


def batch_of(architecture: EarthformerConfig, size: int = 2, seed: int = 0) -> torch.Tensor:
    """Inputs (size, T_in, H, W, C) in [0, 1)."""
    return torch.rand(size, *architecture.input_shape, generator=torch.Generator().manual_seed(seed))


def published_state(model: PublishedModel) -> dict[str, torch.Tensor]:
    """What a published file of `model` would hold: recipe weights and the index buffers."""
    indices = model.index_buffers
    return {
        key: torch.from_numpy(weight(key, shape)) for key, shape in model.shapes.items() if key not in indices
    } | indices
