"""What a PreDiff training was told: begun once, written beside its stages, taken up again by its run id alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from infra.revision import code_revision
from infra.settings import Domain, Settings
from infra.tracking import Tracking
from tasks.prediff_import import find_components, keep_components
from tasks.rungs import Champion, find_named
from tasks.training.data import TrainingData
from tasks.training.datasets import Sequences
from tasks.training.resumption import REQUEST_TAG, experiment_of, keep_to, training_folder
from tasks.training.stages.recipes import recipe_of
from tasks.training.stages.stage import StageConfig

STAGES = ("autoencoder", "latents", "denoiser", "alignment")
AVERAGE = "average_intensity"
_PLAN = "prediff.json"
# Shares of the budget; the rest is for encoding, choosing the spread, and judging.
_SHARES = {"autoencoder": 0.07, "denoiser": 0.7, "alignment": 0.11}
_TRAINED_WINDOWS = 6000


@dataclass(frozen=True)
class PreDiffPlan:
    """One PreDiff training; written beside its stages, so that going on needs its run id alone.

    Attributes:
        preset: `prediff/preset`.
        seed: Of everything random.
        run_id: The training's MLflow run, parent of its stages' runs.
        archive_snapshot: Of the samples.
        anchor: Checkpoint folder of the anchor's model; empty without one.
        anchor_name: Its name and version.
        budget_s: Wall time over all stages; None: by steps.
        max_steps: Optimiser steps of every stage; None: by time.
        train_windows: Windows encoded for training.
        imported: Stages whose networks are taken from the registry as they are, with their names and versions.
        constraint: What members can be steered to, as `parse_constraint` reads it.
        perceptual: File with LPIPS weights for the autoencoder's loss; empty without.
    """

    preset: str
    seed: int
    run_id: str
    archive_snapshot: str
    anchor: str = ""
    anchor_name: str = ""
    budget_s: float | None = None
    max_steps: int | None = None
    train_windows: int = _TRAINED_WINDOWS
    imported: dict[str, str] = field(default_factory=dict)
    constraint: str = AVERAGE
    perceptual: str = ""

    def stage(self, name: str, settings: Settings) -> StageConfig:
        """How stage `name` is trained."""
        budget = timedelta(seconds=self.budget_s * _SHARES[name]) if self.budget_s else None
        device = "auto" if settings.device == "auto" else settings.device
        recipe = asdict(recipe_of(self.preset).stage(name))
        return StageConfig(**recipe, seed=self.seed, budget=budget, max_steps=self.max_steps, accelerator=device)


def plan_prediff(
    domain: Domain,
    settings: Settings,
    data: TrainingData | Sequences,
    *,
    preset: str,
    budget: timedelta | None = None,
    max_steps: int | None = None,
    from_model: str | None = None,
    resume: str | None = None,
    stage: str | None = None,
    request: str | None = None,
    train_windows: int | None = None,
    imported: Mapping[str, str] | None = None,
    seed: int | None = None,
    constraint: str | None = None,
    perceptual: str | None = None,
) -> PreDiffPlan:
    """Begin a training (its MLflow run, its folder), or take up an earlier one.

    Args:
        domain: Its champion Earthformer is the anchor where the preset wants one.
        settings: Tracking server and state folder.
        data: Samples.
        preset: `prediff/preset`; with `resume` that of the earlier training, and so all that follows.
        budget: Wall time over all stages.
        max_steps: Optimiser steps of every stage instead.
        from_model: Anchor other than the domain's champion, `NAME@ALIAS`, where the preset wants one.
        resume: MLflow run id of an earlier training.
        stage: With `resume`: do this stage, and what builds on it, again.
        request: What asks for it (a flow run's id): asking again goes on with the training that it began.
        train_windows: Windows encoded for training; None: 6000.
        imported: Registered components instead of stages, `NAME@ALIAS` by stage: see `tasks.prediff_import`.
        seed: Of everything random; None: 0.
        constraint: What members can be steered to: see `parse_constraint`; None: their average intensity.
        perceptual: File with LPIPS weights for the autoencoder's loss, as `models.prediff.perceptual` reads them.

    Raises:
        ValueError: no such preset, stage, training or constraint, or an option that could not count.
        ModelMissing: no champion to anchor to.
    """
    if stage is not None and (stage not in STAGES or resume is None):
        raise ValueError(f"expected a stage of {', '.join(STAGES)} of a training to resume; got {stage!r}, {resume!r}")
    perceptual = str(Path(perceptual).resolve()) if perceptual else None
    tracking = Tracking(settings.tracking_uri)
    begun = resume or find_begun_plan(settings, domain.name, request)
    if begun is not None:
        plan = read_plan(settings, begun)
        if data.info.archive_snapshot != plan.archive_snapshot:
            raise ValueError(f"expected samples of {plan.archive_snapshot}; got {data.info.archive_snapshot}")
        if resume:
            asked = {"preset": preset, "from_model": from_model, "budget": budget, "max_steps": max_steps}
            others = {"constraint": constraint, "perceptual": perceptual, "seed": seed}
            keep_to(_told(plan), **asked, windows=train_windows, imported=imported or None, **others)
        if stage in plan.imported:
            raise ValueError(f"expected a stage that was trained; {stage} is {plan.imported[stage]}, imported")
        if stage is not None:
            _forget_once(training_folder(settings, plan.run_id), stage, request)
        return plan
    anchor = _find_anchor(preset, from_model, domain, settings)
    _require_counting(imported or {}, constraint, perceptual, data.info.quantity)
    components = find_components(preset, imported or {}, data.info, settings)
    told = budget or (None if max_steps else domain.training.budget)
    tags = {
        "squall.domain": domain.name,
        "squall.preset": preset,
        "squall.archive_snapshot": data.info.archive_snapshot,
        "squall.code_revision": code_revision(),
        **({REQUEST_TAG: request} if request else {}),
    }
    with tracking.run(experiment_of(domain.name), preset, None, tags) as log:
        plan = PreDiffPlan(
            preset=preset,
            seed=seed or 0,
            run_id=log.run_id,
            archive_snapshot=data.info.archive_snapshot,
            anchor=anchor.folder if anchor else "",
            anchor_name=f"{anchor.name} {anchor.version}" if anchor else "",
            budget_s=told.total_seconds() if told else None,
            max_steps=max_steps,
            train_windows=train_windows or _TRAINED_WINDOWS,
            imported={component.stage: component.name for component in components},
            constraint=constraint or AVERAGE,
            perceptual=perceptual or "",
        )
        log.params({key: value for key, value in asdict(plan).items() if value not in (None, "", {})})
    folder = training_folder(settings, plan.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    keep_components(folder, components)
    partial = folder / f"{_PLAN}.part"
    partial.write_text(json.dumps(asdict(plan), indent=2))
    partial.replace(folder / _PLAN)
    return plan


def find_begun_plan(settings: Settings, domain: str, request: str | None) -> str | None:
    """MLflow run of the PreDiff training that a request began before its process was killed; None where there is none.

    A run that was killed before its plan was written does not count.
    """
    if request is None:
        return None
    run_id = Tracking(settings.tracking_uri).find_tagged(experiment_of(domain), REQUEST_TAG, request)
    return run_id if run_id is not None and (training_folder(settings, run_id) / _PLAN).exists() else None


def _find_anchor(preset: str, from_model: str | None, domain: Domain, settings: Settings) -> Champion | None:
    """The Earthformer around which the preset's members lie; None where it wants none."""
    from models.prediff.presets import preset as find_preset

    wanted = find_preset(preset).anchor
    if wanted == "earthformer":
        return find_named(from_model or wanted, domain, settings)
    if from_model is not None:
        raise ValueError(f"expected no from_model with {preset}, whose anchor is {wanted!r}; got {from_model!r}")
    return None


def _require_counting(
    imported: Mapping[str, str], constraint: str | None, perceptual: str | None, quantity: str
) -> None:
    """Refuse what an imported network would silently overrule, and what cannot be read."""
    from models.prediff.constraints import parse_constraint
    from models.prediff.perceptual import load_perceptual
    from models.transform import Transform

    parse_constraint(constraint or AVERAGE, Transform.of_quantity(quantity))
    if "alignment" in imported and constraint not in (None, AVERAGE):
        raise ValueError(f"expected {AVERAGE} of an imported alignment network; got {constraint}")
    if perceptual is None:
        return
    if "autoencoder" in imported:
        raise ValueError(f"expected no perceptual loss of an imported autoencoder; got {perceptual}")
    load_perceptual(perceptual)


def _told(plan: PreDiffPlan) -> dict[str, object]:
    budget = None if plan.budget_s is None else timedelta(seconds=plan.budget_s)
    changed = {"from_model": plan.anchor_name, "budget": budget, "windows": plan.train_windows}
    return {**asdict(plan), **changed}


def read_plan(settings: Settings, run_id: str) -> PreDiffPlan:
    """The plan of an earlier training.

    Raises:
        ValueError: no PreDiff training of that run under this state folder.
    """
    path = training_folder(settings, run_id) / _PLAN
    if not path.exists():
        raise ValueError(f"expected the MLflow run of a PreDiff training under this state folder; got {run_id!r}")
    return PreDiffPlan(**json.loads(path.read_text()))


def _forget_once(folder: Path, stage: str, request: str | None) -> None:
    """Drop a stage where this request has not done so: asked again, after its process was killed, it goes on."""
    marker = folder / f".again-{stage}-{request}"
    if not marker.exists():
        _forget(folder, stage)
        if request is not None:
            marker.touch()


def _forget(folder: Path, stage: str) -> None:
    """Drop a stage and all that builds on it: denoiser and alignment network need the latents, not each other."""
    builds_on = {"autoencoder": STAGES, "latents": STAGES[1:], "denoiser": ("denoiser",), "alignment": ("alignment",)}
    for name in reversed(builds_on[stage]):  # killed in between, what is left never builds on what is gone
        if (folder / name).exists():
            dropped = folder / f".{name}.{uuid4().hex}"
            (folder / name).rename(dropped)
            shutil.rmtree(dropped)
