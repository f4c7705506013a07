"""Stage 3: what a noisy latent means (alignment network), and what the context leads to expect (estimator)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from models.prediff.network import PreDiffNetwork
from models.prediff.schedule import DiffusionSchedule, mix
from tasks.training.optimisation import decay_groups
from tasks.training.stages.denoiser import latent_batch, step_generator, to_device
from tasks.training.stages.latents import LatentSet
from tasks.training.stages.stage import Batch, StageConfig


class _Trained(nn.Module):
    def __init__(self, network: PreDiffNetwork, fixed: bool) -> None:
        super().__init__()
        if not fixed:
            self.alignment = network.alignment
        self.estimator = network.estimator


class AlignmentStage:
    """The constraint's value of every future frame from its noisy latent (squared error), and its distribution from the
    context alone (Gaussian likelihood); no context reaches the first, no future the second.

    A third of the noisy latents are other windows' futures beside this window's anchor: guidance asks about futures
    that are far from the anchor, and the network must not answer from the anchor alone.

    With `fixed` the alignment network stays as it is (imported) and the estimator is trained alone.
    """

    name = "alignment"

    def __init__(
        self,
        network: PreDiffNetwork,
        train: LatentSet,
        held_out: LatentSet,
        *,
        seed: int,
        batch_size: int,
        fixed: bool = False,
    ) -> None:
        self.network, self.train, self.held_out = network, train, held_out
        self.seed, self.batch_size = seed, batch_size
        self.schedule = DiffusionSchedule(network.config.diffusion_steps)
        self.fixed, self.parts = fixed, _Trained(network, fixed)

    @property
    def trained(self) -> nn.Module:
        """Both networks, or the estimator."""
        return self.parts

    @property
    def helpers(self) -> nn.Module | None:
        """The alignment network where it is fixed, so that it is where the estimator is; else None."""
        return self.network.alignment if self.fixed else None

    @property
    def keeps_newest(self) -> bool:
        """The best on validation windows."""
        return False

    def optimisers(self, config: StageConfig) -> list[torch.optim.Optimizer]:
        """AdamW over what is trained."""
        return [torch.optim.AdamW(decay_groups(self.parts, config.weight_decay), lr=config.learning_rate)]

    def batch(self, step: int) -> Batch:
        """Latents, constraint values and pooled frames of some windows."""
        random = np.random.default_rng((self.seed, step))
        picks = torch.from_numpy(random.integers(0, len(self.train), self.batch_size))
        others = picks.clone()
        swapped = torch.from_numpy(random.random(self.batch_size) < 1 / 3)
        others[swapped] = torch.from_numpy(random.integers(0, len(self.train), int(swapped.sum())))
        return self._gather(self.train, picks, others, step_generator(self.seed, step))

    def losses(self, batch: Batch, done: float) -> Iterator[Tensor]:
        """Both losses, added; of the estimator alone its own."""
        if self.fixed:
            yield self._estimator_loss(batch)
            return
        z0 = batch["residual"]
        t = torch.randint(self.schedule.steps, (len(z0),)).to(z0.device)
        z_t = mix(self.schedule, z0, torch.randn_like(z0), t)
        yield self._alignment_loss(batch, z_t, t) + 0.01 * self._estimator_loss(batch)

    def validate(self) -> dict[str, float]:
        """Root mean square error at little noise and over all steps, likelihood of the estimator; "loss" chooses."""
        generator = torch.Generator().manual_seed(self.seed)
        picks = torch.arange(len(self.held_out))
        batch = to_device(self._gather(self.held_out, picks, picks, None), self.trained)
        z0 = batch["residual"]
        noise = torch.randn(z0.shape, generator=generator).to(z0)
        clean = torch.zeros(len(z0), dtype=torch.long, device=z0.device)
        spread = torch.linspace(0, self.schedule.steps - 1, len(z0)).long().to(z0.device)
        near = self._alignment_loss(batch, mix(self.schedule, z0, noise, clean), clean)
        over = self._alignment_loss(batch, mix(self.schedule, z0, noise, spread), spread)
        likelihood = self._estimator_loss(batch)
        return {
            "loss": float(likelihood if self.fixed else over + near + 0.01 * likelihood),
            "rmse_clean": float(near.sqrt()) * self._unit,
            "rmse": float(over.sqrt()) * self._unit,
            "estimator_nll": float(likelihood),
        }

    @property
    def _unit(self) -> float:
        """Usual size of the constraint's value."""
        return self.network.config.estimator.scale

    def _gather(
        self, latents: LatentSet, picks: Tensor, others: Tensor, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        batch = latent_batch(self.network, latents, others, generator)
        if latents.anchor is not None:
            future = self.network.from_residual(batch["residual"], batch["anchor"])
            batch["anchor"] = self.network.standardise(latents.anchor[picks])
            batch["residual"] = self.network.to_residual(future, batch["anchor"])
        return batch | {
            "value": latents.values[others],
            "expected": latents.values[picks],
            "frames": latents.frames[picks],
            "known": latents.known[picks],
        }

    def _alignment_loss(self, batch: Batch, z_t: Tensor, t: Tensor) -> Tensor:
        """Mean squared error in units of the usual value; frames without an observation do not count."""
        told: Tensor = self.network.alignment(z_t, t, batch.get("anchor"))
        value = batch["value"]
        known = ~value.isnan()
        error = torch.where(known, (told - torch.where(known, value, 0.0)) / self._unit, 0.0)
        return error.square().sum() / known.sum().clamp(min=1)

    def _estimator_loss(self, batch: Batch) -> Tensor:
        loss: Tensor = self.network.estimator.loss(batch["frames"], batch["known"], batch["expected"])
        return loss
