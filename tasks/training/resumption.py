"""Going on with a training whose process was killed: which one a request had begun, and what it had been told.

A request is whatever asks for one training (a flow run). Asking again, because its process vanished, goes on with the
training that it began; a request that dies again and again at the same step is refused, or it would do so for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from filelock import FileLock

from infra.settings import Settings
from infra.tracking import Tracking

REQUEST_TAG = "squall.request"
STARTS = 4  # from one step
_DESCRIPTION = "training.json"


class TrainingStuck(ValueError):
    """A training was killed at the same step every time."""


@dataclass(frozen=True)
class Interrupted:
    """What an interrupted training was told; going on needs the same.

    Attributes:
        preset: Architecture, `family/preset`.
        seed: Of order, draws and weights.
        archive_snapshot: Its samples.
        max_steps: Optimiser steps, where it had them.
        budget: Wall time, where it had one.
        from_model: Checkpoint folder it started from, where it was fine-tuned.
    """

    preset: str
    seed: int
    archive_snapshot: str
    max_steps: int | None
    budget: timedelta | None
    from_model: Path | None


def training_folder(settings: Settings, run_id: str) -> Path:
    """Where the training of an MLflow run keeps its states and checkpoints."""
    return settings.root / "training" / run_id


def experiment_of(domain: str) -> str:
    """The MLflow experiment of a domain's trainings."""
    return f"squall/{domain}/training"


def find_interrupted(settings: Settings, run_id: str) -> Interrupted:
    """What the training of an MLflow run was told.

    Raises:
        ValueError: no such training under this state folder.
    """
    path = training_folder(settings, run_id) / _DESCRIPTION
    if not path.exists():
        known = sorted(folder.name for folder in path.parent.parent.glob("*")) or ["none"]
        raise ValueError(f"expected a training of {', '.join(known)}; got {run_id!r}")
    told = json.loads(path.read_text())
    config = told["config"]
    parent = Path(config["from_model"]) if config["from_model"] else None
    return Interrupted(config["preset"], config["seed"], told["archive_snapshot"], config["max_steps"], None, parent)


def keep_to(told: Mapping[str, object], **asked: object) -> None:
    """Refuse to go on with a training otherwise than it was told: what is asked now would silently not count.

    Args:
        told: What it was told, by option; of an option that is not there no record is kept, and none is changed.
        asked: Options of the one who wants it to go on; None: not given.

    Raises:
        ValueError: an option is given and differs.
    """
    others = {name: value for name, value in asked.items() if value is not None and value != told.get(name)}
    if others:
        kept = {name: f"was {told[name] or 'not given'}" if name in told else "is kept" for name in others}
        got = ", ".join(f"{name} {value} ({kept[name]})" for name, value in others.items())
        raise ValueError(f"expected the training to go on as it was told; got {got}")


def begun_by(settings: Settings, domain: str, request: str | None) -> str | None:
    """MLflow run of the training that a request has begun, if it got far enough to go on; None where it began none."""
    if request is None:
        return None
    run_id = Tracking(settings.tracking_uri).find_tagged(experiment_of(domain), REQUEST_TAG, request)
    told = run_id is not None and (training_folder(settings, run_id) / _DESCRIPTION).exists()
    return run_id if told else None


def find_begun(settings: Settings, domain: str, request: str | None) -> str | None:
    """What `begun_by` finds for a request whose process was killed; the start is counted.

    Raises:
        TrainingStuck: the request has been started several times and got no further.
    """
    run_id = begun_by(settings, domain, request)
    if request is not None:
        count_start(settings, request, _newest_step(training_folder(settings, run_id)) if run_id else 0)
    return run_id


@dataclass(frozen=True)
class Starts:
    """How often a request has been started from where it got to.

    Attributes:
        step: The newest step it could go on from.
        count: Starts from there.
    """

    step: int
    count: int


def read_starts(settings: Settings, request: str) -> Starts:
    """The starts of a request so far."""
    path = _starts_file(settings, request)
    return Starts(**json.loads(path.read_text())) if path.exists() else Starts(0, 0)


def count_start(settings: Settings, request: str, step: int) -> None:
    """Note that a request is started, from `step` on.

    Raises:
        TrainingStuck: for more than the `STARTS`th time.
    """
    before, path = read_starts(settings, request), _starts_file(settings, request)
    now = Starts(step, before.count + 1 if before.step == step else 1)
    if now.count > STARTS:
        raise TrainingStuck(f"expected the training to get on; it was killed {before.count} times at step {step}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(asdict(now)))
    partial.replace(path)


def _starts_file(settings: Settings, request: str) -> Path:
    return settings.root / "requests" / f"{request}.json"


def _newest_step(folder: Path) -> int:
    names = (path.name.removeprefix("step-") for path in folder.glob("states/step-*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def alone(folder: Path) -> FileLock:
    """Held by the one process that trains in `folder`: an orphan may live on when its worker was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "lock")
