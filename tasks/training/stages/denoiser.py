"""Stage 2: the latent denoiser, on cached latents."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from models.prediff.network import PreDiffNetwork
from models.prediff.objective import DiffusionObjective
from models.prediff.schedule import DiffusionSchedule
from tasks.training.optimisation import decay_groups
from tasks.training.stages.latents import LatentSet
from tasks.training.stages.stage import Batch, StageConfig

_VALIDATED_AT = 10  # steps of the path, evenly spaced


class DenoiserStage:
    """Noisy residuals of cached windows, at random steps; posterior samples are drawn afresh every time."""

    name = "denoiser"

    def __init__(
        self, network: PreDiffNetwork, train: LatentSet, held_out: LatentSet, *, seed: int, batch_size: int
    ) -> None:
        config = network.config
        self.network, self.train, self.held_out = network, train, held_out
        self.seed, self.batch_size = seed, batch_size
        self.objective = DiffusionObjective(DiffusionSchedule(config.diffusion_steps), config.objective)

    @property
    def trained(self) -> nn.Module:
        """The denoiser."""
        return self.network.denoiser

    @property
    def helpers(self) -> nn.Module:
        """The learned variance of every step."""
        return self.objective

    @property
    def keeps_newest(self) -> bool:
        """The best on validation windows."""
        return False

    def optimisers(self, config: StageConfig) -> list[torch.optim.Optimizer]:
        """AdamW over the denoiser and the step variances."""
        groups = decay_groups(self.network.denoiser, config.weight_decay)
        groups.append({"params": [self.objective.log_variance], "weight_decay": 0.0})
        return [torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999))]

    def batch(self, step: int) -> Batch:
        """Latents of some windows and noise."""
        random = np.random.default_rng((self.seed, step))
        picks = torch.from_numpy(random.integers(0, len(self.train), self.batch_size))
        return latent_batch(self.network, self.train, picks, step_generator(self.seed, step))

    def losses(self, batch: Batch, done: float) -> Iterator[Tensor]:
        """The objective's."""
        z0 = batch["residual"]
        noise, t = torch.randn_like(z0), self.objective.draw_steps(len(z0))
        yield self.objective(_denoise(self.network, batch), z0, batch["context"], t, noise).total

    def validate(self) -> dict[str, float]:
        """Mean squared error over fixed noise and steps; "loss"."""
        generator = torch.Generator().manual_seed(self.seed)
        steps = torch.linspace(0, self.objective.path.steps - 1, _VALIDATED_AT).round().long()
        errors = []
        for first in range(0, len(self.held_out), self.batch_size):
            picks = torch.arange(first, min(first + self.batch_size, len(self.held_out)))
            batch = to_device(latent_batch(self.network, self.held_out, picks, None), self.trained)
            z0 = batch["residual"]
            noise = torch.randn(z0.shape, generator=generator)
            t = steps[picks % len(steps)].to(z0.device)
            errors.append(
                self.objective(_denoise(self.network, batch), z0, batch["context"], t, noise.to(z0)).per_sample
            )
        return {"loss": float(torch.cat(errors).mean())}


def step_generator(seed: int, step: int) -> torch.Generator:
    """Randomness of a batch: the loader makes it ahead of its step, so the global generators are not its own."""
    word = np.random.SeedSequence((seed, step, 2)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word >> np.uint64(1)))


def latent_batch(
    network: PreDiffNetwork, latents: LatentSet, picks: Tensor, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Unit-variance context, anchor (where there is one) and residual of some windows.

    With a generator the future is a posterior sample, as published; without one the posterior mean.
    """
    future = latents.future[picks]
    if generator is not None:
        future = future + latents.future_std[picks] * torch.randn(future.shape, generator=generator)
    batch = {"context": network.standardise(latents.context[picks])}
    anchor = None if latents.anchor is None else network.standardise(latents.anchor[picks])
    if anchor is not None:
        batch["anchor"] = anchor
    batch["residual"] = network.to_residual(network.standardise(future), anchor)
    return batch


def to_device(batch: Batch, network: nn.Module) -> dict[str, Tensor]:
    """A batch where a network is: Lightning moves what it trains on, a validation brings its own."""
    device = next(network.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}


def _denoise(network: PreDiffNetwork, batch: Batch) -> _Denoise:
    return _Denoise(network, batch.get("anchor"))


class _Denoise:
    """The denoiser under the objective's contract."""

    def __init__(self, network: PreDiffNetwork, anchor: Tensor | None) -> None:
        self.network, self.anchor = network, anchor

    def __call__(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        answer: Tensor = self.network.denoiser(z, t, context, self.anchor)
        return answer
