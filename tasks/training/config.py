"""What a training is told and what it tells back; light to import, so that flows and steps may."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from infra.settings import Domain, Settings

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
LossName = Literal["mse", "balanced", "csi"]
# What may change between a training and its resumption without changing what it computes.
FREE_ON_RESUME = ("budget", "workers", "progress_bar", "checkpoint_every", "devices", "accelerator", "strategy")


@dataclass(frozen=True)
class TrainConfig:
    """One training, completely.

    Attributes:
        domain: Name of the domain.
        preset: Architecture, `family/preset`.
        seed: Of initial weights, samples and dropout.
        batch_size: Windows per optimiser step, over all devices.
        accumulate: Micro-batches per step and device.
        max_steps: Steps to do; None: as many as the budget allows.
        budget: Wall time, resumptions included; None: as long as max_steps takes.
        learning_rate: Peak rate of AdamW.
        weight_decay: Of all weights but biases and layer norms.
        warmup: Share of the training spent warming up.
        loss: mse, balanced (by intensity), or csi (balanced plus a differentiable critical success index).
        loss_thresholds: Where the csi loss steps, in the quantity's units; empty: `thresholds`.
        precision: Lightning's name; auto is bf16-mixed where the device computes in bfloat16 itself, else 32-true.
        accelerator: cpu, gpu or auto.
        devices: How many.
        strategy: Lightning's name (ddp, fsdp, ...); auto is one device, or data-parallel processes for several.
        gradient_clip: Largest norm of the gradient.
        ema_decay: Of the moving average that is validated and kept.
        augment: Turn and mirror windows.
        thresholds: Of the validation scores, in the quantity's units, ascending.
        val_every: Steps between validations.
        val_windows: Held-out windows a validation forecasts, the wet ones where there are any.
        patience: Validations without improvement before stopping; None: never.
        checkpoint_every: Steps between resumable states.
        workers: Loader processes; 0 reads in the training process.
        from_model: Checkpoint folder to start from (fine-tuning).
        progress_bar: Show one.
    """

    domain: str
    preset: str
    seed: int = 0
    batch_size: int = 16
    accumulate: int = 1
    max_steps: int | None = None
    budget: timedelta | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.1
    loss: LossName = "balanced"
    loss_thresholds: tuple[float, ...] = ()
    precision: Precision = "auto"
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    augment: bool = False
    thresholds: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0)
    val_every: int = 500
    val_windows: int = 256
    patience: int | None = None
    checkpoint_every: int = 200
    workers: int = 0
    from_model: Path | None = None
    progress_bar: bool = True

    def __post_init__(self) -> None:
        if self.max_steps is None and self.budget is None:
            raise ValueError("expected max_steps, a budget, or both; got neither")
        if self.loss not in ("mse", "balanced", "csi"):
            raise ValueError(f"expected a loss of mse, balanced, csi; got {self.loss!r}")


def told_config(
    domain: Domain,
    settings: Settings,
    *,
    preset: str,
    seed: int = 0,
    max_steps: int | None = None,
    budget: timedelta | None = None,
    from_model: Path | None = None,
) -> TrainConfig:
    """What was asked for, completed by a domain's `[training]`: by its budget too where no steps were asked for."""
    told = domain.training
    return TrainConfig(
        domain=domain.name,
        preset=preset,
        seed=seed,
        batch_size=told.batch_size,
        accumulate=told.accumulate,
        max_steps=max_steps,
        budget=budget or (told.budget if max_steps is None else None),
        learning_rate=told.learning_rate,
        loss=told.loss,
        precision=told.precision,
        accelerator="auto" if settings.device == "auto" else settings.device,
        devices=told.devices,
        strategy=told.strategy,
        gradient_clip=told.gradient_clip,
        ema_decay=told.ema_decay,
        augment=told.augment,
        thresholds=told_thresholds(domain),
        val_every=told.validate_every,
        patience=told.patience,
        checkpoint_every=told.checkpoint_every,
        workers=told.workers,
        from_model=from_model,
    )


def told_thresholds(domain: Domain) -> tuple[float, ...]:
    """Of the scores that a training is judged by, in the units of what it is trained on, ascending."""
    return domain.training.thresholds or domain.verification.thresholds


@dataclass(frozen=True)
class TrainResult:
    """What a training came to.

    Attributes:
        checkpoint: Folder with config.json and model.safetensors of the best averaged weights.
        last: The same of the last averaged weights.
        metrics: Scores of the last validation by name (`val/csi_1mm/lead_30min`).
        score: Best validation score: mean critical success index over thresholds and leads of 10 min and more.
        steps: Optimiser steps done in all.
        seconds: Time spent in all.
        samples_per_second: Training windows per second of this process, validation and checkpoints included.
        stopped_because: max_steps, budget or patience.
    """

    checkpoint: Path
    last: Path
    metrics: dict[str, float] = field(repr=False)
    score: float
    steps: int
    seconds: float
    samples_per_second: float
    stopped_because: str
