"""Initial weights as published: a fresh network's residual branches are shut, its output is exactly 0."""

from __future__ import annotations

import math

from torch import nn

from models.prediff.blocks import ResidualBlock


def initialise(network: nn.Module) -> None:
    """Fill `network` in place, drawing from torch's global generator.

    Shut (zero weights): the last layer of every feed-forward network, attention and residual block, and `final_proj`.
    Other convolutions and the step's embedding keep PyTorch's default.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, ResidualBlock):
            _shut(module.conv_out)
        elif isinstance(module, nn.Linear) and "step_embedding" not in name:
            _linear(name, module)
    for name, parameter in network.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.trunc_normal_(parameter, std=0.02)


def _linear(name: str, module: nn.Linear) -> None:
    if name.endswith(("ffn_2", ".proj", "final_proj")):
        _shut(module)
        return
    nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _shut(module: nn.Linear | nn.Conv3d) -> None:
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
