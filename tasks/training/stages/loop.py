"""The loop of a stage: Lightning runs it; rate, batches and randomness are functions of the step, so it can go on.

A stage writes its whole state every few steps: a killed one goes on from there, with the very batches and noise that
it would have seen.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from tasks.training.fit import choose_precision
from tasks.training.optimisation import MovingAverage, learning_rate
from tasks.training.progress_bar import TrainingBar
from tasks.training.stages.stage import Batch, Stage, StageConfig, StageResult
from tasks.training.state import (
    Progress,
    TrainingState,
    load_latest_state,
    optimiser_tensors,
    restore_optimiser,
    save_state,
    seed_step,
)

if TYPE_CHECKING:
    from infra.tracking import RunLog

BEST, DONE = "best.safetensors", "done.json"
LOG_EVERY = 20


class _Parts(nn.Module):
    """What is trained and what helps, as one module, so that one state holds both."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.trained = stage.trained
        self.helpers = stage.helpers or nn.Module()


class _Batches(IterableDataset[Batch]):
    """Batches from the first missing step on."""

    def __init__(self, stage: Stage, first: int) -> None:
        self.stage, self.first = stage, first

    def __iter__(self) -> Iterator[Batch]:
        step = self.first
        while True:
            yield self.stage.batch(step)
            step += 1


class _Module(LightningModule):
    """A stage under its optimisers, each stepped by hand: the discriminator's loss needs the moved autoencoder."""

    def __init__(self, stage: Stage, config: StageConfig, first: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.stage, self.config, self.parts, self.first = stage, config, _Parts(stage), first
        self.rate, self.done = 0.0, 0.0  # of the step that comes

    def training_step(self, batch: Batch) -> torch.Tensor:
        """One step of every optimiser; returns the first loss."""
        optimisers = cast("list[Any]", self.optimizers(use_pl_optimizer=True))
        optimisers = optimisers if isinstance(optimisers, list) else [optimisers]
        first: torch.Tensor | None = None
        for optimiser, loss in zip(optimisers, self.stage.losses(batch, self.done), strict=True):
            first = loss.detach() if first is None else first
            optimiser.zero_grad()  # also clears what another loss left in these weights
            if not loss.requires_grad:
                continue
            self.manual_backward(loss)
            parameters = [weight for group in optimiser.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip)
            for group in optimiser.param_groups:
                group["lr"] = self.rate
            optimiser.step()
        if first is None:
            raise RuntimeError(f"expected stage {self.stage.name} to give a loss; it gave none")
        return first

    def configure_optimizers(self) -> Any:
        """The stage's."""
        return self.stage.optimisers(self.config)

    def train_dataloader(self) -> Any:
        """Batches, made in this process."""
        return DataLoader(_Batches(self.stage, self.first), batch_size=None)


class _Conducting(Callback):
    """Rate, average, validation, states and the end."""

    def __init__(
        self,
        config: StageConfig,
        folder: Path,
        average: MovingAverage,
        state: TrainingState | None,
        log: RunLog | None,
    ) -> None:
        self.config, self.folder, self.average, self.resumed, self.log_ = config, folder, average, state, log
        self.progress = state.progress if state else Progress()
        self.metrics: dict[str, float] = {}
        self.started = time.monotonic()

    def is_over(self) -> bool:
        """Whether all steps are done or the budget is spent."""
        config, step = self.config, self.progress.step
        spent = config.budget is not None and self._elapsed() >= config.budget.total_seconds()
        return spent or (config.max_steps is not None and step >= config.max_steps)

    def _elapsed(self) -> float:
        return self.progress.seconds + time.monotonic() - self.started

    def share_done(self) -> float:
        """Progress 0..1, by steps or by budget, whichever is further."""
        config = self.config
        by_steps = (self.progress.step + 1) / config.max_steps if config.max_steps else 0.0
        by_time = self._elapsed() / config.budget.total_seconds() if config.budget else 0.0
        return min(max(by_steps, by_time), 1.0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Give the optimisers their moments back."""
        self.started = time.monotonic()
        self.average.to(pl_module.device)
        if self.resumed is None:
            return
        for number, optimiser in enumerate(trainer.optimizers):
            prefix = f"{number}/"
            mine = {key: value for key, value in self.resumed.optimiser.items() if key.startswith(prefix)}
            restore_optimiser(optimiser, {key.removeprefix(prefix): value for key, value in mine.items()})
        self.resumed = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Seed all randomness of this step, set its rate, and tell how far the stage is."""
        config = pl_module.config
        seed_step(config.seed, self.progress.step)
        pl_module.done = self.share_done()
        pl_module.rate = learning_rate(
            pl_module.done, base=config.learning_rate, warmup=config.warmup, floor=config.floor
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average, log, validate, keep, stop."""
        config = pl_module.config
        self.progress = replace(self.progress, step=self.progress.step + 1)
        self.average.update(pl_module.parts.trained, self.progress.step)
        step = self.progress.step
        if step % LOG_EVERY == 0 and self.log_ is not None:
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs
            self.log_.metrics({"train/loss": float(loss), "train/learning_rate": pl_module.rate}, step)
        if step % config.val_every == 0:
            self.validate(pl_module)
        if self.is_over():
            trainer.should_stop = True
        elif step % config.checkpoint_every == 0:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Validate what has not been and leave a last state."""
        if self.progress.validated != self.progress.step:
            self.validate(pl_module)
        self._save(trainer, pl_module)

    def validate(self, module: _Module) -> None:
        """Score the averaged weights on the validation set; keep them where they are the best, or as the stage says."""
        trained = module.stage.trained
        live = {name: value.detach().clone() for name, value in trained.state_dict().items()}
        trained.load_state_dict(self.average.weights)
        trained.eval()
        with torch.no_grad():
            self.metrics = module.stage.validate()
        trained.load_state_dict(live)
        trained.train()
        step, loss = self.progress.step, self.metrics["loss"]
        best = self.progress.best_score
        self.progress = replace(self.progress, validated=step)
        newest = module.stage.keeps_newest and math.isfinite(loss)
        if newest or best is None or -loss > best or best != best:
            self.progress = replace(self.progress, best_score=-loss, best_step=step)
            _write_weights(self.folder / BEST, self.average.weights)
        if self.log_ is not None:
            self.log_.metrics({f"val/{name}": value for name, value in self.metrics.items()}, step)

    def _save(self, trainer: Any, module: _Module) -> None:
        now = time.monotonic()
        self.progress = replace(self.progress, seconds=self.progress.seconds + now - self.started)
        self.started = now
        moments = {
            f"{number}/{key}": value
            for number, optimiser in enumerate(trainer.optimizers)
            for key, value in optimiser_tensors(optimiser).items()
        }
        state = TrainingState(self.progress, module.parts.state_dict(), self.average.weights, moments)
        save_state(self.folder / "states", state)


class _Bar(TrainingBar, Callback):
    """The bar as Lightning knows it."""


def fit_stage(stage: Stage, config: StageConfig, folder: Path, log: RunLog | None = None) -> StageResult:
    """Train a stage, or go on with it where `folder` holds a state; one that is done is only read.

    Args:
        stage: What is trained.
        config: How.
        folder: For states and the best weights; belongs to this stage of this training alone.
        log: Open MLflow run; None logs nothing.
    """
    if (folder / DONE).exists():
        return _read(stage.name, folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = load_latest_state(folder / "states")
    average = MovingAverage(stage.trained, config.ema_decay)
    conductor = _Conducting(config, folder, average, state, log)
    module = _Module(stage, config, conductor.progress.step)
    if state is not None:
        module.parts.load_state_dict(dict(state.network))
        average.load(state.average)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # advice about workers: batches come from memory
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning's own call
        trainer = Trainer(
            accelerator=config.accelerator,
            devices=1,
            precision=choose_precision(config),
            max_steps=-1,
            max_epochs=-1,
            callbacks=[conductor, *([_Bar(conductor, stage.name, "loss")] if config.progress_bar else [])],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        if conductor.is_over():  # killed between its last state and its result
            conductor.validate(module)
        else:
            trainer.fit(module)
    progress = conductor.progress
    done = {
        "steps": progress.step,
        "seconds": progress.seconds,
        "metrics": conductor.metrics,
        "best": -(progress.best_score or 0.0),
    }
    partial = folder / f".{DONE}.part"
    partial.write_text(json.dumps(done))
    partial.replace(folder / DONE)
    return _read(stage.name, folder)


def _read(name: str, folder: Path) -> StageResult:
    return StageResult(name, folder / BEST, **json.loads((folder / DONE).read_text()))


def _write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    partial = path.with_suffix(".part")
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, partial)
    partial.replace(path)
