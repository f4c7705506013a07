"""Frames per second from objects to archive, one frame and a batch, against decoding, packing and compressing alone.

    python tests/bench/bench_ingest.py out.json [--quick]

The floor does what cannot be left out (read + decode + pack + zstd) on the same files, in turn with the ingest, so that
a busy machine slows both: a batch by the ingest's own number of threads, one frame by one. Both go into an archive that
is there already, as in operation; what making an archive takes is a figure of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from infra.settings import ArchiveSettings, Domain, FeedSettings, ProductSettings, RegionSettings, Settings
from tasks.archive.archive import Archive
from tasks.archive.ingestion import ingest
from tasks.archive.packing import pack_frame
from tasks.feeds import Feed, FeedSource, FrameObject, open_feed

THREADS = 2
TARGET = 0.8
NOW = datetime(2026, 11, 20, tzinfo=UTC)
_REAL = {
    "mrms": ("mrms_grib2", timedelta(minutes=2), datetime(2019, 6, 10, tzinfo=UTC), timedelta(minutes=10)),
    "fmi": ("fmi_pgm", timedelta(minutes=5), datetime(2016, 9, 28, 14, 45, tzinfo=UTC), timedelta(hours=3, minutes=15)),
}


def _simulated(folder: Path) -> tuple[Feed, datetime, datetime, timedelta]:
    """Six frames of MRMS's size in MRMS's format, for machines without the real ones: one small field, tiled."""
    import numpy as np

    from tasks.feeds.simulated import write_frame
    from tasks.simulation import simulate

    start, step = datetime(2026, 1, 1, tzinfo=UTC), timedelta(minutes=2)
    for time_, rain in simulate(start, 6, step, (350, 700), seed=1):
        key, data = write_frame(time_, np.tile(rain, (10, 10)))
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    source = FeedSource("simulated", str(folder), "rainfall_rate", step)
    return open_feed(source), start, start + 5 * step, step


def _inputs(kind: str, spare: Path) -> tuple[str, Feed, datetime, datetime, timedelta] | None:
    name, step, start, span = _REAL[kind]
    root = (Settings().data / "radar" / name).resolve()
    if root.exists():
        feed = open_feed(FeedSource(kind, str(root), "rainfall_rate", step))
        return f"{kind}, real", feed, start, start + span, step
    return ("mrms, simulated", *_simulated(spare)) if kind == "mrms" else None


def _domain(feed: Feed, step: timedelta, url: str) -> Domain:
    settings = FeedSettings(kind=feed.source.kind, url=feed.source.url, cadence=step, tolerance=timedelta(seconds=59))
    archive, product = ArchiveSettings(url=url), ProductSettings(url="unused")
    return Domain(name="bench", feed=settings, region=RegionSettings(), archive=archive, product=product)


def _floor(feed: Feed, items: list[FrameObject]) -> None:
    def work(item: FrameObject) -> None:
        for frame in feed.decode(feed.read(item), item.key):
            pack_frame(frame, feed.packing)

    if len(items) == 1:
        work(items[0])
        return
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, items))


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _compare(
    label: str, feed: Feed, items: list[FrameObject], step: timedelta, folder: Path, repeats: int
) -> dict[str, object]:
    """Median seconds of both, taken in turn, of `items` but the first: that one makes the archive."""
    first, rest = items[0], items[1:]
    floors, ingests, ratios, creations = [], [], [], []
    for number in range(repeats):
        domain = _domain(feed, step, str(folder / f"{label.split(',')[0]}-{len(items)}-{number}"))

        def fill(start: datetime, end: datetime, domain: Domain = domain) -> None:
            ingest(feed, domain, start, end, NOW, backfill=True)

        creations.append(_timed(lambda: fill(first.time, first.time)))
        floors.append(_timed(lambda: _floor(feed, rest)))
        ingests.append(_timed(lambda: fill(rest[0].time, rest[-1].time)))
        ratios.append(floors[-1] / ingests[-1])
        assert Archive.open(domain.archive.url, {}).present(first.time, items[-1].time)[0].all()
    return {
        "bench": "ingest",
        "feed": label,
        "frames": len(rest),
        "floor_frames_per_s": round(len(rest) / median(floors), 2),
        "ingest_frames_per_s": round(len(rest) / median(ingests), 2),
        "of_floor": round(median(ratios), 2),
        "over_floor_ms": round(1000 * (median(ingests) - median(floors)), 1),
        "first_frame_and_new_archive_ms": round(1000 * median(creations), 1),
        "target": TARGET,
        "repeats": repeats,
    }


def main(out: Path, quick: bool = False) -> list[dict[str, object]]:
    """Measure, write the rows to `out` as JSON and return them."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="squall-bench-") as folder:
        for kind in ("mrms", "fmi"):
            found = _inputs(kind, Path(folder) / "simulated")
            if found is None:
                continue
            label, feed, start, end, step = found
            items = feed.list(start, end)
            _floor(feed, items[:1])  # imports and grid caches are warm for both
            for some in (items[:2], items):
                repeats = 3 if quick else 15 if len(some) == 2 else 7
                rows.append(_compare(label, feed, some, step, Path(folder), repeats))
                print(json.dumps(rows[-1]), flush=True)
    out.write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--quick" in sys.argv)
