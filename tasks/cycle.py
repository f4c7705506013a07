"""One cycle of a domain, stage by stage: what the steps of the ingest, nowcast and verify flows do.

Each function takes the domain and the settings and opens what it needs, so that a step can be repeated on its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from infra.clock import Clock
from infra.compute import mapper
from infra.objects import ObjectStore
from infra.settings import Domain, Settings
from tasks.archive.archive import Archive, ArchiveMissing
from tasks.archive.ingestion import IngestReport, ingest
from tasks.claims import claim
from tasks.feeds import Feed, FeedSource, open_feed
from tasks.forecasting.context import Context, build_context
from tasks.forecasting.ladder import Forecast, run_ladder
from tasks.products.dataset import build_product
from tasks.products.index import expire_products
from tasks.products.publishing import Published, publish
from tasks.products.report import Report, read_report
from tasks.rungs import choose_rungs
from tasks.verification.degradation import SkillVerdict
from tasks.verification.scoring import VerificationReport, verify_products
from tasks.verification.skill_table import SkillTable, summarise

# How far back a cycle that is not told heals what an outage left open.
HEAL = timedelta(days=2)
_DAILY = timedelta(days=1)


def open_archive(domain: Domain, settings: Settings) -> Archive:
    """The domain's archive. Raises ArchiveMissing before the first ingest."""
    return Archive.open(domain.archive.url, settings.storage_options(domain.archive.url))


def open_source(domain: Domain, settings: Settings) -> Feed:
    """The domain's feed."""
    # A feed that says how it is reached is somebody else's store: our endpoint and keys have no business there.
    storage = dict(domain.feed.storage) or settings.storage_options(domain.feed.url)
    return open_feed(
        FeedSource(
            kind=domain.feed.kind,
            url=domain.feed.url,
            quantity=domain.feed.quantity,
            cadence=domain.feed.cadence,
            storage=storage,
            options=domain.feed.options,
        )
    )


def product_store(domain: Domain, settings: Settings) -> ObjectStore:
    """Where the domain's products and scores are."""
    return ObjectStore(domain.product.url, settings.storage_options(domain.product.url))


def latency(domain: Domain, settings: Settings) -> timedelta:
    """Delay from valid time to availability: the domain's word, else its feed's."""
    return domain.clock.latency if domain.clock.latency is not None else open_source(domain, settings).latency


def ingest_frames(
    domain: Domain,
    settings: Settings,
    clock: Clock,
    start: datetime | None,
    end: datetime | None,
) -> IngestReport:
    """Bring the frames of a window into the archive; by default those since the newest archived one.

    The default window reaches back `HEAL` at most; what an outage left open before it takes a `start` of its own
    (`squall ingest DOMAIN --from`). A named period is a backfill: its times of receipt were not recorded. Newest frames
    are received now, by the domain's clock.
    """
    now = clock.now()
    backfill = start is not None and not clock.replayed
    window_start = start or _since(domain, settings, now)
    with mapper(settings, description=f"ingest {domain.name}" if backfill else None) as parallel:
        return ingest(
            open_source(domain, settings),
            domain,
            window_start,
            end or now + domain.feed.future_tolerance,
            now,
            storage=settings.storage_options(domain.archive.url),
            backfill=backfill,
            latency=latency(domain, settings) if clock.replayed else None,
            map=parallel,
        )


def _since(domain: Domain, settings: Settings, now: datetime) -> datetime:
    """Before the newest frame by the context and the longest verification, and never more than `HEAL` ago.

    An outage longer than `HEAL` is not healed by itself: its slots are neither looked for nor marked as missing.
    """
    reach = max((domain.context.frames + 2 * domain.forecast.lead_times) * domain.feed.cadence, timedelta(hours=2))
    try:
        newest = open_archive(domain, settings).latest()
    except ArchiveMissing:
        newest = None
    return max(min(now, newest or now) - reach, now - max(reach, HEAL))


def await_newest(domain: Domain, settings: Settings, clock: Clock, patience: timedelta) -> datetime | None:
    """Wait until the frame that should be there by now has been archived, `patience` of wall time at most.

    Returns:
        Time of the newest archived frame; None without an archive.
    """
    cadence = domain.feed.cadence
    visible = clock.now() - latency(domain, settings)
    expected = visible - (visible - datetime(1970, 1, 1, tzinfo=UTC)) % cadence
    deadline = time.monotonic() + patience.total_seconds()
    while True:
        try:
            newest = open_archive(domain, settings).latest()
        except ArchiveMissing:
            newest = None
        if (newest is not None and newest >= expected) or time.monotonic() > deadline:
            return newest
        time.sleep(min(1.0, patience.total_seconds() / 10))


def read_context(
    domain: Domain, settings: Settings, clock: Clock, at: datetime | None = None, as_of: str | None = None
) -> Context:
    """The newest context known at `at` (default: the domain's clock), with its verdict."""
    archive = open_archive(domain, settings)
    return build_context(archive, domain, at or clock.now(), as_of=as_of, latency=latency(domain, settings))


def make_forecast(
    domain: Domain,
    settings: Settings,
    context: Context,
    *,
    model: str | None,
    members: int | None,
    deadline: timedelta,
    seed: int,
    intensity: float | None = None,
) -> Forecast:
    """The forecast of the best rung that answers in time, or a what-if of the given intensity. Raises NoForecast."""
    rungs = choose_rungs(domain, settings, context, model, intensity)
    wanted = members or domain.forecast.members
    return run_ladder(context, rungs, domain, deadline=deadline, seed=seed, members=wanted, intensity=intensity)


def publish_forecast(
    domain: Domain,
    settings: Settings,
    clock: Clock,
    context: Context,
    forecast: Forecast,
    *,
    as_of: str | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Published:
    """Build the product and make it visible; safe to repeat."""
    began = time.perf_counter()
    product = build_product(forecast, context, domain)
    spent = {**(seconds or {}), "build": time.perf_counter() - began}
    store = product_store(domain, settings)
    return publish(store, product, context, forecast, domain, now=clock.now(), as_of=as_of, seconds=spent)


def look_at(domain: Domain, settings: Settings, published: Published) -> tuple[Report, bytes | None]:
    """A product's report and its first quick-look (PNG), as stored."""
    store = product_store(domain, settings)
    pictures = [item.key for item in store.list(f"{published.path}/quicklook") if item.key.endswith(".png")]
    return read_report(store, published.path), store.read(pictures[0]) if pictures else None


def score_products(
    domain: Domain, settings: Settings, clock: Clock, start: datetime | None, end: datetime | None
) -> VerificationReport:
    """Score the issued products whose valid times have been observed; repeating it changes nothing.

    A period bounds the init times; observations count up to the domain's clock.
    """
    archive, store = open_archive(domain, settings), product_store(domain, settings)
    return verify_products(store, archive, domain, clock.now(), since=start, until=end)


def summarise_skill(
    domain: Domain, settings: Settings, clock: Clock, start: datetime | None, end: datetime | None
) -> SkillTable:
    """Skill of the products issued in a period (default: the products' retention), beside both baselines."""
    now = clock.now()
    since = start or now - domain.product.retention
    return summarise(product_store(domain, settings), domain, since, end or now)


def may_announce_degradation(domain: Domain, settings: Settings, verdict: SkillVerdict) -> bool:
    """Whether this run is to say that a model has degraded: once per version, and again after a day.

    The marker is set before the event is sent; a day later the event may be repeated, so that a lost one is not for
    ever, and a model that stays bad asks for one training a day at most.
    """
    model = quote(f"{verdict.model_name}-{verdict.model_version}", safe="")
    key = f"scores/{domain.name}/_degraded/{model}.json"
    return claim(product_store(domain, settings), key, datetime.now(UTC), _DAILY)


def may_expire(domain: Domain, settings: Settings) -> bool:
    """Whether retention is this run's turn: once a day per domain, by the wall clock."""
    key = f"scores/{domain.name}/_retention.json"
    return claim(product_store(domain, settings), key, datetime.now(UTC), _DAILY)


def expire_products_and_snapshots(domain: Domain, settings: Settings) -> dict[str, int]:
    """Remove what was written longer ago than the domain's retention: products, and snapshots of the archive.

    Ages are wall time whatever the domain's clock shows: a replayed product is as old as its replay.
    """
    store, now = product_store(domain, settings), datetime.now(UTC)
    removed = expire_products(store, domain.name, now=now, keep=domain.product.retention)
    expiry = open_archive(domain, settings).expire(now, domain.archive.retention)
    return {"products": len(removed), "snapshots": expiry.snapshots}


def tag_snapshot(domain: Domain, settings: Settings, name: str, snapshot: str) -> None:
    """Keep a snapshot of the domain's archive for ever under a name; a name already given stays where it is."""
    archive = open_archive(domain, settings)
    if name not in archive.repository.list_tags():
        archive.tag(name, snapshot)
