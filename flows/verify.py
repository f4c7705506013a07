"""Score issued products whose valid time has come; when skill has degraded, say so."""

from __future__ import annotations

from typing import Any

from prefect import flow

from infra.attachment import running_settings
from infra.clock import parse_time, read_clock
from infra.settings import load_domain
from tasks import steps


@flow(name="verify", flow_run_name="verify {domain}", log_prints=True)
def verify(domain: str, start: str | None = None, end: str | None = None) -> dict[str, Any]:
    """Score what can be scored, log the curves, judge the newest model; once a day, apply the retention.

    A degraded model is announced (and so retrained) only by a run over the default period that scored something new,
    and once a day at most.

    Args:
        domain: A domain's name.
        start: ISO 8601 UTC: oldest init time; default: of all products still kept.
        end: ISO 8601 UTC: newest init time; default: the domain's clock.
    """
    settings = running_settings()
    steps.give_way(settings)
    place = load_domain(domain, settings)
    clock = read_clock(place, settings)
    period = (parse_time(start), parse_time(end))
    report = steps.score_products(place, settings, clock, *period)
    table = steps.summarise_skill(place, settings, clock, *period)
    steps.log_skill(place, settings, table)
    verdict = steps.judge_recent(table, place)
    news = verdict.degraded and report.rows > 0 and period == (None, None)
    if news and steps.may_announce_degradation(place, settings, verdict):
        steps.announce("skill.degraded", domain, reason=verdict.reason, model=verdict.model_name)
    steps.show_skill(domain, table, verdict)
    expired = steps.expire(place, settings) if steps.may_expire(place, settings) else {}
    return {
        "domain": domain,
        "scored": report.scored,
        "rows": report.rows,
        "superseded": report.superseded,
        "skipped": [f"{path}: {reason}" for path, reason in report.skipped],
        "products": table.products,
        "wet_products": table.wet_products,
        "degraded": verdict.degraded,
        "verdict": verdict.reason,
        "expired": expired,
        "csi": table.records(),
        "csi_wet": table.records("wet"),
    }
