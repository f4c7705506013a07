"""PreDiff from an archive to a judged model, stage by stage: what the steps of its training flow do.

Each stage has a folder and an MLflow run of its own below the training's. A stage that is done is only read, one that
was killed goes on from its last state, and one that is asked for again begins anew without the stages before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from infra.revision import code_revision
from infra.settings import Domain, Settings
from infra.tracking import RunLog, Tracking
from tasks.contenders import device_of
from tasks.learning import Fitted, cut_samples
from tasks.prediff_import import imported_result, imported_weights
from tasks.prediff_plan import PreDiffPlan
from tasks.rungs import registered_name
from tasks.training.data import TrainingData, TrainingDataInfo
from tasks.training.datasets import Sequences
from tasks.training.resumption import alone, experiment_of, training_folder
from tasks.training.sample_set import SampleSet
from tasks.training.samples import SampleSpec
from tasks.training.stages.recipes import recipe_of
from tasks.training.stages.stage import StageResult

if TYPE_CHECKING:
    from models.prediff.configuration import PreDiffConfig
    from models.prediff.network import PreDiffNetwork
    from tasks.training.stages.latents import LatentSet

PARENT_TAG = "mlflow.parentRunId"
_VALIDATED_WINDOWS, _CALIBRATED_WINDOWS = 128, 24


@dataclass(frozen=True)
class _Workplace:
    """What every stage needs."""

    plan: PreDiffPlan
    samples: SampleSet
    folder: Path
    tracking: Tracking
    domain: Domain
    settings: Settings

    def weights(self, stage: str) -> Path:
        """The weights that a stage left, or those imported in its place."""
        from tasks.training.stages.loop import BEST

        return imported_weights(self.folder, stage) if stage in self.plan.imported else self.folder / stage / BEST

    @contextmanager
    def run(self, stage: str) -> Iterator[RunLog]:
        """The stage's MLflow run below the training's, taken up again where it goes on; one process at a time."""
        with alone(self.folder / stage), self._run(stage) as log:
            yield log

    @contextmanager
    def _run(self, stage: str) -> Iterator[RunLog]:
        marker = self.folder / stage / "run_id"
        earlier = marker.read_text() if marker.exists() else None
        tags = {PARENT_TAG: self.plan.run_id, "squall.stage": stage, "squall.domain": self.domain.name}
        with self.tracking.run(experiment_of(self.domain.name), stage, earlier, tags) as log:
            marker.write_text(log.run_id)
            yield log


def _workplace(plan: PreDiffPlan, domain: Domain, settings: Settings, data: TrainingData | Sequences) -> _Workplace:
    import torch

    torch.set_num_threads(settings.threads)
    samples = cut_samples(data, prediff_spec(domain, plan.preset, data))
    folder = training_folder(settings, plan.run_id)
    return _Workplace(plan, samples, folder, Tracking(settings.tracking_uri), domain, settings)


def prediff_spec(domain: Domain, preset: str, data: TrainingData | Sequences) -> SampleSpec:
    """Windows as the preset wants them, cropped where the grid is larger, split as the domain says."""
    from models.prediff.presets import preset as find_preset

    found, rule = find_preset(preset), domain.training
    parts = found.architecture
    return SampleSpec(
        t_in=found.t_in or parts.t_in,
        t_out=parts.t_out,
        crop=None if data.info.shape == parts.patch else parts.patch[0],
        fractions=rule.split,
        guard=rule.guard,
        event_limit=rule.event_limit,
    )


def _config(place: _Workplace, usual: float | None = None) -> PreDiffConfig:
    from models.checkpoint import load_checkpoint
    from models.prediff.constraints import parse_constraint
    from models.prediff.intensity_estimator import IntensityEstimatorConfig
    from models.prediff.presets import preset as find_preset
    from models.transform import Transform

    found, info = find_preset(place.plan.preset), place.samples.info
    no_echo = info.no_echo if isinstance(info, TrainingDataInfo) else None
    anchor = load_checkpoint(place.plan.anchor)[0] if place.plan.anchor else None
    changes: dict[str, object] = {
        "constraint": parse_constraint(place.plan.constraint, Transform.of_quantity(info.quantity), no_echo),
        "no_echo": no_echo,
        "quantity": info.quantity,
        "cadence_s": info.cadence_s,
        "cell_size_m": anchor.cell_size_m if anchor else info.cell_size_m,
    }
    if usual is not None:
        changes["estimator"] = IntensityEstimatorConfig(frames_out=found.architecture.t_out, scale=usual)
    return found.config(place.plan.preset, anchor, **changes)


def fit_autoencoder(
    domain: Domain, settings: Settings, data: TrainingData | Sequences, plan: PreDiffPlan
) -> StageResult:
    """Stage 1, with a discriminator where the preset has one."""
    from models.prediff.perceptual import load_perceptual
    from models.prediff.presets import preset as find_preset
    from tasks.training.stages.assembly import start_network
    from tasks.training.stages.autoencoder import AutoencoderStage
    from tasks.training.stages.loop import fit_stage

    place = _workplace(plan, domain, settings, data)
    config = _config(place)
    network = start_network(config, None, plan.seed)
    told = plan.stage("autoencoder", settings)
    stage = AutoencoderStage(
        network.autoencoder,
        place.samples,
        config.transform,
        seed=plan.seed,
        batch_size=told.batch_size,
        discriminator_from=find_preset(plan.preset).discriminator_from,
        discriminator_width=recipe_of(plan.preset).discriminator_width,
        perceptual=load_perceptual(plan.perceptual) if plan.perceptual else None,
    )
    with place.run("autoencoder") as log:
        imported = "autoencoder" in plan.imported
        result = (
            imported_result(place.folder, "autoencoder")
            if imported
            else fit_stage(stage, told, place.folder / "autoencoder", log)
        )
        _log_reconstructions(log, network, result, place)
    return result


def encode_windows(
    domain: Domain, settings: Settings, data: TrainingData | Sequences, plan: PreDiffPlan
) -> tuple[int, int]:
    """Between the stages: latents of the training and validation windows; returns how many there are of each."""
    place = _workplace(plan, domain, settings, data)
    train, held_out = _latents(place)
    return len(train), len(held_out)


def _latents(place: _Workplace) -> tuple[LatentSet, LatentSet]:
    from tasks.training.stages.assembly import start_network, take_weights
    from tasks.training.stages.latents import build_latents, choose_windows

    plan, config = place.plan, _config(place)
    network = start_network(config, Path(plan.anchor) if plan.anchor else None, plan.seed).eval()
    take_weights(network.autoencoder, place.weights("autoencoder"))
    folder, device = place.folder / "latents", device_of(place.settings)
    chosen = choose_windows(place.samples, plan.seed, plan.train_windows)
    held_out = place.samples.held_out("val", _VALIDATED_WINDOWS, wet=True)
    with alone(folder):
        return (
            build_latents(config, network, place.samples, folder, chosen, "train", device),
            build_latents(config, network, place.samples, folder, held_out, "val", device),
        )


def _ready(place: _Workplace) -> tuple[PreDiffNetwork, LatentSet, LatentSet]:
    """The networks with a trained autoencoder and measured scales, and the latents."""
    from tasks.training.stages.assembly import measure_scales, start_network, take_weights, usual_intensity

    train, held_out = _latents(place)
    config = _config(place, usual_intensity(train))
    anchor = Path(place.plan.anchor) if place.plan.anchor else None
    network = start_network(config, anchor, place.plan.seed)
    take_weights(network.autoencoder, place.weights("autoencoder"))
    network.autoencoder.eval().requires_grad_(False)
    known = {"denoiser", "alignment"} & set(place.plan.imported)  # they know the autoencoder's own latents
    measure_scales(network, train, float(train.frames.min()), latents=not known)
    if "alignment" in known:
        take_weights(network.alignment, place.weights("alignment"))
    return network, train, held_out


def fit_denoiser(domain: Domain, settings: Settings, data: TrainingData | Sequences, plan: PreDiffPlan) -> StageResult:
    """Stage 2."""
    from tasks.training.stages.denoiser import DenoiserStage
    from tasks.training.stages.loop import fit_stage

    place = _workplace(plan, domain, settings, data)
    if "denoiser" in plan.imported:
        return imported_result(place.folder, "denoiser")
    network, train, held_out = _ready(place)
    told = plan.stage("denoiser", settings)
    stage = DenoiserStage(network, train, held_out, seed=plan.seed, batch_size=told.batch_size)
    with place.run("denoiser") as log:
        return fit_stage(stage, told, place.folder / "denoiser", log)


def fit_alignment(domain: Domain, settings: Settings, data: TrainingData | Sequences, plan: PreDiffPlan) -> StageResult:
    """Stage 3, which needs the latents and not the denoiser; of an imported alignment network the estimator alone."""
    from tasks.training.stages.alignment import AlignmentStage
    from tasks.training.stages.loop import fit_stage

    place = _workplace(plan, domain, settings, data)
    network, train, held_out = _ready(place)
    told = plan.stage("alignment", settings)
    fixed = "alignment" in plan.imported
    stage = AlignmentStage(network, train, held_out, seed=plan.seed, batch_size=told.batch_size, fixed=fixed)
    with place.run("alignment") as log:
        return fit_stage(stage, told, place.folder / "alignment", log)


def assemble_prediff(
    domain: Domain,
    settings: Settings,
    data: TrainingData | Sequences,
    plan: PreDiffPlan,
    results: tuple[StageResult, ...],
) -> Fitted:
    """One checkpoint from all stages, its members calibrated on validation windows, registered as challenger."""
    import torch

    from models.prediff.forecaster import PreDiffForecaster
    from tasks.training.log import register_checkpoint
    from tasks.training.stages.alignment import AlignmentStage
    from tasks.training.stages.assembly import measure_reading, save_prediff, take_weights
    from tasks.training.stages.member_calibration import calibrate_members, choose_steps

    place = _workplace(plan, domain, settings, data)
    network, train, held_out = _ready(place)
    weights = {result.name: result.weights for result in results}
    take_weights(network.denoiser, weights["denoiser"])
    fixed = "alignment" in plan.imported
    both = AlignmentStage(network, train, held_out, seed=plan.seed, batch_size=1, fixed=fixed)
    take_weights(both.trained, weights["alignment"])
    config = network.config.model_copy(update={"reading": measure_reading(network, held_out, plan.seed)})
    forecaster = PreDiffForecaster(config, network, torch.device(device_of(settings)))
    windows = place.samples.held_out("val", _CALIBRATED_WINDOWS, wet=True)
    config, tried = choose_steps(forecaster, place.samples, windows[::2], seed=plan.seed)
    config, trials = calibrate_members(replace(forecaster, config=config), place.samples, windows, seed=plan.seed)
    best = save_prediff(place.folder / "best", config, network)
    name = registered_name(domain, "prediff")
    with place.tracking.run(experiment_of(domain.name), plan.preset, plan.run_id) as log:
        log.table({"trials": [asdict(trial) for trial in tried], "chosen": config.sampler.steps}, "steps.json")
        log.table({"trials": [asdict(trial) for trial in trials], "chosen": config.spread}, "spread.json")
        log.metrics({f"stage/{result.name}_loss": result.best for result in results if result.steps})
        tags = {
            "squall.archive_snapshot": plan.archive_snapshot,
            "squall.code_revision": code_revision(),
            "squall.anchor_model": plan.anchor_name,
            **{f"squall.imported_{stage}": name for stage, name in plan.imported.items()},
        }
        version = register_checkpoint(place.tracking, name, best, log, tags)
        link = place.tracking.run_link(log)
    return Fitted(
        name=name,
        version=version.version,
        run_id=plan.run_id,
        run_link=link,
        checkpoint=best,
        steps=sum(result.steps for result in results),
        seconds=sum(result.seconds for result in results),
        stopped_because="max_steps" if plan.max_steps else "budget",
        score=next(result.best for result in results if result.name == "denoiser"),
        spec=prediff_spec(domain, plan.preset, data),
    )


def _log_reconstructions(log: RunLog, network: PreDiffNetwork, result: StageResult, place: _Workplace) -> None:
    """Pictures of held-out frames above what the autoencoder gives back."""
    import numpy as np
    import torch

    from models.gaps import fill_gaps
    from tasks.training.stages.assembly import take_weights
    from tasks.verification.figures import side_by_side

    take_weights(network.autoencoder, result.weights)
    network.eval()
    transform, info = network.config.transform, place.samples.info
    windows = place.samples.held_out("val", 2, wet=True)
    for number, fields in enumerate(place.samples.reader().read(windows)):
        frames = fill_gaps(transform.forward(torch.from_numpy(fields)))[:: max(1, len(fields) // 5)][:5]
        with torch.no_grad():
            given, _, _ = network.autoencoder(frames[:, None])
        seen, back = (np.asarray(transform.inverse(part), np.float32) for part in (frames, given[:, 0]))
        titles = [f"frame {index}" for index in range(len(seen))]
        log.figure(side_by_side(seen, {"reconstruction": back}, titles, info.quantity), f"examples/{number}.png")
