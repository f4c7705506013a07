"""Perceptual distance of frames (LPIPS: Zhang et al. 2018, arXiv:1801.03924) from a given weights file.

PreDiff v1 gives it weight 0, and its weights are not ours to ship: nothing is built unless a file is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

# VGG16's convolutions as (index among its features, output channels); a distance is taken after each stage.
_STAGES = (
    ((0, 64), (2, 64)),
    ((5, 128), (7, 128)),
    ((10, 256), (12, 256), (14, 256)),
    ((17, 512), (19, 512), (21, 512)),
    ((24, 512), (26, 512), (28, 512)),
)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class PerceptualDistance(nn.Module):
    """Frames (N, 1 or 3, H, W) in 0..1, twice → distances (N, 1, 1, 1); frozen."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        self.lin = nn.ModuleList()
        channels = 3
        for stage in _STAGES:
            for index, width in stage:
                self.features[str(index)] = nn.Conv2d(channels, width, 3, padding=1)
                channels = width
            self.lin.append(nn.Conv2d(channels, 1, 1, bias=False))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, frames: Tensor, others: Tensor) -> Tensor:
        """Weighted squared distance of unit feature vectors, summed over stages, mean over each map."""
        total = frames.new_zeros(len(frames), 1, 1, 1)
        ours, theirs = self._normalised(frames), self._normalised(others)
        for number, (stage, lin) in enumerate(zip(_STAGES, self.lin, strict=True)):
            ours, theirs = self._stage(ours, stage, number), self._stage(theirs, stage, number)
            total = total + lin((_unit(ours) - _unit(theirs)).square()).mean(dim=(2, 3), keepdim=True)
        return total

    def _normalised(self, frames: Tensor) -> Tensor:
        return (2.0 * frames.expand(-1, 3, -1, -1) - 1.0 - self.shift) / self.scale

    def _stage(self, x: Tensor, stage: tuple[tuple[int, int], ...], number: int) -> Tensor:
        x = F.max_pool2d(x, 2) if number else x
        for index, _ in stage:
            x = F.relu(self.features[str(index)](x))
        return x


def load_perceptual(file: str | Path) -> PerceptualDistance:
    """The distance with weights from one safetensors file.

    It holds VGG16's convolutions and the linear weights under their usual names: `features.N.weight`, `features.N.bias`
    and `linN.model.1.weight`.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    return with_weights(load_file(Path(file)))


def with_weights(weights: Mapping[str, Tensor]) -> PerceptualDistance:
    """The distance with these weights.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    distance = PerceptualDistance()
    state = {}
    for name, value in distance.state_dict().items():
        usual = f"lin{name.split('.')[1]}.model.1.weight" if name.startswith("lin.") else name
        got = weights.get(usual)
        if got is None or got.shape != value.shape:
            found = "nothing" if got is None else str(tuple(got.shape))
            raise ValueError(f"{usual}: expected {tuple(value.shape)}; got {found}")
        state[name] = got
    distance.load_state_dict(state)
    return distance.eval()


def _unit(x: Tensor) -> Tensor:
    """Feature vectors (N, C, h, w) of length 1; the square root is kept off 0, where its slope is infinite."""
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-20).sqrt()
