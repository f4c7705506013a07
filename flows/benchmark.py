"""Models on a domain's held-out windows: ensembles side by side, and one ensemble steered to several intensities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from infra.attachment import running_settings
from infra.settings import load_domain
from tasks import steps
from tasks.benchmarking import DEFAULT_MODELS, EnsembleBenchmark
from tasks.steering_benchmark import DEFAULT_INTENSITIES, AlignmentBenchmark


@flow(name="benchmark-ensembles", flow_run_name="benchmark {domain}", log_prints=True)
def benchmark_ensembles(
    domain: str,
    models: list[str] | None = None,
    windows: int = 64,
    members: int = 8,
    sampler_steps: list[str] | None = None,
    reference: str | None = None,
    i3d: str | None = None,
    calibrated: bool = True,
    as_of: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Score ensembles of several models on the same wet held-out windows.

    Args:
        domain: A domain's name.
        models: `NAME@ALIAS`, a family, steps, extrapolation, persistence, `dressed` or `dressed:MODEL`.
        windows: Wet windows of the test split, at most.
        members: Of each ensemble.
        sampler_steps: Settings such as `20` or `ddim:50` for a steps table of the models that sample.
        reference: Model that differences are taken against; default: the best.
        i3d: File with I3D weights for the Fréchet video distance.
        calibrated: Whether the settings of `sampler_steps` keep what was fitted at the model's own steps.
        as_of: Archive snapshot; default: the newest.
        seed: Of everything random.
    """
    settings = running_settings()
    place = load_domain(domain, settings)
    asked = EnsembleBenchmark(
        models=tuple(models or DEFAULT_MODELS),
        windows=windows,
        members=members,
        seed=seed,
        steps=tuple(sampler_steps or ()),
        reference=reference,
        i3d=Path(i3d) if i3d else None,
        calibrated=calibrated,
    )
    data = steps.sample_data(place, settings, as_of)
    report = steps.compare_ensembles(place, settings, data, asked)
    print(report.text)
    return report.as_dict()


@flow(name="benchmark-alignment", flow_run_name="steer {domain}", log_prints=True)
def benchmark_alignment(
    domain: str,
    model: str = "prediff",
    intensities: list[float] | None = None,
    windows: int = 16,
    members: int = 8,
    sampler_steps: list[str] | None = None,
    guidance: str = "calibrated",
    as_of: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Steer a PreDiff's ensembles to several average intensities and read off what came out.

    Args:
        domain: A domain's name.
        model: `NAME@ALIAS`, `NAME/VERSION` or `prediff`, the domain's champion.
        intensities: n of mu + n sigma.
        windows: Wet windows of the test split, at most.
        members: Of each ensemble.
        sampler_steps: Settings such as `20` or `ddim:50`; default: the model's own.
        guidance: calibrated, or legacy: the published rule, which wants a diffusion and is meant for 1000 steps.
        as_of: Archive snapshot; default: the newest.
        seed: Of everything random.
    """
    settings = running_settings()
    place = load_domain(domain, settings)
    asked = AlignmentBenchmark(
        model=model,
        intensities=tuple(intensities or DEFAULT_INTENSITIES),
        windows=windows,
        members=members,
        seed=seed,
        steps=tuple(sampler_steps or ()),
        guidance=guidance,
    )
    data = steps.sample_data(place, settings, as_of)
    report = steps.compare_intensities(place, settings, data, asked)
    print(report.text)
    return report.as_dict()
