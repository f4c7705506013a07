"""Everything a killed training needs to go on as if nothing had happened, written whole or not at all.

No random state is kept: before every step all generators are seeded from (seed, step), and which windows a batch holds
is a function of the same two, so the step number is the state of the sampler, of the schedule and of all randomness.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

KEEP = 2
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        step: Optimiser updates done.
        seconds: Time spent, over all its processes one after another.
        best_score: Best validation score so far (higher is better); None before the first validation.
        best_step: Step it was reached at.
        stale: Validations since then.
        validated: Step of the last validation.
        precision: State of the gradient scaler (16-mixed), else empty.
    """

    step: int = 0
    seconds: float = 0.0
    best_score: float | None = None
    best_step: int | None = None
    stale: int = 0
    validated: int | None = None
    precision: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingState:
    """Progress and tensors at a step boundary.

    Attributes:
        progress: How far.
        network: Live weights and buffers.
        average: Their moving average.
        optimiser: `<parameter>.<moment>` of AdamW.
    """

    progress: Progress
    network: Tensors
    average: Tensors
    optimiser: Tensors


def save_state(folder: Path, state: TrainingState) -> Path:
    """Write the state of a step beside the earlier ones and keep the newest two; the rename makes it visible."""
    target = folder / f"step-{state.progress.step:09d}"
    partial = folder / f"{target.name}.part"
    for stale in (target, partial):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in ("network", "average", "optimiser"):
        tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(state, name).items()}
        save_file(tensors, partial / f"{name}.safetensors")
    (partial / "progress.json").write_text(json.dumps(asdict(state.progress)))
    _flush(partial)
    partial.rename(target)
    for old in _states(folder)[:-KEEP]:
        shutil.rmtree(old)
    return target


def _flush(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{9}", path.name))


def load_latest_state(folder: Path) -> TrainingState | None:
    """The newest complete state under `folder`; None where there is none."""
    if not (found := _states(folder)):
        return None
    newest = found[-1]
    network, average, optimiser = (
        load_file(newest / f"{name}.safetensors") for name in ("network", "average", "optimiser")
    )
    return TrainingState(Progress(**json.loads((newest / "progress.json").read_text())), network, average, optimiser)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's moments by parameter number."""
    state: dict[int, dict[str, torch.Tensor]] = optimiser.state_dict()["state"]
    return {f"{number}.{key}": value for number, moments in state.items() for key, value in moments.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Give the optimiser its moments back."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed Python, NumPy and torch (all devices) for one step of one process."""
    word = int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    random.seed(word)
    np.random.seed(word % 2**32)  # noqa: NPY002 - a dependency may draw from the global generator
    torch.manual_seed(word)
