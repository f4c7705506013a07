"""The anticipated average intensity of the future, mean and spread, from the context alone.

Knowledge alignment wants a target before the future is known: mu + n sigma of what is anticipated. The published
estimator (about 45 thousand parameters) was not released; this is ours. It works on a scale where intensities are
Gaussian and never negative: I = s softplus(x), linear for strong rain and exponential for weak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.prediff.noise import member_quantiles

_FLOOR = 1e-2  # share of the scale below which intensities count as equally small


class IntensityEstimatorConfig(BaseModel):
    """Shape of the estimator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames_out: int = Field(ge=1)
    channels: int = Field(default=1, ge=1)
    width: int = Field(default=48, ge=4)
    # Intensity that is usual, for example the training windows' mean; the quantity's units.
    scale: float = Field(default=0.1, gt=0)
    # "identity" is the published plain mu + n sigma, which may become negative.
    link: Literal["softplus", "identity"] = "softplus"


@dataclass(frozen=True)
class AnticipatedIntensity:
    """What the context leads to expect; Gaussian on the link's scale.

    `mean` and `std` (B, T_out + 1): every lead time, and last the mean over all lead times.
    """

    mean: Tensor
    std: Tensor
    config: IntensityEstimatorConfig

    def target(self, n: float | Tensor = 0.0) -> Tensor:
        """Average intensity over the lead times at mu + n sigma (B,), the quantity's units."""
        return from_link(self.mean[:, -1] + n * self.std[:, -1], self.config)

    def lead_targets(self, n: float = 0.0) -> Tensor:
        """Intensity of every lead time at mu + n sigma (B, T_out), the quantity's units."""
        return from_link((self.mean + n * self.std)[:, :-1], self.config)

    def member_targets(self, n: float, members: Sequence[int], *, seed: int = 0, spread: float = 1.0) -> Tensor:
        """A target for each member (M,) of one window (B = 1), around mu + n sigma with `spread` sigma between members.

        With `spread` 1 the ensemble keeps the anticipated uncertainty; with 0 all members have the same target.
        """
        if len(self.mean) != 1:
            raise ValueError(f"expected one window; got {len(self.mean)}")
        return self.target(n + spread * member_quantiles(seed, members).to(self.mean))


class IntensityEstimator(nn.Module):
    """Small convolutions per frame, a recurrent unit over the context, and a mean and spread per lead time.

    It starts as persistence of the newest frame's intensity.
    """

    def __init__(self, config: IntensityEstimatorConfig) -> None:
        super().__init__()
        self.config = config
        half, width = config.width // 2, config.width
        self.frames = nn.Sequential(
            nn.Conv2d(config.channels, half, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(half, half, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(half, width, 3, stride=2, padding=1),
            nn.SiLU(),
        )
        self.memory = nn.GRU(2 * width + 1, width, batch_first=True)
        self.head = nn.Linear(width, 2 * (config.frames_out + 1))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, context: Tensor, intensity: Tensor) -> AnticipatedIntensity:
        """What to expect.

        Args:
            context: (B, T_in, H, W, C), network space, without NaN.
            intensity: (B, T_in, 1), the constraint's values of these frames.
        """
        known = to_link(intensity, self.config)  # (B, T_in, 1)
        features = self._frame_features(context)
        _, memory = self.memory(torch.cat([features, known], dim=-1))
        shift, spread = self.head(memory[-1]).chunk(2, dim=-1)  # (B, T_out + 1) each
        return AnticipatedIntensity(known[:, -1] + shift, F.softplus(spread) + 1e-3, self.config)

    def loss(self, context: Tensor, intensity: Tensor, future: Tensor) -> Tensor:
        """Mean Gaussian negative log-likelihood, in nats, of the future's values (B, T_out, 1), without NaN ones."""
        expected = self(context, intensity)
        leads = future[..., 0]
        known = torch.cat([leads, leads.mean(dim=1, keepdim=True)], dim=1)  # (B, T_out + 1)
        counted = ~known.isnan()
        x = to_link(torch.where(counted, known, 0.0), self.config)
        deviation = (x - expected.mean) / expected.std
        likelihood = 0.5 * deviation.square() + expected.std.log() + 0.5 * math.log(2.0 * math.pi)
        return torch.where(counted, likelihood, 0.0).sum() / counted.sum().clamp(min=1)

    def _frame_features(self, context: Tensor) -> Tensor:
        """(B, T, H, W, C) → (B, T, 2·width): mean and maximum of the convolved frames of about 32 x 32 cells."""
        batch, length = context.shape[:2]
        frames = context.flatten(0, 1).permute(0, 3, 1, 2).contiguous()  # (B·T, C, H, W)
        x = self.frames(F.adaptive_avg_pool2d(frames, (min(frames.shape[2], 32), min(frames.shape[3], 32))))
        return torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1).view(batch, length, -1)


def to_link(intensity: Tensor, config: IntensityEstimatorConfig) -> Tensor:
    """Intensity ≥ 0 (any shape) → the scale on which it is Gaussian."""
    ratio = intensity / config.scale
    if config.link == "identity":
        return ratio
    ratio = ratio.clamp(min=_FLOOR)
    return ratio + torch.log(-torch.expm1(-ratio))


def from_link(x: Tensor, config: IntensityEstimatorConfig) -> Tensor:
    """The inverse of `to_link`."""
    return config.scale * (x if config.link == "identity" else F.softplus(x))
