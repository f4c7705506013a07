"""PreDiff's three stages one after the other, then one checkpoint, judged as an ensemble."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.conclusion import conclude
from infra.attachment import running_settings
from infra.settings import load_domain, parse_duration
from tasks import steps
from tasks.prediff_plan import read_plan


@flow(name="train-prediff", flow_run_name="train {preset} for {domain}", log_prints=True)
def train_prediff(
    domain: str,
    preset: str,
    from_model: str | None = None,
    budget: str | None = None,
    max_steps: int | None = None,
    resume: str | None = None,
    stage: str | None = None,
    as_of: str | None = None,
    windows: int | None = None,
    imported: dict[str, str] | None = None,
    seed: int | None = None,
    constraint: str | None = None,
    perceptual: str | None = None,
    reason: str = "asked for",
) -> dict[str, Any]:
    """Train a PreDiff on the archive and let the ensemble gate decide.

    Args:
        domain: A domain's name; its champion Earthformer is the anchor where the preset wants one.
        preset: `prediff/preset`.
        from_model: Another anchor, `NAME@ALIAS`, of a preset anchored to an Earthformer; none that is shipped is.
        budget: Wall time over all stages, such as `35min`; default: the domain's.
        max_steps: Optimiser steps of every stage instead of a budget.
        resume: MLflow run id of an earlier training: finished stages are kept, an interrupted one goes on.
        stage: With `resume`: do autoencoder, latents, denoiser or alignment again, and what builds on it.
        as_of: Archive snapshot; default: the newest.
        windows: Windows encoded for training; default: 6000.
        imported: Registered components taken as they are: `NAME@ALIAS` of an autoencoder, denoiser, alignment network.
        seed: Of everything random; default: 0.
        constraint: What members can be steered to: average_intensity (default), domain_mass or
            exceedance_area:THRESHOLD in the units of the quantity.
        perceptual: File with LPIPS weights, added to the autoencoder's loss; default: left out, as published.
        reason: Why this training was started.
    """
    settings = running_settings()
    steps.give_way(settings)
    place = load_domain(domain, settings)
    print(f"training {preset} for {domain}: {reason}")
    with steps.in_turn(settings, f"train-prediff/{domain}"):
        begun = resume or steps.find_begun_plan(settings, domain, steps.flow_run_id())
        if begun is not None:
            told = read_plan(settings, begun).archive_snapshot
            if as_of not in (None, told):
                raise ValueError(f"expected no as_of, or {told}, of a training that goes on; got {as_of}")
            as_of = told
        data = steps.sample_data(place, settings, as_of)
        limit = parse_duration(budget) if budget else None
        plan = steps.plan_prediff(
            place,
            settings,
            data,
            preset=preset,
            budget=limit,
            max_steps=max_steps,
            from_model=from_model,
            resume=resume,
            stage=stage,
            request=steps.flow_run_id(),
            train_windows=windows,
            imported=imported,
            seed=seed,
            constraint=constraint,
            perceptual=perceptual,
        )
        if place.training.dataset is None:  # the samples outlive the archive's own history
            steps.tag_snapshot(place, settings, f"train-{plan.run_id}", plan.archive_snapshot)
        first = steps.fit_autoencoder(place, settings, data, plan)
        steps.encode_windows(place, settings, data, plan)
        second = steps.fit_denoiser(place, settings, data, plan)
        results = (first, second, steps.fit_alignment(place, settings, data, plan))
        fitted = steps.assemble_prediff(place, settings, data, plan, results)
        verdict = steps.compare_ensemble_models(place, settings, data, fitted)
        return conclude(domain, settings, fitted, verdict, plan.archive_snapshot)
