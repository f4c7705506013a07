"""Fit a forecaster: Lightning drives the loop; position, schedule and randomness are functions of the step.

A training writes its whole state every few steps. One that was killed goes on from there and, on the same number of CPU
threads, ends with the very bits of the uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor, nn

from models.anchor import anchor_frames
from models.checkpoint import load_checkpoint
from models.configuration import ForecasterConfig, build_network
from models.earthformer.presets import preset_config
from models.transfer import transfer_weights
from models.transform import Transform
from tasks.training.conductor import OUTCOME, Conductor, Task
from tasks.training.config import FREE_ON_RESUME, TrainConfig, TrainResult
from tasks.training.data import TrainingDataInfo
from tasks.training.loading import BatchPlan, HeldOutBatches, StepBatches, step_loader
from tasks.training.losses import choose_loss
from tasks.training.optimisation import MovingAverage, decay_groups
from tasks.training.progress_bar import TrainingBar
from tasks.training.sample_set import SampleSet
from tasks.training.stages.stage import StageConfig
from tasks.training.state import TrainingState, load_latest_state, seed_step
from tasks.training.validation import encode

if TYPE_CHECKING:
    from infra.tracking import RunLog

__all__ = ["TrainConfig", "TrainResult", "forecaster_config", "train"]

# Spawned, because `ddp` starts the whole program again for every device, the flow around this training included; and
# a network's last update of its global vectors reaches no output, so its weights get no gradient.
SEVERAL_DEVICES = "ddp_spawn_find_unused_parameters_true"
_NEVER_ENDING = 10**9  # micro-batches of a training that only its budget ends


def forecaster_config(base: ForecasterConfig, samples: SampleSet) -> ForecasterConfig:
    """The model completed by the quantity, cadence, cell size and "no echo" of what it is trained on.

    Raises:
        ValueError: the samples' frames or size are not the model's.
    """
    info = samples.info
    wanted = (base.t_in, base.t_out, *base.patch)
    came = (samples.t_in, samples.t_out, *samples.size)
    if wanted != came:
        raise ValueError(f"expected samples (t_in, t_out, y, x) of {wanted} for {base.preset}; got {came}")
    update = {
        "quantity": info.quantity,
        "transform": Transform.of_quantity(info.quantity),
        "cadence_s": info.cadence_s,
        "cell_size_m": info.cell_size_m,
        "no_echo": info.no_echo if isinstance(info, TrainingDataInfo) else None,
    }
    return ForecasterConfig.model_validate(base.model_copy(update=update).model_dump())


def _anchor_of(model: ForecasterConfig, window: NDArray[np.float32]) -> NDArray[np.float32]:
    return anchor_frames(model, window[: model.t_in])


class _Fit(LightningModule):
    """The network under its loss; no state of its own."""

    def __init__(self, task: Task, network: nn.Module, first_step: int) -> None:
        super().__init__()
        self.task, self.network, self.first_step = task, network, first_step
        self.reader = task.samples.reader()
        self.extend = partial(_anchor_of, task.model) if task.model.anchor == "extrapolation" else None

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """Loss of windows (B, t_in + t_out [+ anchor frames], H, W) in physical units; NaN = not observed."""
        context, target, known = encode(batch, self.task.model)
        forecast = self.network(context[..., None])[..., 0].float()
        return self.task.loss(forecast, target, known)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; its rate is set before every step."""
        config = self.task.config
        groups = decay_groups(self.network, config.weight_decay)
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.999), eps=1e-8)

    def train_dataloader(self) -> Any:
        """This process's micro-batches from the first missing step on."""
        config, world = self.task.config, self.trainer.world_size
        plan = BatchPlan(
            seed=config.seed,
            batch_size=config.batch_size,
            parts=config.accumulate * world,
            rank=self.trainer.global_rank,
            stride=world,
            augment=config.augment,
        )
        last = _NEVER_ENDING if config.max_steps is None else config.max_steps * config.accumulate
        first = self.first_step * config.accumulate
        return step_loader(StepBatches(self.reader, plan, self.extend), first, last, config.workers)

    def held_out(self) -> HeldOutBatches:
        """The windows every validation forecasts."""
        samples, config = self.task.samples, self.task.config
        windows = samples.held_out("val", config.val_windows, wet=True)
        return HeldOutBatches(self.reader, windows, config.batch_size, self.extend)


class _Conducting(Conductor, Callback):
    """The conductor as Lightning knows it."""


class _Bar(TrainingBar, Callback):
    """The bar as Lightning knows it."""


def train(
    config: TrainConfig,
    samples: SampleSet,
    folder: Path,
    log: RunLog | None = None,
    *,
    resume: bool = False,
    model: ForecasterConfig | None = None,
) -> TrainResult:
    """Train, or go on with, the forecaster of `config` and leave its checkpoints under `folder`.

    Args:
        config: The training.
        samples: Windows in the model's shape.
        folder: For states, `best` and `last` checkpoints; belongs to this training alone.
        log: Open MLflow run; None logs nothing.
        resume: Go on from the newest state under `folder` (from the start where there is none).
        model: Instead of the preset's.

    Raises:
        ValueError: samples do not fit the model, or `folder` holds another training.
    """
    model = model or forecaster_config(preset_config(config.preset), samples)
    task = Task(config, model, samples, folder, log, choose_loss(config, model.transform))
    _claim(task, resume)
    state = load_latest_state(folder / "states") if resume else None
    network = _network(task, state)
    average = MovingAverage(network, config.ema_decay)
    if state is not None:
        average.load(state.average)
    conductor = _Conducting(task, state, average)
    before = conductor.progress.step
    module = _Fit(task, network, before)
    started = time.monotonic()
    if config.max_steps is None or before < config.max_steps:
        _run(task, conductor, module)
    return _result(task, time.monotonic() - started)


def _claim(task: Task, resume: bool) -> None:
    """Refuse to mix two trainings in one folder."""
    path = task.folder / "training.json"
    config = {key: value for key, value in asdict(task.config).items() if key not in FREE_ON_RESUME}
    content = {
        "config": config,
        # What "no echo" is comes from the samples, and changes nothing that is trained.
        "model": task.model.model_dump(mode="json", exclude={"no_echo"}),
        "archive_snapshot": task.samples.info.archive_snapshot,
        "split": task.samples.describe(),
    }
    text = json.dumps(content, default=str, indent=2)
    if resume and path.exists():
        if path.read_text() != text:
            raise ValueError(f"expected to resume the training described in {path}; the one asked for differs")
        return
    shutil.rmtree(task.folder / "states", ignore_errors=True)
    task.folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _network(task: Task, state: TrainingState | None) -> nn.Module:
    seed_step(task.config.seed, 2**32)
    network = build_network(task.model)
    if state is not None:
        network.load_state_dict(dict(state.network))
    elif task.config.from_model is not None:
        _fine_tune(task, network, task.config.from_model)
    return network


def _fine_tune(task: Task, network: nn.Module, parent: Path) -> None:
    """Begin with the parent's weights, adapted where its geometry is another, and log what became of each."""
    config, trained = load_checkpoint(parent)
    report = transfer_weights(config, trained.state_dict(), task.model, network)
    if task.log is not None:
        task.log.table(report.as_dict(), "transfer.json")
        task.log.tags({"squall.transfer": str(report)})


def choose_precision(config: TrainConfig | StageConfig) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """What `auto` means on this machine; on a CPU with bfloat16 instructions it took 0.64 of the time of float32."""
    if config.precision != "auto":
        return config.precision
    if config.accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def _quiet_lightning() -> None:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _run(task: Task, conductor: _Conducting, module: _Fit) -> None:
    config = task.config
    _quiet_lightning()
    callbacks: list[Callback] = [conductor]
    if config.progress_bar:
        callbacks.append(_Bar(conductor))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # advice about workers: ours are measured
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning's own call
        trainer = Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            strategy=SEVERAL_DEVICES if config.strategy == "auto" and config.devices > 1 else config.strategy,
            precision=choose_precision(config),
            max_steps=-1 if config.max_steps is None else config.max_steps - module.first_step,
            max_epochs=-1,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.gradient_clip,
            callbacks=callbacks,
            default_root_dir=task.folder,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module)


def _result(task: Task, seconds: float) -> TrainResult:
    """Read back from the folder: the processes of a distributed strategy share nothing else with this one."""
    state = load_latest_state(task.folder / "states")
    if state is None:
        raise RuntimeError(f"expected a state under {task.folder}; the training left none")
    outcome = json.loads((task.folder / OUTCOME).read_text())
    progress = state.progress
    return TrainResult(
        checkpoint=task.folder / "best",
        last=task.folder / "last",
        metrics=outcome["metrics"],
        score=float("nan") if progress.best_score is None else progress.best_score,
        steps=progress.step,
        seconds=progress.seconds,
        samples_per_second=outcome["steps_here"] * task.config.batch_size / max(seconds, 1e-9),
        stopped_because=outcome["stopped_because"],
    )
