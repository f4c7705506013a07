"""From an archive to a judged model, stage by stage: what the steps of the train flow do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from infra.revision import code_revision
from infra.settings import Domain, Settings
from infra.tracking import ModelMissing, ModelVersion, RunLog, Tracking
from models.configuration import ForecasterConfig
from tasks.cycle import open_archive
from tasks.rungs import RANK_TAG, find_named, registered_name
from tasks.training.comparability import misfit
from tasks.training.config import told_config, told_thresholds
from tasks.training.data import TrainingData
from tasks.training.datasets import Sequences, open_dataset
from tasks.training.datasets.sampling import DatasetSamples
from tasks.training.export_samples import export_samples
from tasks.training.finetuning import choose_model, parse_window, told_model
from tasks.training.resumption import REQUEST_TAG, alone, begun_by, experiment_of, find_interrupted, training_folder
from tasks.training.sample_set import SampleSet
from tasks.training.samples import SampleSource, SampleSpec
from tasks.verification.ensemble_promotion import EnsembleVerdict
from tasks.verification.promotion import PromotionVerdict, Unavailable, decide

if TYPE_CHECKING:
    from models.forecaster import Forecaster
    from tasks.training.evaluation import Evaluation

JUDGED_WINDOWS = 400


@dataclass(frozen=True)
class Fitted:
    """A trained model that waits for its verdict.

    Attributes:
        name: Registered name, `<domain>-<family>`.
        version: Registered version, alias challenger.
        run_id: MLflow run.
        run_link: Where people see the run.
        checkpoint: Folder with config.json and model.safetensors.
        steps: Optimiser steps.
        seconds: Of training.
        stopped_because: max_steps, budget or patience.
        score: Best validation score.
        spec: Windows it was trained on; held-out ones are cut the same way.
    """

    name: str
    version: int
    run_id: str
    run_link: str
    checkpoint: Path
    steps: int
    seconds: float
    stopped_because: str
    score: float
    spec: SampleSpec


def sample_data(domain: Domain, settings: Settings, as_of: str | None = None) -> TrainingData | Sequences:
    """The archive's snapshot in the training layout, under the state folder; one that is there is reused.

    A domain that names a dataset trains on that, read where it lies.
    """
    told = domain.training
    if told.dataset is not None and told.dataset_url is not None:
        storage = told.dataset_storage or settings.storage_options(told.dataset_url)
        return open_dataset(told.dataset, told.dataset_url, storage)
    return export_samples(open_archive(domain, settings), settings.root / "samples" / domain.name, as_of=as_of)


def fit_model(
    domain: Domain,
    settings: Settings,
    data: TrainingData | Sequences,
    *,
    preset: str | None = None,
    budget: timedelta | None = None,
    max_steps: int | None = None,
    from_model: str | None = None,
    resume: str | None = None,
    request: str | None = None,
    window: str | None = None,
    seed: int = 0,
) -> Fitted:
    """Train (or go on training), log everything and register the result as challenger.

    Args:
        domain: Its `[training]` says what is not given here.
        settings: Tracking server, state folder, threads.
        data: Samples.
        preset: `family/preset`; default: the architecture of `from_model`, else the domain's preset.
        budget: Wall time.
        max_steps: Optimiser steps; with neither, the domain's budget.
        from_model: `NAME@ALIAS` to start from.
        resume: MLflow run id of a training that was interrupted.
        request: What asks for it (a flow run's id): asking again goes on with the training that it began.
        window: Frames and cells other than the model's, such as `13:12:64x64`.
        seed: Of order, draws and initial weights.

    Raises:
        ValueError: no such preset, or the data does not fit it.
        CheckpointError: `from_model` differs from what is to be trained in more than geometry.
        ModelMissing: `from_model` is not registered.
    """
    import torch

    from tasks.training.fit import forecaster_config, train
    from tasks.training.log import log_provenance, register_checkpoint

    torch.set_num_threads(settings.threads)
    resume = resume or begun_by(settings, domain.name, request)
    start, parent = _starting_point(from_model, resume, domain, settings)
    size = parse_window(window) if window else None
    if resume is None:
        base = choose_model(preset, start, domain.training.preset, size)
    else:
        base = told_model(training_folder(settings, resume))
    chosen, spec = base.preset, sample_spec(domain, base, data)
    samples = cut_samples(data, spec)
    model, tracking = forecaster_config(base, samples), Tracking(settings.tracking_uri)
    config = told_config(
        domain, settings, preset=chosen, seed=seed, max_steps=max_steps, budget=budget, from_model=start
    )
    name, revision = registered_name(domain, chosen.partition("/")[0]), code_revision()
    asked = {REQUEST_TAG: request} if request else {}
    experiment = experiment_of(domain.name)
    with tracking.run(experiment, chosen, resume, asked) as log, alone(training_folder(settings, log.run_id)):
        if resume is None:
            log_provenance(log, config, samples, code_revision=revision, parent_model=parent)
        folder = training_folder(settings, log.run_id)
        result = train(config, samples, folder, log, resume=resume is not None, model=model)
        tags = {"squall.archive_snapshot": data.info.archive_snapshot, "squall.code_revision": revision}
        version = register_checkpoint(tracking, name, result.checkpoint, log, tags)
        link = tracking.run_link(log)
    return Fitted(
        name=name,
        version=version.version,
        run_id=log.run_id,
        run_link=link,
        checkpoint=result.checkpoint,
        steps=result.steps,
        seconds=result.seconds,
        stopped_because=result.stopped_because,
        score=result.score,
        spec=spec,
    )


def _starting_point(
    from_model: str | None, resume: str | None, domain: Domain, settings: Settings
) -> tuple[Path | None, str | None]:
    """Checkpoint to fine-tune and its `name@version`; a resumed training keeps its own, wherever the alias points."""
    if resume is not None:
        return find_interrupted(settings, resume).from_model, None
    if from_model is None:
        return None, None
    found = find_named(from_model, domain, settings)
    return Path(found.folder), f"{found.name}@{found.version}"


def cut_samples(data: TrainingData | Sequences, spec: SampleSpec) -> SampleSet:
    """The windows of an archive's layout, or those of a dataset as published."""
    return SampleSource(data, spec) if isinstance(data, TrainingData) else DatasetSamples(data, spec)


def sample_spec(domain: Domain, config: ForecasterConfig, data: TrainingData | Sequences) -> SampleSpec:
    """Windows as the model wants them, cropped where the archive's grid is larger, split as the domain says."""
    rule = domain.training
    return SampleSpec(
        t_in=config.t_in,
        t_out=config.t_out,
        crop=None if data.info.shape == config.patch else config.patch[0],
        fractions=rule.split,
        guard=rule.guard,
        event_limit=rule.event_limit,
    )


def compare_models(
    domain: Domain, settings: Settings, data: TrainingData | Sequences, fitted: Fitted
) -> PromotionVerdict:
    """Judge the challenger on held-out wet windows beside the champion and both baselines, and log the evidence."""
    from models.forecaster import load_forecaster
    from tasks.training.evaluation import evaluate
    from tasks.training.log import log_evaluation, log_examples

    samples = cut_samples(data, fitted.spec)
    forecasters: dict[str, Forecaster] = {"challenger": load_forecaster(fitted.checkpoint), **_baselines(samples)}
    lost = _add_champion(forecasters, domain, settings, fitted, samples)
    evaluation = evaluate(forecasters, samples, split="test", thresholds=told_thresholds(domain), limit=JUDGED_WINDOWS)
    verdict = _judge(evaluation, lost)
    with Tracking(settings.tracking_uri).run(experiment_of(domain.name), "", run_id=fitted.run_id) as log:
        log_evaluation(log, evaluation, samples, "test")
        log_examples(log, forecasters, samples, split="test")
        _log_verdict(log, verdict)
    return verdict


def _judge(evaluation: Evaluation, lost: Unavailable | None) -> PromotionVerdict:
    counts = evaluation.counts
    return decide(
        counts["challenger"],
        lost or counts.get("champion"),
        counts["persistence"],
        counts.get("extrapolation", Unavailable("extrapolation", "the quantity does not move with a wind")),
    )


def _log_verdict(log: RunLog, verdict: PromotionVerdict) -> None:
    log.table(verdict.as_dict(), "verdict.json")
    log.tags({"squall.promoted": str(verdict.promote).lower(), RANK_TAG: verdict.ladder_rank})
    for name, score in verdict.evidence.mean_csi.items():
        log.metrics({f"summary/mean_csi_wet_{name}": score})


def promote_model(settings: Settings, fitted: Fitted, verdict: PromotionVerdict | EnsembleVerdict) -> ModelVersion:
    """Make the challenger champion or refuse it, as the verdict says; repeating it changes nothing."""
    tracking = Tracking(settings.tracking_uri)
    tracking.tag_version(fitted.name, fitted.version, {RANK_TAG: verdict.ladder_rank, "squall.verdict": verdict.reason})
    act: Callable[[str, int, str], None] = tracking.promote if verdict.promote else tracking.refuse
    act(fitted.name, fitted.version, verdict.reason)
    return tracking.version(fitted.name, fitted.version)


def _baselines(samples: SampleSet) -> dict[str, Forecaster]:
    from models.baselines.extrapolation import Extrapolation
    from models.baselines.motion import QUANTITIES
    from models.baselines.persistence import Persistence

    info, leads = samples.info, samples.t_out
    found: dict[str, Forecaster] = {"persistence": Persistence(t_out=leads)}
    if info.quantity in QUANTITIES:
        found["extrapolation"] = Extrapolation(info.quantity, info.cell_size_m, float(info.cadence_s), t_out=leads)
    return found


def _add_champion(
    forecasters: dict[str, Forecaster], domain: Domain, settings: Settings, fitted: Fitted, samples: SampleSet
) -> Unavailable | None:
    """Put the model that nowcasts use now among `forecasters`; why it cannot be compared, where it cannot.

    The first model of a domain has no champion to beat, unless the domain borrows another's: that one counts.
    """
    from models.forecaster import load_forecaster

    family = fitted.name.removeprefix(f"{domain.name}-")
    try:
        champion = find_named(family, domain, settings)
    except ModelMissing:
        return None
    if (champion.name, champion.version) == (fitted.name, str(fitted.version)):
        return None
    told = f"{champion.name} {champion.version}"
    try:
        forecaster = load_forecaster(champion.folder)
    except (ValueError, OSError, LookupError) as error:
        return Unavailable(told, f"{type(error).__name__}: {error}")
    if (reason := misfit(forecaster, samples)) is not None:
        return Unavailable(told, reason)
    forecasters["champion"] = forecaster
    return None
