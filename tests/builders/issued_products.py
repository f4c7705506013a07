"""Products in a store as a nowcast cycle leaves them, from an archive of moving rain."""

from __future__ import annotations

from datetime import timedelta

from builders.nowcasts import newest_context
from infra.objects import ObjectStore
from infra.settings import Domain
from tasks.archive import Archive
from tasks.forecasting import baseline_rung, run_ladder
from tasks.manifest import MANIFEST, Manifest, write_all
from tasks.product_store import encode_product
from tasks.products import build_product
from tasks.report import REPORT, build_report


def issue(store: ObjectStore, domain: Domain, archive: Archive, last: int, *, rung: str = "extrapolation") -> str:
    """Issue the product whose newest frame is slot `last`; returns its path."""
    context = newest_context(domain, archive, last)
    forecast = run_ladder(
        context, [baseline_rung(rung, context, domain)], domain, deadline=timedelta(minutes=1), seed=0
    )
    path = f"products/{domain.name}/{context.init_time:%Y/%m/%d/%H%M}/run-{last:03}"
    report = build_report(context, forecast, domain, path, as_of=None, seconds={})
    objects = {**encode_product(build_product(forecast, context, domain)), REPORT: report.encode()}
    write_all(store, path, objects)
    store.write(f"{path}/{MANIFEST}", Manifest.of(objects).encode())
    return path
