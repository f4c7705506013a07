"""Paths from data to noise: z_t = alpha_t z_0 + sigma_t noise, for integer steps t = 0 (nearly clean) .. T - 1 (noise).

References:
    Ho et al. (2020), denoising diffusion, arXiv:2006.11239; Rombach et al. (2022), latent diffusion, arXiv:2112.10752.
    Liu et al. (2023), rectified flow, arXiv:2209.03003.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class NoisePath(Protocol):
    """How much of the data and how much noise a step holds."""

    @property
    def steps(self) -> int:
        """T, the number of steps of the training."""
        ...

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t of steps t (any shape, int64), float64 of the same shape and device."""
        ...


class DiffusionSchedule:
    """Variance-preserving diffusion: alpha^2 + sigma^2 = 1, square roots of beta spaced evenly; (T,) in float64."""

    def __init__(self, steps: int = 1000, first: float = 1e-4, last: float = 2e-2) -> None:
        if steps < 1 or not 0.0 < first <= last < 1.0:
            raise ValueError(f"expected at least one step and 0 < first <= last < 1; got {steps}, {first}, {last}")
        self.first, self.last = first, last
        self.betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float64).square()

    @property
    def steps(self) -> int:
        """T."""
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """Share of the data's variance left at t: the product of 1 - beta up to and with t."""
        return torch.cumprod(1.0 - self.betas, dim=0)

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """The same one step nearer to the data; 1 before the first."""
        return torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod[:-1]])

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Variance of z_{t-1} given z_t and z_0; 0 at t = 0."""
        return self.betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_weights(self) -> tuple[Tensor, Tensor]:
        """Weights of z_0 and z_t in the mean of z_{t-1} given both."""
        data = self.betas * self.alphas_cumprod_prev.sqrt() / (1.0 - self.alphas_cumprod)
        noisy = (1.0 - self.alphas_cumprod_prev) * (1.0 - self.betas).sqrt() / (1.0 - self.alphas_cumprod)
        return data, noisy

    @cached_property
    def bound_weights(self) -> Tensor:
        """Weights that turn squared noise errors into the variational bound; at t = 0, where it diverges, as at 1."""
        steady = self.posterior_variance.clone()
        steady[0] = steady[1] if self.steps > 1 else self.betas[0]
        weights = self.betas.square() / (2.0 * steady * (1.0 - self.betas) * (1.0 - self.alphas_cumprod))
        if self.steps > 1:
            weights[0] = weights[1]
        return weights

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t = sqrt(alphas_cumprod), sigma_t = sqrt(1 - alphas_cumprod)."""
        kept = self.alphas_cumprod.to(t.device)[t]
        return kept.sqrt(), (1.0 - kept).sqrt()

    def nearest_step(self, alpha: float, sigma: float) -> int:
        """The step whose ratio of data to noise is nearest to alpha : sigma on a logarithmic scale."""
        ratio = torch.log(self.alphas_cumprod / (1.0 - self.alphas_cumprod))
        wanted = 2.0 * (torch.tensor(max(alpha, 1e-12)).log() - torch.tensor(max(sigma, 1e-12)).log())
        return int((ratio - wanted.double()).abs().argmin())


class StraightPath:
    """Rectified flow: z_t = (1 - s) z_0 + s noise with s = (t + 1) / T."""

    def __init__(self, steps: int = 1000) -> None:
        if steps < 1:
            raise ValueError(f"expected at least one step; got {steps}")
        self._steps = steps

    @property
    def steps(self) -> int:
        """T."""
        return self._steps

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t = 1 - s, sigma_t = s."""
        s = (t.double() + 1.0) / self._steps
        return 1.0 - s, s


def mix(path: NoisePath, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """z_t of latents z0 (B, ...) and unit noise of the same shape at steps t (B,)."""
    alpha, sigma = path.coefficients(t)
    return spread(alpha, z0) * z0 + spread(sigma, z0) * noise


def spread(values: Tensor, like: Tensor) -> Tensor:
    """values (B,) → (B, 1, ..., 1) in the type of `like` (B, ...)."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
