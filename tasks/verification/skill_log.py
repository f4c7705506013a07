"""Verification curves where researchers look: one MLflow run per domain and day, rewritten as scores come in."""

from __future__ import annotations

from infra.settings import Domain, Settings
from infra.tracking import Tracking
from tasks.verification.figures import score_curves
from tasks.verification.skill_table import SkillTable


def log_skill(domain: Domain, settings: Settings, table: SkillTable) -> None:
    """Log the skill of issued products beside both baselines: metrics by lead time, and CSI curves as figures."""
    if not table.products:
        return
    day = f"{table.issues[-1].init_time:%Y-%m-%d}"
    tracking = Tracking(settings.tracking_uri)
    experiment = f"squall/{domain.name}/verification"
    with tracking.run(experiment, day, run_id=tracking.find_run(experiment, day)) as log:
        log.metrics(table.metrics())
        log.tags({"squall.products": str(table.products), "squall.wet_products": str(table.wet_products)})
        for windows, sources in table.sums.items():
            tables = {str(source): statistics.contingency for source, statistics in sources.items()}
            for score in ("csi", "pod", "far", "bias"):
                figure = score_curves(tables, score, table.lead_minutes, table.quantity)
                log.figure(figure, f"{windows}/{score}.png")
