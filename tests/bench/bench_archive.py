"""Milliseconds per archive cycle (one frame into its slot, committed) at 100 to 100,000 filled slots, local and S3.

python tests/bench/bench_archive.py out.json [--quick]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import numpy as np
import pyproj

from tasks.archive.archive import Archive, ArchiveSpec, Received
from tasks.archive.packing import Grid, PackedFrame, compress
from tasks.feeds import Packing
from tasks.grid import grid_coordinates

START = datetime(2026, 1, 1, tzinfo=UTC)
STEP = timedelta(minutes=5)
SHAPE = (1226, 760)
PACKING = Packing("uint8", 0.5, 0.0, 255)
CYCLES, BATCH, FILLED = 13, 2016, (100, 1_000, 10_000, 100_000)
TARGET_MS = {"local": 30.0, "s3": 100.0}


def _grid() -> Grid:
    crs = pyproj.CRS.from_epsg(3035)
    found = grid_coordinates(crs, 4e6 + 1e3 * np.arange(SHAPE[1]), 3e6 - 1e3 * np.arange(SHAPE[0]))
    return Grid(*(found[axis].values for axis in ("y", "x")), found["spatial_ref"].attrs)


def _chunks(seed: int) -> tuple[bytes, list[bytes]]:
    """A frame of a fifth wet cells (about 130 KiB compressed) and small ones, too big to be inlined, for filling."""
    random = np.random.default_rng(seed)
    wet = np.zeros(SHAPE, np.uint8)
    smooth = np.repeat(np.repeat(random.random((SHAPE[0] // 8 + 1, SHAPE[1] // 8 + 1)), 8, 0), 8, 1)
    inside = smooth[: SHAPE[0], : SHAPE[1]] > 0.8
    wet[inside] = random.integers(1, 90, int(inside.sum())) // 8
    small = []
    for _ in range(32):
        dry = np.zeros(SHAPE, np.uint8)
        dry[0, :700] = random.integers(1, 250, 700)
        small.append(compress(dry))
    return compress(wet), small


def _received(slot: int, chunk: bytes, grid: Grid) -> Received:
    frame = PackedFrame("rainfall_rate", START + slot * STEP, grid, PACKING, chunk, {"units": "mm h-1"})
    content = slot.to_bytes(8, "little") * 4
    return Received(frame, f"2026/{slot:08d}.pgm.gz", f"etag-{slot}", content, None)


def _cycles(archive: Archive, first: int, chunk: bytes, grid: Grid) -> tuple[list[float], list[float]]:
    """Milliseconds of cycles on the open archive, and of opening it afresh with one cycle."""
    warm, fresh = [], []
    for slot in range(first, first + CYCLES):
        began = time.perf_counter()
        archive.write([_received(slot, chunk, grid)])
        warm.append(1e3 * (time.perf_counter() - began))
    for slot in range(first + CYCLES, first + CYCLES + 5):
        began = time.perf_counter()
        Archive.open(archive.url, archive.storage).write([_received(slot, chunk, grid)])
        fresh.append(1e3 * (time.perf_counter() - began))
    return warm, fresh


def _measure(store: str, url: str, storage: dict[str, object], sizes: tuple[int, ...]) -> list[dict[str, object]]:
    grid, (chunk, small) = _grid(), _chunks(3)
    spec = ArchiveSpec(
        "bench", "test", "rainfall_rate", STEP, timedelta(seconds=90), START, PACKING, grid.y, grid.x, grid.mapping,
        {}, {}, "CC-BY-4.0", None, timedelta(hours=1), {"units": "mm h-1"},
    )  # fmt: skip
    archive = Archive.create(url, storage, spec)
    rows, filled = [], 0
    for size in sizes:
        while filled < size:
            stop = min(filled + BATCH, size)
            archive.write([_received(slot, small[slot % len(small)], grid) for slot in range(filled, stop)])
            filled = stop
        warm, fresh = _cycles(archive, filled, chunk, grid)
        filled += CYCLES + len(fresh)
        end = START + filled * STEP
        began = time.perf_counter()
        archive.latest()
        latest = 1e3 * (time.perf_counter() - began)
        began = time.perf_counter()
        archive.read(end - CYCLES * STEP, end - STEP)
        read = 1e3 * (time.perf_counter() - began)
        rows.append(
            {
                "bench": "archive cycle",
                "store": store,
                "filled": size,
                "median_ms": round(median(warm), 1),
                "worst_ms": round(max(warm), 1),
                "fresh_median_ms": round(median(fresh), 1),
                "latest_ms": round(latest, 1),
                "read_last_13_ms": round(read, 1),
                "chunk_kib": round(len(chunk) / 1024),
                "target_ms": TARGET_MS[store],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main(out: Path, quick: bool = False) -> list[dict[str, object]]:
    """Measure, write the rows to `out` as JSON and return them."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from builders.weed import BUCKET, start_weed, stop_weed, storage_options

    sizes = FILLED[:2] if quick else FILLED
    with tempfile.TemporaryDirectory(prefix="squall-bench-") as folder:
        rows = _measure("local", f"{folder}/archive", {}, sizes)
        endpoint, key, secret, process = start_weed(Path(folder))
        try:
            rows += _measure("s3", f"s3://{BUCKET}/archive", storage_options(endpoint, key, secret), sizes)
        finally:
            stop_weed(process)
    out.write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--quick" in sys.argv)
