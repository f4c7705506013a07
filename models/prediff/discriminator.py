"""PatchGAN discriminator of frames (Isola et al. 2017, arXiv:1611.07004): real or reconstructed, patch by patch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Frames (N, C, H, W) → logits (N, 1, h, w), positive for real; 2,763,585 parameters as published (one channel)."""

    def __init__(self, channels: int = 1, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        for layer in range(1, layers + 1):
            fine, coarse = (width * min(2**power, 8) for power in (layer - 1, layer))
            stride = 2 if layer < layers else 1
            stages += [nn.Conv2d(fine, coarse, 4, stride=stride, padding=1, bias=False), nn.BatchNorm2d(coarse)]
            stages.append(nn.LeakyReLU(0.2, inplace=True))
        stages.append(nn.Conv2d(width * min(2**layers, 8), 1, 4, padding=1))
        self.main = nn.Sequential(*stages)
        self.apply(_initialise)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (N, C, H, W) in network space."""
        logits: Tensor = self.main(frames.contiguous())
        return logits


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """What is computed inside passes gradients to its inputs but none to the module's parameters."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
