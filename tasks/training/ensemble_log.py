"""What a comparison of ensembles leaves in MLflow: its table, scores by lead, figures, and pictures of some windows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.forecaster import Forecaster
from tasks.training.ensemble_comparison import EnsembleComparison, forecast_ensembles
from tasks.training.ensemble_table import EnsembleRow, as_text
from tasks.training.log import TAG_LENGTH
from tasks.training.sample_set import SampleSet
from tasks.training.samples import Window
from tasks.training.sampling_steps import StepsRow
from tasks.training.validation import lead_label
from tasks.verification.ensemble_figures import ensemble_picture, rank_histograms, reliability_curves, spectrum_curves
from tasks.verification.figures import error_curves, score_curves
from tasks.verification.promotion import without_nan

if TYPE_CHECKING:
    from infra.tracking import RunLog

PICTURES = 3
_DESCRIPTION = "mlflow.note.content"  # shown as Markdown on the run's page


def log_comparison(log: RunLog, comparison: EnsembleComparison, rows: Sequence[EnsembleRow]) -> None:
    """Log the table, one metric per forecaster and score (by lead minutes as steps), and every figure."""
    evidence = comparison.evidence
    log.tags({_DESCRIPTION: as_text(rows, comparison)[:TAG_LENGTH]})
    log.table(without_nan({"rows": [row.as_dict() for row in rows]}), "ensembles.json")
    for row in rows:
        log.metrics({f"summary/{_safe(row.name)}/{score}": value for score, value in row.numbers().items()})
    for lead, minutes in enumerate(comparison.lead_minutes):
        log.metrics(_at_lead(comparison, lead), step=round(minutes))
    sums = {name: found.sums for name, found in evidence.items()}
    log.figure(rank_histograms({name: one.rank_shares() for name, one in sums.items()}), "ensembles/ranks.png")
    spectra = {name: found.spectra for name, found in evidence.items()}
    leads = _shown_leads(len(comparison.lead_minutes))
    figure = spectrum_curves(spectra, leads, comparison.lead_minutes, comparison.cell_size_m)
    log.figure(figure, "ensembles/spectra.png")
    tables = {name: found.reliability for name, found in evidence.items()}
    log.figure(reliability_curves(tables, comparison.quantity), "ensembles/reliability.png")
    _log_curves(log, comparison)


def log_steps(log: RunLog, rows: Sequence[StepsRow]) -> None:
    """Log the steps table; nothing where there is none."""
    if not rows:
        return
    log.table(without_nan({"rows": [row.as_dict() for row in rows]}), "steps.json")
    for row in rows:
        numbers = {"crps": row.crps, "csi_pool16": row.csi_pool16, "seconds": row.seconds}
        variant = _safe(row.name.rsplit(" ", 1)[0])
        log.metrics({f"steps/{variant}/{name}": value for name, value in numbers.items()}, step=row.steps)
    log.tags({"squall.chosen_steps": ", ".join(row.name for row in rows if row.chosen)})


def _log_curves(log: RunLog, comparison: EnsembleComparison) -> None:
    minutes, quantity, evidence = comparison.lead_minutes, comparison.quantity, comparison.evidence
    for name, label in (("crps", "fair CRPS"), ("spread_skill", "spread / error")):
        curves = {who: getattr(found.sums, name) for who, found in evidence.items()}
        log.figure(error_curves(curves, minutes, quantity, label), f"ensembles/{name}.png")
    for index, pool in enumerate(next(iter(evidence.values())).pooled.pools):
        pooled = {name: found.pooled.mean[index] for name, found in evidence.items()}
        log.figure(score_curves(pooled, "csi", minutes, quantity), f"ensembles/csi_pool{pool}.png")


def _at_lead(comparison: EnsembleComparison, lead: int) -> dict[str, float]:
    return {
        f"{_safe(name)}/{score}": float(getattr(found.sums, score)[lead])
        for name, found in comparison.evidence.items()
        for score in ("crps", "spread", "error", "spread_skill", "intensity_bias")
    }


def _shown_leads(count: int) -> list[int]:
    return sorted({0, count // 2, count - 1})


def log_pictures(
    log: RunLog,
    forecasters: Mapping[str, Forecaster],
    samples: SampleSet,
    windows: Sequence[Window],
    *,
    threshold: float,
    members: int,
    seed: int,
) -> None:
    """Log pictures of some windows per forecaster: observed, mean, three members, probability of `threshold`."""
    info, reader = samples.info, samples.reader()
    leads = _shown_leads(samples.t_out)
    titles = [f"+{lead_label(lead, info.cadence_s).removeprefix('lead_')}" for lead in leads]
    chosen = np.unique(np.linspace(0, len(windows) - 1, PICTURES).round().astype(int))
    for number, window in enumerate(windows[index] for index in chosen):
        fields = reader.read([window])[0]
        context, observed = fields[: samples.t_in], fields[samples.t_in :]
        found = forecast_ensembles(forecasters, context, samples.t_out, members, seed)
        for name, (forecast, _) in found.items():
            picture = ensemble_picture(observed[leads], forecast[:, leads], threshold, titles, info.quantity)
            log.figure(picture, f"pictures/{number}/{_safe(name)}.png")


def _safe(name: str) -> str:
    """As a metric or a file may be called."""
    return re.sub(r"[^\w.-]+", "-", name)
