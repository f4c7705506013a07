"""Ensembles of a domain side by side: what the step of the benchmark flow does."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.revision import code_revision
from infra.settings import Domain, Settings
from infra.tracking import RunLog, Tracking
from tasks.contenders import device_of, line_up, load_networks, sampling_variants, window_spec
from tasks.learning import cut_samples
from tasks.training.data import TrainingData
from tasks.training.datasets import Sequences
from tasks.training.sample_set import SampleSet

if TYPE_CHECKING:
    from tasks.training.ensemble_table import EnsembleRow
    from tasks.training.sampling_steps import StepsRow

EXPERIMENT = "squall/benchmark/ensembles"
DEFAULT_MODELS = ("prediff", "dressed", "steps")


@dataclass(frozen=True)
class EnsembleBenchmark:
    """What to compare.

    Attributes:
        models: `NAME@ALIAS`, `NAME/VERSION` or a family (the domain's champion of it); steps, extrapolation,
            persistence; `dressed` (Earthformer with its validation residuals) or `dressed:MODEL`.
        windows: Wet held-out windows, at most.
        members: Of each ensemble.
        seed: Of everything random.
        steps: Sampler settings such as `20` or `ddim:50`, each a variant of every model that samples.
        reference: Forecaster that differences are taken against; None takes the best.
        i3d: File with the weights of the network behind the Fréchet video distance; None leaves that out.
        calibrated: Whether variants of `steps` keep the factor on the noise and the quantile mapping that were fitted
            at the model's own steps; without, all are compared as they are drawn.
    """

    models: tuple[str, ...] = DEFAULT_MODELS
    windows: int = 64
    members: int = 8
    seed: int = 0
    steps: tuple[str, ...] = ()
    reference: str | None = None
    i3d: Path | None = None
    calibrated: bool = True


@dataclass(frozen=True)
class BenchmarkReport:
    """What came out.

    Attributes:
        text: The table in Markdown.
        rows: One per forecaster, best first.
        steps: The steps table; empty where none was asked for.
        windows: Windows that were judged.
        run_link: Where people see figures and pictures.
    """

    text: str
    rows: tuple[EnsembleRow, ...]
    steps: tuple[StepsRow, ...]
    windows: int
    run_link: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; a score without evidence is null."""
        from tasks.verification.promotion import without_nan

        plain: dict[str, Any] = without_nan(
            {
                "windows": self.windows,
                "run": self.run_link,
                "ensembles": [row.as_dict() for row in self.rows],
                "steps": [row.as_dict() for row in self.steps],
            }
        )
        return plain


def compare_domain_ensembles(
    domain: Domain, settings: Settings, data: TrainingData | Sequences, asked: EnsembleBenchmark
) -> BenchmarkReport:
    """Forecast the domain's held-out wet windows with every ensemble, score them and log everything.

    The windows are those of the domain's own test split: models of this domain were not trained on them.

    Raises:
        ValueError: an unknown model or setting, a model trained on other cells, or no window.
        ModelMissing: a model that is not registered.
    """
    import torch

    from models.i3d import load_clip_features
    from tasks.training.ensemble_comparison import compare_ensembles
    from tasks.training.ensemble_log import log_comparison, log_pictures, log_steps
    from tasks.training.ensemble_table import as_text, tabulate_ensembles
    from tasks.training.sampling_steps import steps_table

    torch.set_num_threads(settings.threads)
    networks = load_networks(asked.models, domain, settings, data.info)
    spec = window_spec(domain, data.info, networks)
    samples = cut_samples(data, spec)
    forecasters = line_up(asked.models, networks, samples)
    variants = sampling_variants(forecasters, asked.steps, calibrated=asked.calibrated)
    forecasters |= {name: variant for name, (variant, _) in variants.items()}
    windows = samples.held_out("test", asked.windows, wet=True)
    thresholds = domain.training.thresholds or domain.verification.thresholds
    tracking = Tracking(settings.tracking_uri)
    with tracking.run(EXPERIMENT, domain.name) as log:
        log_origin(log, domain, samples, asked)
        comparison = compare_ensembles(
            forecasters,
            samples,
            windows,
            thresholds=thresholds,
            members=asked.members,
            seed=asked.seed,
            features=load_clip_features(asked.i3d, device_of(settings)) if asked.i3d else None,
        )
        rows = tabulate_ensembles(comparison, asked.reference)
        steps = steps_table(comparison, {name: setting for name, (_, setting) in variants.items()})
        log_comparison(log, comparison, rows)
        log_steps(log, steps)
        log_pictures(
            log, forecasters, samples, windows, threshold=thresholds[0], members=asked.members, seed=asked.seed
        )
        link = tracking.run_link(log)
    return BenchmarkReport(as_text(rows, comparison), tuple(rows), tuple(steps), len(windows), link)


def log_origin(log: RunLog, domain: Domain, samples: SampleSet, asked: object) -> None:
    """Log what was asked for (a dataclass), of which domain, on which snapshot and split, with which code."""
    told = {field.name: getattr(asked, field.name) for field in fields(asked)}  # type: ignore[arg-type]
    log.params({name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in told.items()})
    log.tags(
        {
            "squall.domain": domain.name,
            "squall.archive_snapshot": samples.info.archive_snapshot,
            "squall.code_revision": code_revision(),
        }
    )
    log.table(samples.describe(), "split.json")
