"""What a training leaves in MLflow beyond its step metrics: its origin, its curves, examples and its version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_config
from models.forecaster import Forecaster
from tasks.training.config import TrainConfig
from tasks.training.evaluation import Evaluation, forecast_all
from tasks.training.sample_set import SampleSet
from tasks.training.validation import lead_label, threshold_label
from tasks.verification.figures import error_curves, score_curves, side_by_side
from tasks.verification.scores import Contingency, WindowCounts

if TYPE_CHECKING:
    from infra.tracking import ModelVersion, RunLog, Tracking

EXAMPLES = 3
CONTENT_TAG = "squall.checkpoint_sha256"
TAG_LENGTH = 5000  # MLflow's limit


def log_provenance(
    log: RunLog, config: TrainConfig, samples: SampleSet, *, code_revision: str, parent_model: str | None = None
) -> None:
    """Log every setting as a parameter, and snapshot, revision, split, preset and parent as tags.

    Args:
        log: Open run.
        config: The training.
        samples: Its windows.
        code_revision: Of the running code.
        parent_model: `name@version` a fine-tuning starts from.
    """
    log.params({key: value for key, value in asdict(config).items() if value is not None})
    split = samples.describe()
    log.tags(
        {
            "squall.archive_snapshot": samples.info.archive_snapshot,
            "squall.code_revision": code_revision,
            "squall.split": json.dumps(split)[:TAG_LENGTH],
            "squall.preset": config.preset,
            "squall.parent_model": parent_model or "",
            "squall.domain": config.domain,
        }
    )
    log.table(split, "split.json")


def log_evaluation(log: RunLog, evaluation: Evaluation, samples: SampleSet, group: str) -> None:
    """Log curves of all forecasters per lead time, over all and over wet windows, as figures and step-indexed metrics.

    A metric `<group>_wet/<forecaster>/csi_20dbz` has the lead time in minutes as its step.
    """
    quantity = samples.info.quantity
    for suffix, deviations in (("", evaluation.deviations), ("_wet", evaluation.wet_deviations)):
        if not deviations:
            continue
        tables = {name: pool(counts, wet=bool(suffix)) for name, counts in evaluation.counts.items()}
        minutes = next(iter(evaluation.counts.values())).lead_minutes
        for score in ("csi", "pod", "far", "bias"):
            log.figure(score_curves(tables, score, minutes, quantity), f"{group}{suffix}/{score}.png")
        errors = {name: found.mse for name, found in deviations.items()}
        log.figure(error_curves(errors, minutes, quantity), f"{group}{suffix}/mse.png")
        for lead, minute in enumerate(minutes):
            named = _at_lead(tables, lead, quantity) | {f"{name}/mse": float(e[lead]) for name, e in errors.items()}
            log.metrics({f"{group}{suffix}/{key}": value for key, value in named.items()}, step=round(minute))


def pool(counts: WindowCounts, *, wet: bool) -> Contingency:
    """The contingency (lead, threshold) of all (or of the wet) windows added up; correct negatives are not kept."""
    chosen = counts.wet if wet else np.ones(len(counts), bool)
    hits, misses, false_alarms = (
        getattr(counts, name)[chosen].sum(axis=0) for name in ("hits", "misses", "false_alarms")
    )
    return Contingency(hits, misses, false_alarms, np.zeros_like(hits), counts.thresholds)


def _at_lead(tables: Mapping[str, Contingency], lead: int, quantity: str) -> dict[str, float]:
    return {
        f"{name}/{score}_{threshold_label(threshold, quantity)}": float(getattr(table, score)[lead, column])
        for name, table in tables.items()
        for score in ("csi", "pod", "far")
        for column, threshold in enumerate(table.thresholds)
    }


def log_examples(log: RunLog, forecasters: Mapping[str, Forecaster], samples: SampleSet, *, split: str = "val") -> None:
    """Log pictures of wet held-out windows: observed above each forecast, from the newest context frame on."""
    t_in, t_out, info = samples.t_in, samples.t_out, samples.info
    leads = [lead for lead in (0, 2, 5, 8, 11, 17) if lead < t_out]
    titles = ["now", *(f"+{lead_label(lead, info.cadence_s).removeprefix('lead_')}" for lead in leads)]
    reader = samples.reader()
    for number, window in enumerate(samples.held_out(split, EXAMPLES, wet=True)):
        fields = reader.read([window])[0]
        context, observed = fields[:t_in], fields[t_in:]
        forecasts = forecast_all(forecasters, context, t_out)
        newest = context[-1:]
        columns = {name: np.concatenate([newest, field[leads]]) for name, field in forecasts.items()}
        picture = side_by_side(np.concatenate([newest, observed[leads]]), columns, titles, info.quantity)
        log.figure(picture, f"examples/{number}.png")


def _digest(checkpoint: Path) -> str:
    """SHA-256 of the checkpoint's files."""
    whole = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (checkpoint / name).open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def register_checkpoint(
    tracking: Tracking, name: str, checkpoint: Path, log: RunLog, tags: Mapping[str, str]
) -> ModelVersion:
    """Register a checkpoint as a version of `name` and make it the challenger; repeated, it is the same version.

    A run that goes on to other weights, because a stage was done again, registers a version more.
    """
    from infra.tracking import TensorSignature

    config = load_config(checkpoint)
    any_size: Sequence[int] = (-1, -1)
    signature = TensorSignature((-1, config.t_in, *any_size), (-1, -1, config.t_out, *any_size))
    content = {CONTENT_TAG: _digest(checkpoint)}
    version = tracking.registered_by(name, log.run_id, content)
    if version is None:
        version = tracking.register(name, checkpoint, run_id=log.run_id, signature=signature, tags={**tags, **content})
    if not version.aliases:
        tracking.challenge(name, version.version)
    return tracking.version(name, version.version)
