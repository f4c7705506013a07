"""Knowledge alignment: samples are steered so that a quantity of the decoded future meets a target.

The alignment network reads the quantity from a noisy latent. Two ways to steer with it:

`ShiftGuidance` adds the scaled gradient of the distance to the predicted noise. With the whole batch's norm and 1000
ancestral steps this is the published rule; its strength is a free parameter.

`CalibratedGuidance` has none. Were z_0 Gaussian and the quantity linear, the posterior mean of a sample that fulfils
the constraint would be the unconstrained one moved along sigma^2/alpha grad p(z_t) until its quantity is the target, at
every step. That move is made: along the gradient, as far as the alignment network, reading the predicted clean latent,
says. So each member meets its own target, whatever the number of steps, the solver, and the batch.

References:
    Gao et al. (2023), PreDiff, arXiv:2307.10422; Dhariwal & Nichol (2021), classifier guidance, arXiv:2105.05233.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from models.prediff.objective import Prediction
from models.prediff.schedule import DiffusionSchedule

# Noisy latent (B, T, h, w, C) and step (B,) → quantity of each frame (B, T, 1).
Estimate = Callable[[Tensor, Tensor], Tensor]


class Guidance(Protocol):
    """Moves predictions."""

    def adjust(self, prediction: Prediction) -> Prediction:
        """The guided prediction at the same noisy latent."""
        ...


class ShiftGuidance:
    """Predicted noise + scale sqrt((1 - abar_{t-1}) (1 - beta_t) / beta_t) grad |p - target|, of the training schedule.

    In 1000 ancestral steps it equals the published shift of the mean by -scale sigma_t grad; with fewer it keeps about
    0.78 of the effect. `coupled` takes one norm over the whole batch, as published: results then depend on the batch.
    """

    def __init__(
        self,
        estimate: Estimate,
        schedule: DiffusionSchedule,
        target: Tensor,
        *,
        scale: float = 50.0,
        coupled: bool = False,
    ) -> None:
        self.estimate = estimate
        self.schedule = schedule
        self.target = target
        self.scale = scale
        self.coupled = coupled

    def adjust(self, prediction: Prediction) -> Prediction:
        """Shifts the noise of every sample; `target` is (B,) or (1,)."""
        z, t = as_trained(prediction, self.schedule)
        gradient, _ = self.distance_gradient(z, t)
        kept, beta = self.schedule.alphas_cumprod_prev[t], self.schedule.betas[t]
        weight = float(((1.0 - kept) * (1.0 - beta) / beta).sqrt())
        return prediction.with_noise_shift(self.scale * weight * gradient)

    def distance_gradient(self, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Gradient of the distance in z (B, ...), and the distance: (B,), or scalar where coupled."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            off = read(self.estimate, z, t) - self.target.to(z)
            distance = torch.linalg.vector_norm(off) if self.coupled else off.abs()
            (gradient,) = torch.autograd.grad(distance.sum(), z)
        return gradient, distance.detach()


class Calibration(Protocol):
    """Knows how much lower a quantity reads on predictions made from noise."""

    def at(self, t: int) -> float:
        """Reading on the prediction at step t over that on the truth."""
        ...


class CalibratedGuidance:
    """Each sample's clean prediction moved along the alignment gradient until it reads its own target.

    `calibration` (`models.prediff.calibration`) says what a prediction at each step must read for the finished sample
    to meet the target; without it, early predictions are held to the target itself.

    The move is found by a few secant steps of the alignment network alone, is never worse than none, and is at most
    `reach` standard deviations of what the noise still leaves open (root mean square over the latent). A prediction
    that reads within `tolerance` of its target (a share of it) stays as it is: with many steps most of them do.
    """

    def __init__(
        self,
        estimate: Estimate,
        schedule: DiffusionSchedule,
        target: Tensor,
        *,
        calibration: Calibration | None = None,
        strength: float = 1.0,
        reach: float = 3.0,
        iterations: int = 3,
        tolerance: float = 0.002,
    ) -> None:
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"expected a strength of 0 to 1; got {strength}")
        self.estimate = estimate
        self.schedule = schedule
        self.target = target
        self.calibration = calibration
        self.strength = strength
        self.reach = reach
        self.iterations = iterations
        self.tolerance = tolerance

    def adjust(self, prediction: Prediction) -> Prediction:
        """Moves the clean prediction of every sample that reads off its target; `target` is (B,) or (1,)."""
        z, t = as_trained(prediction, self.schedule)
        with torch.enable_grad():
            data = prediction.data.detach().requires_grad_()
            reading = read(self.estimate, data, 0)
            total = reading.sum()
        value = reading.detach()
        goal = self.target.to(value) * (1.0 if self.calibration is None else self.calibration.at(t))
        astray = (value - goal).abs() > self.tolerance * goal.abs()
        if not astray.any():
            return prediction
        (slope,) = torch.autograd.grad(total, data)
        _, gradient = value_and_gradient(self.estimate, z, t)
        direction = gradient / _rms(gradient).clamp(min=1e-20)
        target = value + self.strength * (goal - value)
        limit = (
            self.reach * (prediction.sigma / (prediction.alpha.square() + prediction.sigma.square()).sqrt()).flatten()
        )
        length = self._search(prediction.data, direction, value - target, _inner(slope, direction), target, limit)
        return prediction.with_data_shift(_like(length * astray, direction) * direction)

    def _search(
        self, data: Tensor, direction: Tensor, off: Tensor, slope: Tensor, target: Tensor, limit: Tensor
    ) -> Tensor:
        """Length (B,) of the move for which the quantity is nearest to `target`; `off` is how far it is without."""
        best, least = torch.zeros_like(off), off.abs()
        before, off_before = torch.zeros_like(off), off
        length = _bounded(-off / _nonzero(slope), limit)
        for _ in range(self.iterations):
            off_now = read(self.estimate, data + _like(length, data) * direction, 0) - target
            better = off_now.abs() < least
            best, least = torch.where(better, length, best), torch.where(better, off_now.abs(), least)
            secant = (off_now - off_before) / _nonzero(length - before)
            before, off_before, length = length, off_now, _bounded(length - off_now / _nonzero(secant), limit)
        return best


def read(estimate: Estimate, z: Tensor, t: int) -> Tensor:
    """The quantity's mean over the lead times (B,) at z (B, ...), step t."""
    return estimate(z, torch.full((len(z),), t, device=z.device)).float().mean(dim=(1, 2))


def value_and_gradient(estimate: Estimate, z: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """What `read` gives (B,), and its gradient in z."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = read(estimate, z, t)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def as_trained(prediction: Prediction, schedule: DiffusionSchedule) -> tuple[Tensor, int]:
    """The noisy latent scaled to unit variance and the step of `schedule` with the same ratio of data to noise.

    On the schedule itself this changes nothing; a point of a straight path becomes one of the diffusion's.
    """
    alpha, sigma = float(prediction.alpha.flatten()[0]), float(prediction.sigma.flatten()[0])
    length = (alpha**2 + sigma**2) ** 0.5
    z = prediction.z if abs(length - 1.0) < 1e-6 else prediction.z / length
    return z, schedule.nearest_step(alpha, sigma)


def _like(values: Tensor, tensor: Tensor) -> Tensor:
    return values.view(-1, *[1] * (tensor.ndim - 1))


def _rms(tensor: Tensor) -> Tensor:
    return _like(tensor.flatten(1).square().mean(1).sqrt(), tensor)


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).flatten(1).sum(1)


def _nonzero(values: Tensor) -> Tensor:
    return torch.where(values.abs() < 1e-12, torch.full_like(values, 1e-12), values)


def _bounded(length: Tensor, limit: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(length, limit), -limit)
