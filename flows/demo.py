"""The main job on embedded defaults: simulated rain → archive → model → nowcasts → products → scores."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console
from rich.progress import track

from flows import printing
from infra.settings import Domain, Settings, load_domain
from tasks.feeds.simulated import simulated_objects

DOMAIN = "simulated"
HISTORY = timedelta(hours=3)
CYCLES = 6
_GRID, _CELL_M, _SEED = (128, 128), 2000.0, 7


def demo(settings: Settings, budget: str | None = None) -> dict[str, Any]:
    """Run the whole chain once on simulated rain and print what came of it."""
    from flows.ingest import ingest
    from flows.nowcast import nowcast
    from flows.train import train
    from flows.verify import verify

    console = Console()
    place = load_domain(DOMAIN, settings)
    cadence = place.feed.cadence
    future = (CYCLES + place.forecast.lead_times) * cadence
    now = datetime.now(UTC)
    start = now - (now - datetime(1970, 1, 1, tzinfo=UTC)) % cadence - HISTORY - future - cadence
    history_end, end = start + HISTORY, start + HISTORY + future

    _forget(place, settings)
    hours, minutes = HISTORY // timedelta(hours=1), future // timedelta(minutes=1)
    console.rule(f"1  {hours} simulated hours and the {minutes} minutes after, as MRMS files in a bucket layout")
    _fill_bucket(place, settings, start, int((end - start) / cadence) + 1)
    console.rule("2  ingest the three hours into the archive")
    printing.show(_brief(ingest(domain=DOMAIN, start=start.isoformat(), end=history_end.isoformat())), as_json=False)
    console.rule("3  train a small Earthformer and let the gate judge it")
    trained = train(domain=DOMAIN, budget=budget)
    printing.show(trained, as_json=False)
    console.rule(f"4  {CYCLES} cycles as they come: ingest, nowcast, publish")
    model = f"{trained['model']}/{trained['version']}"
    for cycle in range(1, CYCLES + 1):
        moment = history_end + cycle * cadence
        ingest(domain=DOMAIN, start=(moment - cadence).isoformat(), end=moment.isoformat())
        issued = nowcast(domain=DOMAIN, at=(moment + timedelta(seconds=90)).isoformat(), model=model)
        console.print(f"{moment:%H:%M} UTC  rung {issued['rung']}, verdict {issued['verdict']}  {issued['path']}")
    console.rule("5  what the simulator then did, and the scores")
    ingest(domain=DOMAIN, start=history_end.isoformat(), end=end.isoformat())
    scored = verify(domain=DOMAIN, start=start.isoformat())
    _print_skill(console, scored)
    _print_next_steps(console, settings, issued["path"])
    return scored


def _forget(place: Domain, settings: Settings) -> None:
    """Remove what an earlier demo left: its rain is another world's."""
    from infra.objects import ObjectStore

    for url in (place.feed.url, place.archive.url):
        root, _, name = url.rpartition("/")
        ObjectStore(root, settings.storage_options(root)).delete(name)
    store = ObjectStore(place.product.url, settings.storage_options(place.product.url))
    for folder in ("products", "scores"):
        store.delete(f"{folder}/{place.name}")


def _fill_bucket(place: Domain, settings: Settings, start: datetime, steps: int) -> None:
    from infra.objects import ObjectStore

    bucket = ObjectStore(place.feed.url, settings.storage_options(place.feed.url))
    frames = simulated_objects(start, steps, place.feed.cadence, _GRID, _CELL_M, _SEED)
    for _, key, data in track(frames, "simulating", total=steps):
        bucket.write(key, data)


def _brief(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("written", "missing", "first", "last", "archive_snapshot")}


def _print_skill(console: Console, scored: dict[str, Any]) -> None:
    rows = [
        {
            "lead": f"{line['lead_minutes']:g} min",
            "threshold": f"{line['threshold']:g} mm/h",
            "model": line["product"],
            "extrapolation": line["extrapolation"],
            "persistence": line["persistence"],
        }
        for line in scored["csi"]
        if line["threshold"] in (1.0, 5.0)
    ]
    printing.show_rows(f"CSI of {scored['products']} products against what was then observed", rows, as_json=False)
    console.print(f"verdict on skill: {scored['verdict']}")


def _print_next_steps(console: Console, settings: Settings, path: str) -> None:
    console.rule("what you have now")
    console.print(f"product     {path}", soft_wrap=True)
    console.print(f"quick-look  {path}/quicklook", soft_wrap=True)
    console.print("in words    .venv/bin/squall product show simulated")
    if settings.prefect_url:
        console.print(f"Prefect UI  {settings.prefect_url.removesuffix('/api')}\nMLflow UI   {settings.tracking_uri}")
        return
    console.print("both UIs    .venv/bin/squall up   (then the addresses it prints; `squall down` stops it)")
