"""Stage 1: the frame autoencoder, where asked for with a discriminator that later keeps its texture honest."""

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
# The losses start a discriminator at a step, as published; here a share of the stage does: step 0 is before, 1 after.
_LOSSES = AutoencoderLossConfig(discriminator_start=1)


class AutoencoderStage:
    """Frames drawn from wet windows; reconstruction, a weak pull to the unit Gaussian, and a discriminator's opinion.

    Attributes:
        discriminator: Judges reconstructions once more than `joins` of the stage is done, by steps or by time (the
            published training counts steps); None: there is none.
        perceptual: LPIPS distance added to the absolute error with weight 1; None: left out, as published.
    """

    name = "autoencoder"

    def __init__(
        self,
        network: FrameAutoencoder,
        samples: SampleSet,
        transform: Transform,
        *,
        seed: int,
        batch_size: int,
        discriminator_from: float | None = None,
        discriminator_width: int = 16,
        perceptual: nn.Module | None = None,
    ) -> None:
        if discriminator_from is not None and not 0.0 <= discriminator_from < 1.0:
            raise ValueError(f"expected the discriminator from a share 0..1 of the stage on; got {discriminator_from}")
        self.network, self.samples, self.transform = network, samples, transform
        self.seed, self.batch_size, self.joins = seed, batch_size, discriminator_from
        self.reader = samples.reader()
        self.discriminator: PatchDiscriminator | None = None
        if discriminator_from is not None:
            layers = 3 if min(samples.size) >= _WHOLE_PATCHES else 2  # deeper, nothing would be left of a smaller frame
            self.discriminator = PatchDiscriminator(network.config.in_channels, discriminator_width, layers)
        # Not a helper: its weights are given, and belong in no state.
        self.perceptual = None if perceptual is None else perceptual.requires_grad_(False)
        self.config = _LOSSES.model_copy(update={"perceptual_weight": float(perceptual is not None)})
        self._held_out: Tensor | None = None

    @property
    def trained(self) -> nn.Module:
        """The autoencoder."""
        return self.network

    @property
    def helpers(self) -> nn.Module | None:
        """The discriminator, if any."""
        return self.discriminator

    @property
    def keeps_newest(self) -> bool:
        """With a discriminator: it pays for texture with absolute error, which would keep weights it never judged."""
        return self.discriminator is not None

    def optimisers(self, config: StageConfig) -> list[torch.optim.Optimizer]:
        """One for each network, Adam as published (betas 0.5, 0.9)."""
        networks = [self.network] if self.discriminator is None else [self.network, self.discriminator]
        return [
            torch.optim.AdamW(
                module.parameters(), lr=config.learning_rate, betas=(0.5, 0.9), weight_decay=config.weight_decay
            )
            for module in networks
        ]

    def batch(self, step: int) -> Batch:
        """frames (N, 1, H, W), network space, without gaps: some frames of each drawn window."""
        windows = self.samples.draw(self.seed, step, max(1, self.batch_size // _FRAMES_OF_A_WINDOW))
        picks = np.random.default_rng((self.seed, step, 1)).integers(
            0, self.samples.t_in + self.samples.t_out, (len(windows), _FRAMES_OF_A_WINDOW)
        )
        frames = self._frames(self.reader.read(windows))
        return {"frames": torch.cat([window[pick] for window, pick in zip(frames, picks, strict=True)])[:, None]}

    def losses(self, batch: Batch, done: float) -> Iterator[Tensor]:
        """Of the autoencoder, then, where there is one, of the discriminator on what it gave."""
        frames = batch["frames"]
        mean, logvar = self.network.encode(frames)
        latent = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        given = self.network.decode(latent)
        judge = nn.Identity() if self.discriminator is None else self.discriminator
        step = int(self.joins is not None and done > self.joins)
        last = self.network.last_layer
        perceptual = None if self.perceptual is None else self.perceptual.to(frames.device)
        yield generator_loss(
            self.config,
            frames,
            given,
            mean,
            logvar,
            discriminator=judge,
            last_weight=last,
            step=step,
            perceptual=perceptual,
        ).total
        if self.discriminator is not None:
            yield discriminator_loss(self.config, frames, given, discriminator=judge, step=step).total

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
