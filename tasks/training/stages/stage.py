"""What a stage of a PreDiff training is, and what it comes to; light to import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tasks.training.config import Precision

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Batch = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class StageConfig:
    """How one stage is trained.

    Attributes:
        seed: Of weights, batches, noise and steps.
        batch_size: Frames or windows per optimiser step.
        max_steps: Steps to do; None: as many as the budget allows.
        budget: Wall time, resumptions included; None: as long as max_steps takes.
        learning_rate: Peak rate.
        warmup: Share of the stage spent warming up.
        floor: Rate at the end, as a share of the peak.
        weight_decay: AdamW's.
        gradient_clip: Largest norm of each optimiser's gradient.
        ema_decay: Of the moving average, which is validated and kept.
        val_every: Steps between validations.
        checkpoint_every: Steps between resumable states.
        accelerator: cpu, gpu or auto.
        precision: Lightning's name; auto is bf16-mixed where the device computes in bfloat16 itself, else 32-true.
        progress_bar: Show one.
    """

    seed: int = 0
    batch_size: int = 32
    max_steps: int | None = None
    budget: timedelta | None = None
    learning_rate: float = 1e-3
    warmup: float = 0.05
    floor: float = 0.01
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    val_every: int = 250
    checkpoint_every: int = 200
    accelerator: str = "cpu"
    precision: Precision = "auto"
    progress_bar: bool = True

    def __post_init__(self) -> None:
        if self.max_steps is None and self.budget is None:
            raise ValueError("expected max_steps, a budget, or both; got neither")


class Stage(Protocol):
    """What the loop needs of a stage."""

    @property
    def name(self) -> str:
        """autoencoder, denoiser or alignment."""

    @property
    def trained(self) -> nn.Module:
        """What is averaged and kept."""

    @property
    def helpers(self) -> nn.Module | None:
        """What is trained beside it and only needed to go on: a discriminator, step variances; None: nothing."""

    @property
    def keeps_newest(self) -> bool:
        """Whether the newest averaged weights are kept, not those of the lowest validation loss."""
        ...

    def optimisers(self, config: StageConfig) -> list[torch.optim.Optimizer]:
        """One per loss that `losses` gives."""
        ...

    def batch(self, step: int) -> Batch:
        """What step `step` sees, a function of seed and step."""
        ...

    def losses(self, batch: Batch, done: float) -> Iterator[Tensor]:
        """The loss of each optimiser; the next is computed once the one before has moved its weights.

        Args:
            batch: What `batch` gave.
            done: Share of the stage that is done with this step, 0..1, by steps or by time.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Scores of `trained` with whatever weights it has now; "loss" chooses the best ones (lower is better)."""
        ...


@dataclass(frozen=True)
class StageResult:
    """What a stage came to.

    Attributes:
        name: Of the stage.
        weights: File with the averaged weights of the best validation, or the newest (`Stage.keeps_newest`).
        steps: Optimiser steps done in all.
        seconds: Time spent in all.
        metrics: The last validation's.
        best: Validation loss of the kept weights.
    """

    name: str
    weights: Path
    steps: int
    seconds: float
    metrics: dict[str, float]
    best: float
