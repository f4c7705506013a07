"""Challenger against champion: train, compare out of sample, promote or not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow

from flows.conclusion import conclude
from infra.attachment import running_settings
from infra.settings import load_domain, parse_duration
from tasks import steps
from tasks.training.resumption import find_interrupted, keep_to


@flow(name="train", flow_run_name="train {domain}", log_prints=True)
def train(
    domain: str,
    preset: str | None = None,
    from_model: str | None = None,
    budget: str | None = None,
    max_steps: int | None = None,
    resume: str | None = None,
    as_of: str | None = None,
    window: str | None = None,
    seed: int | None = None,
    reason: str = "asked for",
) -> dict[str, Any]:
    """Train a challenger on the archive and let the promotion gate decide.

    A run whose process was killed and that is started again goes on with the training that it began.

    Args:
        domain: A domain's name.
        preset: `family/preset`; default: the architecture of `from_model`, else the domain's preset.
        from_model: `NAME@ALIAS` to start from.
        budget: Wall time such as `10min`; default: the domain's.
        max_steps: Optimiser steps instead of a budget.
        resume: MLflow run id of an interrupted training; its own preset, seed, snapshot and steps count, and another
            preset, snapshot, number of steps, window or model to start from is refused.
        as_of: Archive snapshot; default: the newest.
        window: Frames in, frames out and cells other than the model's, such as `13:12:64x64`.
        seed: Of order, draws and initial weights; default: 0.
        reason: Why this training was started.
    """
    settings = running_settings()
    steps.give_way(settings)
    place = load_domain(domain, settings)
    if resume is not None:
        asked = {"preset": preset, "from_model": from_model, "max_steps": max_steps, "seed": seed}
        keep_to(asdict(find_interrupted(settings, resume)), **asked, archive_snapshot=as_of, window=window)
    print(f"training for {domain}: {reason}")
    with steps.in_turn(settings, f"train/{domain}"):
        request = steps.flow_run_id()
        resume = resume or steps.find_begun(settings, domain, request)
        if resume is not None:
            print(f"going on with {resume}")
            told = find_interrupted(settings, resume)
            preset, seed, as_of, max_steps = told.preset, told.seed, told.archive_snapshot, told.max_steps
        data = steps.sample_data(place, settings, as_of)
        limit = parse_duration(budget) if budget else None
        fitted = steps.fit_model(
            place,
            settings,
            data,
            preset=preset,
            budget=limit,
            max_steps=max_steps,
            from_model=from_model,
            resume=resume,
            request=request,
            window=window,
            seed=seed or 0,
        )
        if place.training.dataset is None:  # the samples outlive the archive's own history
            steps.tag_snapshot(place, settings, f"train-{fitted.run_id}", data.info.archive_snapshot)
        verdict = steps.compare_models(place, settings, data, fitted)
        return conclude(domain, settings, fitted, verdict, data.info.archive_snapshot)
