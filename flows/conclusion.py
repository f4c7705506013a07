"""How every training flow ends: the verdict is carried out, announced and shown, and told to the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks import steps

if TYPE_CHECKING:
    from infra.settings import Settings
    from tasks.learning import Fitted
    from tasks.verification.ensemble_promotion import EnsembleVerdict
    from tasks.verification.promotion import PromotionVerdict


def conclude(
    domain: str,
    settings: Settings,
    fitted: Fitted,
    verdict: PromotionVerdict | EnsembleVerdict,
    archive_snapshot: str,
) -> dict[str, Any]:
    """Promote the challenger or refuse it, and say so.

    Args:
        domain: A domain's name.
        settings: Tracking server.
        fitted: The challenger.
        verdict: What the gate said of it.
        archive_snapshot: What it was trained on.

    Returns:
        What a training flow returns: the model, the verdict on it, and where both come from.
    """
    version = steps.promote_model(settings, fitted, verdict)
    if verdict.promote:
        steps.announce("model.promoted", domain, model=fitted.name, version=fitted.version, reason=verdict.reason)
    steps.show_training(domain, fitted, verdict)
    return {
        "domain": domain,
        "model": fitted.name,
        "version": fitted.version,
        "aliases": list(version.aliases),
        "promoted": verdict.promote,
        "verdict": verdict.reason,
        "against_extrapolation": str(verdict.against_extrapolation),
        "ladder_rank": verdict.ladder_rank,
        "steps": fitted.steps,
        "seconds": fitted.seconds,
        "stopped_because": fitted.stopped_because,
        "archive_snapshot": archive_snapshot,
        "run": fitted.run_link,
    }
