"""Products in a store as a nowcast cycle leaves them, from an archive of moving rain."""

from __future__ import annotations

from datetime import datetime, timedelta

from builders.nowcasts import LATENCY, slot_time
from infra.objects import ObjectStore
from infra.settings import Domain
from tasks.archive.archive import Archive
from tasks.forecasting.context import build_context
from tasks.forecasting.ladder import baseline_rung, run_ladder
from tasks.products.dataset import build_product
from tasks.products.encoding import encode_product
from tasks.products.manifest import MANIFEST, Manifest, write_all
from tasks.products.report import REPORT, build_report


def issue(store: ObjectStore, domain: Domain, archive: Archive, last: int, *, rung: str = "extrapolation") -> str:
    """Issue the product whose newest frame is slot `last` of the small archives; returns its path."""
    return issue_at(store, domain, archive, slot_time(last) + LATENCY, rung=rung)


def issue_at(store: ObjectStore, domain: Domain, archive: Archive, at: datetime, *, rung: str = "extrapolation") -> str:
    """Issue the product of what was known at `at`; returns its path."""
    context = build_context(archive, domain, at, latency=LATENCY)
    rungs = [baseline_rung(rung, context, domain)]
    forecast = run_ladder(context, rungs, domain, deadline=timedelta(minutes=1), seed=0)
    path = f"products/{domain.name}/{context.init_time:%Y/%m/%d/%H%M}/run-{context.init_time:%H%M}"
    report = build_report(context, forecast, domain, path, as_of=None, seconds={})
    objects = {**encode_product(build_product(forecast, context, domain)), REPORT: report.encode()}
    write_all(store, path, objects)
    store.write(f"{path}/{MANIFEST}", Manifest.of(objects).encode())
    return path
