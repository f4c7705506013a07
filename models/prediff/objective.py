"""What the denoiser is taught: to tell noise, velocity or flow from a noisy latent, with a learned variance per step.

References:
    Gao et al. (2023), PreDiff, arXiv:2307.10422; Salimans & Ho (2022), v-prediction, arXiv:2202.00512.
    Lipman et al. (2023), flow matching, arXiv:2210.02747; Ribeiro et al. (2025), FlowCast, arXiv:2511.09731.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.prediff.schedule import DiffusionSchedule, NoisePath, StraightPath, mix, spread

ObjectiveKind = Literal["noise", "velocity", "flow"]
# Noisy latent (B, T, h, w, C), step (B,), context latent (B, T_in, h, w, C) → the answer, shaped as the latent.
Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]


def build_path(kind: ObjectiveKind, schedule: DiffusionSchedule) -> NoisePath:
    """The path that an objective trains on: straight for "flow", else the schedule."""
    return StraightPath(schedule.steps) if kind == "flow" else schedule


@dataclass(frozen=True)
class Prediction:
    """What an answer at one noisy latent says about data and noise: z_t = alpha data + sigma noise.

    `alpha` and `sigma` are (B, 1, ..., 1); both estimates have the shape of the latent.
    """

    z: Tensor
    alpha: Tensor
    sigma: Tensor
    data: Tensor
    noise: Tensor

    def with_data_shift(self, shift: Tensor) -> Prediction:
        """The data estimate moved by `shift`, the noise estimate moved so that both still make z."""
        return Prediction(
            self.z, self.alpha, self.sigma, self.data + shift, self.noise - self.alpha / self.sigma * shift
        )

    def with_noise_shift(self, shift: Tensor) -> Prediction:
        """The noise estimate moved by `shift`, the data estimate moved so that both still make z."""
        return Prediction(
            self.z, self.alpha, self.sigma, self.data - self.sigma / self.alpha * shift, self.noise + shift
        )


@dataclass(frozen=True)
class DiffusionLoss:
    """Losses of one batch; all but `total` are detached.

    total: scalar to minimise. per_sample (B,): squared error of each sample, mean over its latent. weighted (B,): after
    the learned variance. log_variance (B,): of the steps drawn. steps (B,): t.
    """

    total: Tensor
    per_sample: Tensor
    weighted: Tensor
    log_variance: Tensor
    steps: Tensor


class DiffusionObjective(nn.Module):
    """Squared error of the network's answer at random steps; each step's error is weighted by its learned variance.

    `log_variance` (T,) starts at 0 and is trained with the network: l / exp(v_t) + v_t.
    """

    def __init__(
        self,
        schedule: DiffusionSchedule | None = None,
        kind: ObjectiveKind = "noise",
        *,
        learn_log_variance: bool = True,
    ) -> None:
        super().__init__()
        self.schedule = schedule or DiffusionSchedule()
        self.kind = kind
        self.path = build_path(kind, self.schedule)
        self.log_variance = nn.Parameter(torch.zeros(self.path.steps), requires_grad=learn_log_variance)

    def draw_steps(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Steps (batch,) int64, uniform over the T; drawn on the CPU, returned on the objective's device."""
        return torch.randint(self.path.steps, (batch,), generator=generator).to(self.log_variance.device)

    def target(self, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should answer at z_t, shaped as z0 (B, ...)."""
        if self.kind == "noise":
            return noise
        if self.kind == "flow":
            return noise - z0
        alpha, sigma = self.path.coefficients(t)
        return spread(alpha, z0) * noise - spread(sigma, z0) * z0

    def interpret(self, answer: Tensor, z_t: Tensor, t: Tensor) -> Prediction:
        """Estimates of data and noise from the network's answer at z_t (B, ...), t (B,); in float32 or finer."""
        z, answer = (x if x.dtype == torch.float64 else x.float() for x in (z_t, answer))
        alpha, sigma = (spread(values, z) for values in self.path.coefficients(t))
        if self.kind == "noise":
            return Prediction(z, alpha, sigma, (z - sigma * answer) / alpha, answer)
        if self.kind == "flow":
            return Prediction(z, alpha, sigma, z - sigma * answer, z + alpha * answer)
        return Prediction(z, alpha, sigma, alpha * z - sigma * answer, alpha * answer + sigma * z)

    def forward(self, denoise: Denoise, z0: Tensor, context: Tensor, t: Tensor, noise: Tensor) -> DiffusionLoss:
        """Losses of clean latents z0 (B, T, h, w, C) with their context latents, at steps t (B,), with unit `noise`."""
        answer = denoise(mix(self.path, z0, noise, t), t, context)
        squared = (answer.float() - self.target(z0, noise, t).float()).square().flatten(1).mean(1)
        log_variance = self.log_variance[t]
        weighted = squared / log_variance.exp() + log_variance
        return DiffusionLoss(weighted.mean(), squared.detach(), weighted.detach(), log_variance.detach(), t)
