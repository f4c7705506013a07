"""Initial weights as published (behaviour of the reference, spec 1.17): what a fresh model starts from."""

from __future__ import annotations

import math

from torch import nn

from models.earthformer.config import EarthformerConfig
from models.earthformer.layers import Upsample3DLayer

_SLOPE = 0.1


def initialise(network: nn.Module, config: EarthformerConfig) -> None:
    """Fill `network` in place, drawing from torch's global generator.

    Convolutions of the stems, `global_proj` and `down_layer_global_proj` keep PyTorch's default, as published.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, Upsample3DLayer):
            _kaiming_out(module.conv)
        elif (
            isinstance(module, nn.Linear) and not name.endswith("global_proj") and "down_layer_global_proj" not in name
        ):
            _linear(module, _linear_mode(name, config))
    for name, parameter in network.named_parameters():
        if name.endswith(("relative_position_bias_table", "init_global_vectors")):
            nn.init.trunc_normal_(parameter, std=0.02)


def _linear_mode(name: str, config: EarthformerConfig) -> str:
    if ".ffn_" in name:
        return config.ffn_linear_init_mode
    if ".attn_l." in name:
        return config.attn_linear_init_mode
    return config.down_up_linear_init_mode


def _linear(module: nn.Linear, mode: str) -> None:
    if mode == "0":
        nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
    else:
        nn.init.kaiming_normal_(module.weight, a=_SLOPE, mode="fan_out")
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _kaiming_out(module: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(module.weight, a=_SLOPE, mode="fan_out")
    if module.bias is not None:
        nn.init.zeros_(module.bias)
