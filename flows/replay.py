"""A past period as if live: the domain's clock runs, schedules follow it, and every cycle is issued by the worker."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timedelta

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flows.verify import verify
from infra.clock import Clock, parse_time, start_replay, stop_replay
from infra.deployments import PLANS, deploy_domain, pause_domain
from infra.objects import ObjectStore
from infra.settings import Domain, Settings, load_domain
from tasks import cycle
from tasks.products.publishing import read_latest

_DRAIN = timedelta(seconds=90)  # wall time in which the last cycle becomes a product


def replay(
    settings: Settings, domain: str, start: str, end: str, speed: float, *, follow: bool, model: str | None = None
) -> None:
    """Replay [start, end] of a domain on the running stack.

    Args:
        settings: Attached to the stack.
        domain: A domain's name.
        start: ISO 8601 UTC: where the clock starts.
        end: ISO 8601 UTC: where it stands still.
        speed: Domain seconds per wall second.
        follow: Wait for the end, score what was issued last, and `stop`. Otherwise the domain stays at the end of the
            period until somebody calls `stop`.
        model: What nowcasts ask for instead of the domain's ladder.

    Raises:
        ValueError: an empty period, or a speed at which a cycle would take less than a second.
    """
    place = load_domain(domain, settings)
    first, last = parse_time(start), parse_time(end)
    if first is None or last is None or last <= first:
        raise ValueError(f"expected a period; got {start} to {end}")
    if place.feed.cadence / speed < timedelta(seconds=1):
        raise ValueError(f"expected cycles of at least a second; {place.feed.cadence} at speed {speed:g} is less")
    asked = {"model": model} if model else {}
    plans = {**PLANS, "nowcast": replace(PLANS["nowcast"], parameters=asked)}
    with ExitStack() as undo:
        undo.callback(stop_replay, place, settings)
        latency = cycle.latency(place, settings)
        clock = start_replay(place, settings, first, last + latency, speed)  # until the last frame is there
        deploy_domain(settings, place, active=True, latency=latency, plans=plans)
        undo.pop_all()
    print(
        f"{domain}: {first:%Y-%m-%d %H:%M} to {last:%H:%M} UTC at speed {speed:g}, a cycle every "
        f"{(place.feed.cadence / speed).total_seconds():.0f} s"
    )
    if not follow:
        return
    try:
        _watch(place, settings, clock, first, last)
        verify(domain=domain)  # the schedule comes every sixth cycle: the last products would stay unscored
    finally:
        stop(settings, domain)


def stop(settings: Settings, domain: str) -> None:
    """Return a domain to the live clock, whatever became of its replay; its schedules run if the domain is active.

    Raises:
        RuntimeError: no Prefect server; the clock is live again all the same.
    """
    place = load_domain(domain, settings)
    try:
        pause_domain(settings, domain)
    finally:
        stop_replay(place, settings)
    active = domain in settings.active_domains
    deploy_domain(settings, place, active=active, latency=cycle.latency(place, settings))


def _watch(place: Domain, settings: Settings, clock: Clock, first: datetime, last: datetime) -> None:
    """Show the domain's clock and its newest product until the period and what was still running are over."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("replay", total=(last - first).total_seconds())
        store = cycle.product_store(place, settings)
        over, told = _over(clock, last), False
        while datetime.now(over.tzinfo) < over:
            shown, trouble = _newest(store, place.name)
            if trouble and not told:
                print(trouble)
                told = True
            now = clock.now()
            progress.update(bar, completed=(now - first).total_seconds(), description=f"{now:%H:%M} newest {shown}")
            time.sleep(2)


def _over(clock: Clock, last: datetime) -> datetime:
    """Wall time at which the frame of `last` has come, a latency after its time, and what it set off is done."""
    return clock.wall(clock.replay_to or last) + _DRAIN


def _newest(store: ObjectStore, domain: str) -> tuple[str, str | None]:
    """The newest product in a few words, and why it cannot be told; the next look may succeed."""
    try:
        latest = read_latest(store, domain)
    except (OSError, ValueError) as error:
        return "unknown", f"expected the newest product of {domain}; got: {error}. The replay goes on"
    return (f"{latest.init_time:%H:%M} ({latest.rung})" if latest else "none yet"), None
