"""Publish a product: an immutable folder, verified by reading back, then one pointer swapped last.

The folder is named by the hash of its arrays, so a repeated or a simultaneous publication of the same forecast writes
the same bytes to the same keys; the report of whoever came first is kept, and the manifest follows from both. A crash
before the pointer leaves a folder that no reader is sent to, and the next attempt completes it.

A what-if (an ensemble steered to an intensity) is no forecast: it has folders and a pointer of its own below
`products/<domain>/what-if/<intensity>/`. `products/<domain>/latest.json` never names one, and none is scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter

import xarray as xr
from pydantic import AwareDatetime, BaseModel, ConfigDict

from infra.objects import ObjectStore
from infra.settings import Domain
from tasks.forecasting.context import Context
from tasks.forecasting.ladder import Forecast
from tasks.products.encoding import encode_product
from tasks.products.manifest import MANIFEST, Manifest, damages, read_manifest, sha256, write_all
from tasks.products.quicklook import draw_quicklooks
from tasks.products.report import REPORT, build_report

_SWAPS = 20  # losing a swap means that somebody else has won one


class PublishFailed(RuntimeError):
    """The product did not become visible: read back differently, or the pointer could not be swapped."""


class Latest(BaseModel):
    """products/<series>/latest.json: the product to use now.

    Attributes:
        domain: Its name.
        init_time: Time of the newest frame used.
        at: The moment whose knowledge was used.
        run: Name of the product's folder.
        path: The folder, below the store's root.
        published_at: When the pointer was swapped, by the domain's clock.
        rung: That answered.
        verdict: On its context.
        manifest_sha256: Of the folder's manifest.json.
        supersedes: The folder that this pointer replaced; None for the first.
        seconds: Of upload and of reading back.
    """

    model_config = ConfigDict(frozen=True)

    domain: str
    init_time: AwareDatetime
    at: AwareDatetime
    run: str
    path: str
    published_at: AwareDatetime
    rung: str
    verdict: str
    manifest_sha256: str
    supersedes: str | None
    seconds: dict[str, float]


class Superseded(BaseModel):
    """<folder>.superseded_by.json, beside the immutable folder: which product is used instead."""

    model_config = ConfigDict(frozen=True)

    path: str
    init_time: AwareDatetime
    at: AwareDatetime


@dataclass(frozen=True)
class Published:
    """What a publication did.

    Attributes:
        path: The product's folder, below the store's root.
        run: Its name.
        init_time: Of the forecast.
        manifest_sha256: Of its manifest.
        already: Whether the product was there before, complete.
        latest: Whether the pointer now names it (False: a newer product is out).
        seconds: By stage: encode, quicklook, upload, verify, pointer.
    """

    path: str
    run: str
    init_time: datetime
    manifest_sha256: str
    already: bool
    latest: bool
    seconds: dict[str, float]


def series(domain: str, intensity: float | None = None) -> str:
    """Products that supersede one another: a domain's forecasts, or its what-ifs of one intensity (n of mu + n sigma).

    `trentino`, `trentino/what-if/above-2sigma`, `trentino/what-if/below-1.5sigma`, `trentino/what-if/expected`.
    """
    if intensity is None:
        return domain
    if intensity == 0:
        return f"{domain}/what-if/expected"
    return f"{domain}/what-if/{'above' if intensity > 0 else 'below'}-{abs(intensity):g}sigma"


def latest_key(series: str) -> str:
    """Key of a series' pointer; a domain's forecasts are the series of its name."""
    return f"products/{series}/latest.json"


def read_latest(store: ObjectStore, series: str) -> Latest | None:
    """The pointer of a series; None before its first product."""
    try:
        return Latest.model_validate_json(store.read(latest_key(series)))
    except FileNotFoundError:
        return None


def publish(
    store: ObjectStore,
    product: xr.Dataset,
    context: Context,
    forecast: Forecast,
    domain: Domain,
    *,
    now: datetime,
    as_of: str | None = None,
    seconds: Mapping[str, float] | None = None,
) -> Published:
    """Make a product visible; safe to repeat, safe against a second publisher, and against dying anywhere.

    Args:
        store: Root of products.
        product: Of `build_product`.
        context: Its context.
        forecast: Its forecast.
        domain: Whose product it is.
        now: The domain's clock, for `published_at`.
        as_of: Snapshot that was asked for.
        seconds: Of the stages so far, for the report.

    Raises:
        PublishFailed: the stored objects differ from what was written, or the pointer could not be swapped.
    """
    clock = perf_counter()
    arrays = encode_product(product)
    spent = {"encode": perf_counter() - clock}
    mine = series(domain.name, forecast.ensemble.intensity if forecast.ensemble else None)
    path = f"products/{mine}/{context.init_time:%Y/%m/%d/%H%M}/{_run(domain.name, arrays)}"
    manifest = read_manifest(store, path)
    already = manifest is not None
    if manifest is None:
        clock = perf_counter()
        pictures = draw_quicklooks(product, context.quantity)
        spent["quicklook"] = perf_counter() - clock
        report = build_report(context, forecast, domain, path, as_of=as_of, seconds={**(seconds or {}), **spent})
        manifest = _store(store, path, {**arrays, **pictures}, report.encode(), spent)
    clock = perf_counter()
    latest = _point(store, mine, _latest(domain, context, forecast, path, manifest, now, spent))
    spent["pointer"] = perf_counter() - clock
    run = path.rpartition("/")[2]
    return Published(path, run, context.init_time, sha256(manifest.encode()), already, latest, spent)


def _run(domain: str, arrays: Mapping[str, bytes]) -> str:
    """Name of a product: a hash of its arrays, whose attributes carry snapshot, model, seed, rung and verdict."""
    digest = hashlib.sha256(domain.encode())
    for key in sorted(arrays):
        digest.update(key.encode() + b"\0" + hashlib.sha256(arrays[key]).digest())
    return digest.hexdigest()[:16]


def _store(
    store: ObjectStore, path: str, objects: dict[str, bytes], report: bytes, spent: dict[str, float]
) -> Manifest:
    clock = perf_counter()
    write_all(store, path, objects)
    if not store.put_if_absent(f"{path}/{REPORT}", report):
        report = store.read(f"{path}/{REPORT}")
    spent["upload"] = perf_counter() - clock
    clock = perf_counter()
    manifest = Manifest.of({**objects, REPORT: report})
    wrong = damages(store, path, manifest.objects)
    if wrong:
        raise PublishFailed(f"expected to read back what was written to {path}; {'; '.join(wrong[:5])}")
    spent["verify"] = perf_counter() - clock
    store.put_if_absent(f"{path}/{MANIFEST}", manifest.encode())
    if read_manifest(store, path) != manifest:
        raise PublishFailed(f"expected the manifest of {path} to list what was written; it lists something else")
    return manifest


def _latest(
    domain: Domain,
    context: Context,
    forecast: Forecast,
    path: str,
    manifest: Manifest,
    now: datetime,
    spent: Mapping[str, float],
) -> Latest:
    return Latest(
        domain=domain.name,
        init_time=context.init_time,
        at=context.at,
        run=path.rpartition("/")[2],
        path=path,
        published_at=now,
        rung=forecast.rung,
        verdict=context.verdict.value,
        manifest_sha256=sha256(manifest.encode()),
        supersedes=None,
        seconds={name: round(spent[name], 4) for name in ("upload", "verify") if name in spent},
    )


def _point(store: ObjectStore, series: str, mine: Latest) -> bool:
    """Swap the pointer of `series` to `mine` unless a newer product is out; whether it now names `mine`.

    Newer is only what this domain's clock has reached: a pointer made under a later clock (the present, when a past
    is replayed) is replaced.
    """
    key = latest_key(series)
    for _ in range(_SWAPS):
        tag = store.etag(key)
        current = read_latest(store, series) if tag is not None else None
        if current is None:
            if store.put_if_absent(key, _bytes(mine)):
                return True
            continue
        _note_predecessor(store, current)
        if current.path == mine.path:
            return True
        from_the_future = current.init_time > mine.published_at
        if (current.init_time, current.at) > (mine.init_time, mine.at) and not from_the_future:
            _note(store, mine.path, current)
            return False
        swapped = mine.model_copy(update={"supersedes": current.path})
        if store.replace(key, _bytes(swapped), tag):
            _note_predecessor(store, swapped)
            return True
    raise PublishFailed(f"expected to swap {key} within {_SWAPS} attempts; others were first each time")


def _note_predecessor(store: ObjectStore, latest: Latest) -> None:
    # Repeated before every swap: a crash between a swap and its note is repaired by whoever publishes next.
    if latest.supersedes is not None:
        _note(store, latest.supersedes, latest)


def _note(store: ObjectStore, path: str, by: Latest) -> None:
    note = Superseded(path=by.path, init_time=by.init_time, at=by.at)
    store.put_if_absent(f"{path}.superseded_by.json", _bytes(note))


def _bytes(model: BaseModel) -> bytes:
    return model.model_dump_json(indent=1).encode()
