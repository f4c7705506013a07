"""All of a trained PreDiff in one module, so that it is saved, loaded and moved as one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.configuration import build_network
from models.prediff.alignment import AlignmentNetwork
from models.prediff.autoencoder import FrameAutoencoder
from models.prediff.configuration import PreDiffConfig
from models.prediff.denoiser import LatentDenoiser
from models.prediff.intensity_estimator import IntensityEstimator
from models.prediff.objective import DiffusionObjective
from models.prediff.schedule import DiffusionSchedule


class PreDiffNetwork(nn.Module):
    """The networks and the scales between them; latents outside of it have unit variance.

    Buffers, measured on the training frames once the autoencoder is trained: `latent_mean`, `latent_std` (c,) of the
    posterior mean; `residual_mean`, `residual_std` (T_out, c) of the difference between the latents of future and
    anchor; `floor` (), network space, below which no observed value lies.
    """

    latent_mean: Tensor
    latent_std: Tensor
    residual_mean: Tensor
    residual_std: Tensor
    floor: Tensor

    def __init__(self, config: PreDiffConfig) -> None:
        super().__init__()
        self.config = config
        parts = config.architecture
        self.autoencoder = FrameAutoencoder(parts.autoencoder)
        self.denoiser = LatentDenoiser(parts.denoiser)
        self.alignment = AlignmentNetwork(parts.alignment)
        self.estimator = IntensityEstimator(config.estimator)
        self.anchor = None if config.anchor_model is None else build_network(config.anchor_model)
        channels = parts.autoencoder.latent_channels
        self.register_buffer("latent_mean", torch.zeros(channels))
        self.register_buffer("latent_std", torch.ones(channels))
        self.register_buffer("residual_mean", torch.zeros(config.t_out, channels))
        self.register_buffer("residual_std", torch.ones(config.t_out, channels))
        self.register_buffer("floor", torch.tensor(-1e30))

    def objective(self) -> DiffusionObjective:
        """The objective the denoiser was trained with, for sampling."""
        schedule = DiffusionSchedule(self.config.diffusion_steps)
        return DiffusionObjective(schedule, self.config.objective, learn_log_variance=False)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, H, W, 1), network space, without gaps → unit-variance latents (B, T, h, w, c): the mean."""
        mean, _ = self.autoencoder.encode_sequence(frames)
        return self.standardise(mean)

    def standardise(self, latent: Tensor) -> Tensor:
        """The autoencoder's own latents (..., c) → unit-variance ones."""
        return (latent - self.latent_mean) / self.latent_std

    def decode(self, latent: Tensor) -> Tensor:
        """Unit-variance latents (B, T, h, w, c) → frames (B, T, H, W, 1), network space, not below `floor`."""
        frames = self.autoencoder.decode_sequence(latent * self.latent_std + self.latent_mean)
        return torch.maximum(frames, self.floor)

    def to_residual(self, future: Tensor, anchor: Tensor | None) -> Tensor:
        """Latents (B, T_out, h, w, c) of the future → what is diffused; without an anchor the latents themselves."""
        if anchor is None:
            return future
        return (future - anchor - _over_cells(self.residual_mean)) / _over_cells(self.residual_std)

    def from_residual(self, residual: Tensor, anchor: Tensor | None) -> Tensor:
        """The inverse of `to_residual`; one anchor (1, T_out, h, w, c) serves all members."""
        if anchor is None:
            return residual
        return anchor + _over_cells(self.residual_mean) + residual * _over_cells(self.residual_std)


def _over_cells(values: Tensor) -> Tensor:
    """(T_out, c) → (1, T_out, 1, 1, c)."""
    return values[None, :, None, None]
