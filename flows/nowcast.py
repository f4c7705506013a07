"""Newest context → forecast of the best rung in time → product → latest.json; or a what-if beside the forecasts."""

from __future__ import annotations

from typing import Any

from prefect import flow

from infra.attachment import running_settings
from infra.clock import parse_time, read_clock
from infra.settings import load_domain, parse_duration
from tasks import steps
from tasks.forecasting.ensemble import parse_intensity
from tasks.forecasting.ladder import NoForecast


@flow(name="nowcast", flow_run_name="nowcast {domain}", log_prints=True)
def nowcast(
    domain: str,
    at: str | None = None,
    as_of: str | None = None,
    model: str | None = None,
    members: int | None = None,
    deadline: str | None = None,
    seed: int = 0,
    intensity: str | None = None,
) -> dict[str, Any]:
    """Issue one nowcast and publish it; refusing is an answer too, and says why.

    With `intensity` it is a what-if, no forecast: published under a pointer of its own
    (products/<domain>/what-if/<intensity>/latest.json), never the domain's, announced by no event and never scored.
    Only a model that can be steered answers; where none can, nothing is published.

    Args:
        domain: A domain's name.
        at: ISO 8601 UTC: use only what had been received by then; default: the domain's clock.
        as_of: Archive snapshot to read; default: the newest.
        model: `NAME@ALIAS`, `NAME/VERSION` or a rung's name; default: the domain's ladder.
        members: Ensemble members, where the rung has any; default: the domain's.
        deadline: Time budget such as `60s`; default: the domain's.
        seed: Seed of everything random in the forecast.
        intensity: What if the average intensity were `+2sigma` or `-1sigma` from what is expected.
    """
    delay = steps.start_delay()
    steered = None if intensity is None else parse_intensity(intensity)
    settings = running_settings()
    place = load_domain(domain, settings)
    clock = read_clock(place, settings)
    moment = parse_time(at)
    if moment is None and as_of is None:
        patience = min(place.forecast.deadline, place.feed.cadence / clock.speed) / 2
        steps.await_newest(place, settings, clock, patience)
    context = steps.read_context(place, settings, clock, moment, as_of)
    limit = parse_duration(deadline) if deadline else place.forecast.deadline
    try:
        forecast = steps.make_forecast(
            place, settings, context, model=model, members=members, deadline=limit, seed=seed, intensity=steered
        )
    except NoForecast as error:
        if steered is None:
            steps.announce("nowcast.missed", domain, reason=str(error), at=context.at.isoformat())
        raise
    published = steps.publish_forecast(
        place, settings, clock, context, forecast, as_of=as_of, seconds={"start_delay": delay} if delay else None
    )
    report, picture = steps.look_at(place, settings, published)
    if steered is None:
        steps.announce("nowcast.published", domain, path=published.path, rung=report.rung, verdict=report.verdict)
    steps.show_product(domain, published, report, picture)
    return {
        "domain": domain,
        "init_time": report.init_time.isoformat(),
        "path": f"{place.product.url}/{published.path}",
        "rung": report.rung,
        "verdict": report.verdict,
        "reasons": list(report.reasons),
        "model": f"{report.model.name} {report.model.version}",
        "members": report.members,
        "ensemble": report.ensemble and report.ensemble.choice,
        "intensity": report.ensemble and report.ensemble.intensity,
        "archive_snapshot": report.archive_snapshot,
        "latest": published.latest,
        "published_before": published.already,
        "seconds": {**report.seconds, **published.seconds},
    }
