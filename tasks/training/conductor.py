"""What happens between two steps of a training: rate, average, validation, states, and when to stop.

Free of Lightning: `tasks.training.fit` makes a callback of it.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from models.checkpoint import save_checkpoint
from models.configuration import ForecasterConfig
from tasks.training.config import TrainConfig
from tasks.training.loading import HeldOutBatches
from tasks.training.losses import Loss
from tasks.training.optimisation import MovingAverage, learning_rate, step_rate
from tasks.training.sample_set import SampleSet
from tasks.training.state import (
    Progress,
    TrainingState,
    optimiser_tensors,
    restore_optimiser,
    save_state,
    seed_step,
)
from tasks.training.validation import Validation, mean_csi, metrics, validate

if TYPE_CHECKING:
    from infra.tracking import RunLog

LOG_EVERY = 20
OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Task:
    """Everything a process of the training needs; built once, read only."""

    config: TrainConfig
    model: ForecasterConfig
    samples: SampleSet
    folder: Path
    log: RunLog | None
    loss: Loss


class Fit(Protocol):
    """What the conductor needs of the module that is trained."""

    network: nn.Module
    device: torch.device

    def held_out(self) -> HeldOutBatches:
        """The windows every validation forecasts."""


class Conductor:
    """Counts steps and acts between them: rate, average, validation, states, stopping."""

    def __init__(self, task: Task, state: TrainingState | None, average: MovingAverage) -> None:
        self.task, self.average, self.resumed = task, average, state
        self.progress = state.progress if state else Progress()
        self.result: Validation | None = None
        self.stopped_because = "max_steps"
        self.last_validation_s = 0.0

    @property
    def config(self) -> TrainConfig:
        return self.task.config

    def elapsed(self) -> float:
        """Seconds of this training, earlier processes included."""
        return self.progress.seconds + time.monotonic() - self.started

    def share_done(self) -> float:
        """Progress 0..1, by steps or by budget, whichever is further."""
        by_steps = (self.progress.step + 1) / self.config.max_steps if self.config.max_steps else 0.0
        by_time = self.elapsed() / self.config.budget.total_seconds() if self.config.budget else 0.0
        return min(max(by_steps, by_time), 1.0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Take over the optimiser's moments of the state that is resumed."""
        self.started, self.first_step = time.monotonic(), self.progress.step
        if self.resumed is not None:
            restore_optimiser(trainer.optimizers[0], self.resumed.optimiser)
            trainer.precision_plugin.load_state_dict(self.progress.precision)
            self.resumed = None
        self.average.to(pl_module.device)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Seed all randomness of this micro-batch."""
        seed_step(self.config.seed, batch_idx + self.first_step * self.config.accumulate, trainer.global_rank)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        """Set the rate of this step."""
        config = self.config
        shape = {"base": config.learning_rate, "warmup": config.warmup}
        if config.budget is None and config.max_steps is not None:
            rate = step_rate(self.progress.step, config.max_steps, **shape)
        else:
            rate = learning_rate(self.share_done(), **shape)
        for group in optimizer.param_groups:
            group["lr"] = rate

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a whole step: average, log, validate, keep, stop."""
        if (batch_idx + 1) % self.config.accumulate:
            return
        self._advance(step=self.progress.step + 1)
        self.average.update(pl_module.network, self.progress.step)
        step = self.progress.step
        if step % LOG_EVERY == 0:
            self._log({"train/loss": float(outputs["loss"]), **self._rates(trainer)}, trainer)
        if step % self.config.val_every == 0:
            self._validate(trainer, pl_module)
        if step % self.config.checkpoint_every == 0 and step != self.config.max_steps:
            self._save(trainer, pl_module)
        self._stop_if_due(trainer)

    def _rates(self, trainer: Any) -> dict[str, float]:
        done = (self.progress.step - self.first_step) * self.config.batch_size
        return {
            "train/learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "train/samples_per_second": done / max(time.monotonic() - self.started, 1e-9),
        }

    def _advance(self, **changes: Any) -> None:
        self.progress = Progress(**{**asdict(self.progress), **changes})

    def _log(self, values: dict[str, float], trainer: Any) -> None:
        if self.task.log is not None and trainer.is_global_zero:
            self.task.log.metrics(values, self.progress.step)

    def _validate(self, trainer: Any, module: Fit) -> None:
        started = time.monotonic()
        self.result = self._score(trainer, module)
        info = self.task.samples.info
        score, step = mean_csi(self.result.counts, info.cadence_s), self.progress.step
        best = self.progress.best_score
        self._advance(validated=step, stale=self.progress.stale + 1)
        if best is None or score > best or math.isnan(best):
            self._advance(best_score=score, best_step=step, stale=0)
            self._keep("best", trainer)
        self._log(metrics(self.result, info.quantity, info.cadence_s), trainer)
        self.last_validation_s = time.monotonic() - started

    def _score(self, trainer: Any, module: Fit) -> Validation:
        batches, model = module.held_out(), self.task.model
        mine = range(trainer.global_rank, len(batches), trainer.world_size)
        module.network.eval()

        def forecast(context: Tensor) -> Tensor:
            with trainer.precision_plugin.forward_context():
                out: Tensor = torch.func.functional_call(module.network, self.average.weights, (context[..., None],))
            return out[..., 0]

        with torch.no_grad():
            part = validate(
                forecast,
                (batches[number].to(module.device) for number in mine),
                model=model,
                loss=self.task.loss,
                thresholds=self.config.thresholds,
            )
        module.network.train()
        if trainer.world_size == 1:
            return part
        return part.with_sums(trainer.strategy.reduce(part.sums().to(module.device), reduce_op="sum"))

    def _keep(self, name: str, trainer: Any) -> None:
        if trainer.is_global_zero:
            save_checkpoint(self.task.folder / name, self.task.model, self.average.weights)

    def _save(self, trainer: Any, module: Fit) -> None:
        if not trainer.is_global_zero:
            return
        now = time.monotonic()
        spent = {
            "seconds": self.progress.seconds + now - self.started,
            "precision": trainer.precision_plugin.state_dict(),
        }
        self._advance(**spent)
        self.started = now
        state = TrainingState(
            self.progress, module.network.state_dict(), self.average.weights, optimiser_tensors(trainer.optimizers[0])
        )
        save_state(self.task.folder / "states", state)

    def _stop_if_due(self, trainer: Any) -> None:
        config, reason = self.config, None
        if config.budget and self.elapsed() + self.last_validation_s >= config.budget.total_seconds():
            reason = "budget"
        elif config.patience is not None and self.progress.stale >= config.patience:
            reason = "patience"
        if trainer.strategy.reduce_boolean_decision(reason is not None, all=False):
            self.stopped_because = reason or "budget"
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Validate what has not been, and leave the last weights and the last state."""
        if self.progress.validated != self.progress.step or self.result is None:
            self._validate(trainer, pl_module)
        self._keep("last", trainer)
        if trainer.is_global_zero and self.result is not None:
            info = self.task.samples.info
            outcome = {
                "stopped_because": self.stopped_because,
                "metrics": metrics(self.result, info.quantity, info.cadence_s),
                "steps_here": self.progress.step - self.first_step,
            }
            (self.task.folder / OUTCOME).write_text(json.dumps(outcome))
        self._save(trainer, pl_module)  # last: a state of the last step says that all the rest is there
