"""A world where everything about diffusion is known in closed form: Gaussian latents, a linear quantity."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.prediff.objective import DiffusionObjective
from models.prediff.schedule import DiffusionSchedule, NoisePath

SHAPE = (2, 3, 3, 2)  # (T, h, w, C) of one latent
DIM = 36
CONTEXT = torch.zeros(1, 2, 3, 3, 2)


@dataclass(frozen=True)
class GaussianWorld:
    """Latents of SHAPE ~ N(mean, covariance); the quantity of a latent is `weights` · latent."""

    mean: Tensor
    covariance: Tensor
    weights: Tensor

    @cached_property
    def quantity_mean(self) -> float:
        """Mean of the quantity."""
        return float(self.weights @ self.mean)

    @cached_property
    def quantity_std(self) -> float:
        """Standard deviation of the quantity."""
        return float((self.weights @ self.covariance @ self.weights).sqrt())

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.covariance)
        return values, vectors

    def posterior_mean(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[z_0 | alpha z_0 + sigma noise = z] (B, DIM)."""
        values, vectors = self._axes
        gain = vectors * (alpha * values / (alpha**2 * values + sigma**2)) @ vectors.T
        return self.mean + (z - alpha * self.mean) @ gain

    def denoise(self, objective: DiffusionObjective) -> ExactDenoiser:
        """The perfectly trained denoiser of an objective."""
        return ExactDenoiser(self, objective)

    def estimate(self, path: NoisePath) -> ExactAlignment:
        """The perfectly trained alignment network."""
        return ExactAlignment(self, path)

    def quantity(self, z: Tensor) -> Tensor:
        """Of clean latents (B, T, h, w, C): (B,)."""
        return z.double().flatten(1) @ self.weights


@dataclass(frozen=True)
class ExactDenoiser:
    """Answers with the posterior mean, in the objective's terms."""

    world: GaussianWorld
    objective: DiffusionObjective

    def __call__(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """As a network."""
        alpha, sigma = (values[0] for values in self.objective.path.coefficients(t))
        flat = z.double().flatten(1)
        data = self.world.posterior_mean(flat, alpha, sigma)
        noise = (flat - alpha * data) / sigma
        return self.objective.target(data, noise, t).view(z.shape).float()


@dataclass(frozen=True)
class ExactAlignment:
    """E[quantity | z_t], the same for every lead time."""

    world: GaussianWorld
    path: NoisePath

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """As a network: (B, T, 1)."""
        alpha, sigma = (values[0] for values in self.path.coefficients(t))
        data = self.world.posterior_mean(z.double().flatten(1), alpha, sigma)
        return (data @ self.world.weights).float()[:, None, None].expand(-1, SHAPE[0], 1)


def gaussian_world(seed: int = 0) -> GaussianWorld:
    """Correlated latents of about unit variance."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64) / DIM**0.5
    covariance = mixing @ mixing.T + 0.1 * torch.eye(DIM, dtype=torch.float64)
    mean = torch.randn(DIM, generator=generator, dtype=torch.float64)
    weights = torch.rand(DIM, generator=generator, dtype=torch.float64) / DIM
    return GaussianWorld(mean, covariance, weights)


def objective(kind: str = "noise", schedule: DiffusionSchedule | None = None) -> DiffusionObjective:
    """An objective of the full schedule."""
    return DiffusionObjective(schedule, kind)  # type: ignore[arg-type]
