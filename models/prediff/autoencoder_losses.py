"""Losses of the frame autoencoder: reconstruction, a weak pull to the unit Gaussian, and a discriminator's opinion.

References:
    Rombach et al. (2022), arXiv:2112.10752; Esser et al. (2021), adaptive adversarial weight, arXiv:2012.09841.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.prediff.discriminator import frozen


class AutoencoderLossConfig(BaseModel):
    """Weights of the terms; the defaults are those of PreDiff v1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kl_weight: float = Field(default=1e-6, ge=0)
    # Needs the weights file of `models.prediff.perceptual`.
    perceptual_weight: float = Field(default=0.0, ge=0)
    adversarial_weight: float = Field(default=0.5, ge=0)
    # First generator step (0-based) with a discriminator: v1's 50,001 counts the steps of both optimisers.
    discriminator_start: int = Field(default=25_000, ge=0)


@dataclass(frozen=True)
class GeneratorLoss:
    """Loss of the autoencoder and its parts; all but `total` are detached.

    reconstruction: sum of absolute (and perceptual) errors per frame. kl: nats per frame. adversarial: minus the mean
    logit of the reconstruction. weight: of the adversarial part. Both are 0 before the discriminator starts.
    """

    total: Tensor
    reconstruction: Tensor
    kl: Tensor
    adversarial: Tensor
    weight: Tensor


@dataclass(frozen=True)
class DiscriminatorLoss:
    """Hinge loss of the discriminator with its mean logits (detached)."""

    total: Tensor
    logits_real: Tensor
    logits_fake: Tensor


def generator_loss(
    config: AutoencoderLossConfig,
    frames: Tensor,
    reconstruction: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    *,
    discriminator: nn.Module,
    last_weight: Tensor,
    step: int,
    perceptual: nn.Module | None = None,
) -> GeneratorLoss:
    """Loss of the autoencoder; its backward leaves no gradient in the discriminator.

    Args:
        config: Weights.
        frames: (N, C, H, W), network space.
        reconstruction: The same from the decoder, with gradient.
        mean: (N, c, h, w) of the posterior.
        log_variance: (N, c, h, w) of the posterior.
        discriminator: Judges the reconstruction from `config.discriminator_start` on.
        last_weight: The decoder's last weight, where both gradients are compared.
        step: Generator steps done before.
        perceptual: Distance (N, 1, 1, 1) of two batches; needed where `perceptual_weight` > 0.
    """
    nll = reconstruction_error(frames, reconstruction, perceptual, config.perceptual_weight)
    kl = kl_divergence(mean, log_variance)
    total = nll + config.kl_weight * kl
    if step < config.discriminator_start:
        nothing = torch.zeros((), device=frames.device)
        return GeneratorLoss(total, nll.detach(), kl.detach(), nothing, nothing)
    with frozen(discriminator):
        adversarial = -discriminator(reconstruction).mean()
    weight = adaptive_weight(nll, adversarial, last_weight, config.adversarial_weight)
    return GeneratorLoss(total + weight * adversarial, nll.detach(), kl.detach(), adversarial.detach(), weight)


def discriminator_loss(
    config: AutoencoderLossConfig, frames: Tensor, reconstruction: Tensor, *, discriminator: nn.Module, step: int
) -> DiscriminatorLoss:
    """Hinge loss on frames and detached reconstructions (N, C, H, W); 0 without gradient before the start."""
    if step < config.discriminator_start:
        nothing = torch.zeros((), device=frames.device)
        return DiscriminatorLoss(nothing, nothing, nothing)
    real, fake = discriminator(frames), discriminator(reconstruction.detach())
    hinge = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    return DiscriminatorLoss(hinge, real.detach().mean(), fake.detach().mean())


def reconstruction_error(
    frames: Tensor, reconstruction: Tensor, perceptual: nn.Module | None = None, perceptual_weight: float = 0.0
) -> Tensor:
    """Sum over a frame of absolute, and weighted perceptual, errors; mean over the batch (N, C, H, W)."""
    error = (frames - reconstruction).abs()
    if perceptual_weight > 0.0:
        if perceptual is None:
            raise ValueError("expected a perceptual distance where its weight is above 0")
        error = error + perceptual_weight * perceptual(frames, reconstruction)
    return error.sum() / len(frames)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Divergence from the unit Gaussian, in nats: summed over a latent (N, c, h, w), mean over the batch."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum() / len(mean)


def adaptive_weight(nll: Tensor, adversarial: Tensor, last_weight: Tensor, base: float) -> Tensor:
    """`base` times the ratio of both losses' gradients at the last weight: neither drowns the other. Detached."""
    (wanted,) = torch.autograd.grad(nll, last_weight, retain_graph=True)
    (opposed,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
    ratio: Tensor = wanted.norm() / (opposed.norm() + 1e-4)
    return base * ratio.clamp(0.0, 1e4).detach()
