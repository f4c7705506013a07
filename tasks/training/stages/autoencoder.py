"""Stage 1: the frame autoencoder, later with a discriminator that keeps its texture honest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from models.gaps import fill_gaps
from models.prediff.autoencoder import FrameAutoencoder
from models.prediff.autoencoder_losses import AutoencoderLossConfig, discriminator_loss, generator_loss
from models.prediff.discriminator import PatchDiscriminator
from models.transform import Transform
from tasks.training.sample_set import SampleSet
from tasks.training.stages.stage import Batch, StageConfig

_FRAMES_OF_A_WINDOW = 4
_WHOLE_PATCHES = 32  # cells
_VALIDATED = 48  # windows


class AutoencoderStage:
    """Frames drawn from wet windows; reconstruction, a weak pull to the unit Gaussian, adversarial from a step on."""

    name = "autoencoder"

    def __init__(
        self,
        network: FrameAutoencoder,
        samples: SampleSet,
        transform: Transform,
        *,
        seed: int,
        batch_size: int,
        losses: AutoencoderLossConfig,
        discriminator_width: int = 16,
    ) -> None:
        self.network, self.samples, self.transform = network, samples, transform
        self.seed, self.batch_size, self.weights = seed, batch_size, losses
        self.reader = samples.reader()
        layers = 3 if min(samples.size) >= _WHOLE_PATCHES else 2  # deeper, nothing would be left of a smaller frame
        self.discriminator = PatchDiscriminator(network.config.in_channels, discriminator_width, layers)
        self._held_out: Tensor | None = None

    @property
    def trained(self) -> nn.Module:
        """The autoencoder."""
        return self.network

    @property
    def helpers(self) -> nn.Module:
        """The discriminator."""
        return self.discriminator

    def optimisers(self, config: StageConfig) -> list[torch.optim.Optimizer]:
        """One for each, Adam as published (betas 0.5, 0.9)."""
        return [
            torch.optim.AdamW(
                module.parameters(), lr=config.learning_rate, betas=(0.5, 0.9), weight_decay=config.weight_decay
            )
            for module in (self.network, self.discriminator)
        ]

    def batch(self, step: int) -> Batch:
        """frames (N, 1, H, W), network space, without gaps: some frames of each drawn window."""
        windows = self.samples.draw(self.seed, step, max(1, self.batch_size // _FRAMES_OF_A_WINDOW))
        picks = np.random.default_rng((self.seed, step, 1)).integers(
            0, self.samples.t_in + self.samples.t_out, (len(windows), _FRAMES_OF_A_WINDOW)
        )
        frames = self._frames(self.reader.read(windows))
        return {"frames": torch.cat([window[pick] for window, pick in zip(frames, picks, strict=True)])[:, None]}

    def losses(self, batch: Batch, step: int) -> Iterator[Tensor]:
        """Of the autoencoder, then of the discriminator on what it gave."""
        frames = batch["frames"]
        mean, logvar = self.network.encode(frames)
        latent = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        given = self.network.decode(latent)
        yield generator_loss(
            self.weights,
            frames,
            given,
            mean,
            logvar,
            discriminator=self.discriminator,
            last_weight=self.network.last_layer,
            step=step,
        ).total
        yield discriminator_loss(self.weights, frames, given, discriminator=self.discriminator, step=step).total

    def validate(self) -> dict[str, float]:
        """Mean absolute ("loss") and root mean square error of reconstructed held-out frames, network space."""
        if self._held_out is None:
            windows = self.samples.held_out("val", _VALIDATED, wet=True)
            self._held_out = self._frames(self.reader.read(windows))[:, :: max(1, self.samples.t_in // 3)].flatten(0, 1)
        errors = []
        for first in range(0, len(self._held_out), self.batch_size):
            frames = self._held_out[first : first + self.batch_size, None].to(next(self.network.parameters()).device)
            errors.append(self.network.decode(self.network.encode(frames)[0]) - frames)
        error = torch.cat(errors)
        return {"loss": float(error.abs().mean()), "rmse": float(error.square().mean().sqrt())}

    def _frames(self, fields: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Tensor:
        u = self.transform.forward(torch.from_numpy(fields))
        return torch.stack([fill_gaps(window) for window in u])
