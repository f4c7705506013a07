"""Samples per second of the training loader against plain xarray, cold and warm, on the same files in one run.

Target: at least 3 times xarray cold, 10 times with a warm cache of decoded chunks. Cold evicts the files from the
page cache first (where the system lets an ordinary process do that) and opens the store anew.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import xarray as xr

from tasks.feeds import Packing
from tasks.training.data import FrameBatch, TrainingDataInfo, write_training_data
from tasks.training.loading import WindowReader
from tasks.training.samples import SampleSource, SampleSpec, Window

BATCH, CROP = 16, 128


def main(out: Path, quick: bool = False) -> dict[str, float]:
    """Measure, write them to `out` as JSON and return the figures."""
    frames, shape, rounds = (288, (256, 256), 3) if quick else (864, (640, 710), 5)
    with tempfile.TemporaryDirectory() as scratch:
        samples = _samples(Path(scratch) / "training", frames, shape)
        figures = _measure(samples, rounds, batches=4 if quick else 12)
    out.write_text(json.dumps(figures, indent=2))
    return figures


def _measure(samples: SampleSource, rounds: int, batches: int) -> dict[str, float]:
    plans = [samples.draw(0, step, BATCH) for step in range(batches)]
    rates: dict[str, list[float]] = {name: [] for name in ("loader_cold", "xarray_cold", "loader_warm", "xarray_warm")}
    for _ in range(rounds):  # interleaved: whatever else the machine does meets both
        loader, plain = WindowReader(samples), _Plain(samples)
        for name, read in (("loader", loader.read), ("xarray", plain.read)):
            _evict(samples.data.folder)
            rates[f"{name}_cold"].append(_rate(read, plans))
        for name, read in (("loader", loader.read), ("xarray", plain.read)):
            rates[f"{name}_warm"].append(_rate(read, plans))
    for one, other in zip(loader.read(plans[0]), plain.read(plans[0]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    figures = {f"{name}_samples_per_second": statistics.median(values) for name, values in rates.items()}
    for state in ("cold", "warm"):
        ratios = [a / b for a, b in zip(rates[f"loader_{state}"], rates[f"xarray_{state}"], strict=True)]
        figures[f"{state}_ratio"] = statistics.median(ratios)
    return figures


class _Plain:
    """What one would write without thinking: open_zarr and isel, one sample at a time."""

    def __init__(self, samples: SampleSource) -> None:
        self.samples = samples
        self.frames = xr.open_zarr(samples.data.folder, consolidated=False, chunks=None)["codes"]

    def read(self, windows: list[Window]) -> np.ndarray:
        length, (rows, columns) = self.samples.spec.length, self.samples.size
        return np.stack(
            [
                self.frames.isel(
                    frame=slice(w.frame, w.frame + length), y=slice(w.y, w.y + rows), x=slice(w.x, w.x + columns)
                ).values
                for w in windows
            ]
        ).astype(np.float32)


def _rate(read: Callable[[list[Window]], object], plans: list[list[Window]]) -> float:
    started = time.perf_counter()
    for plan in plans:
        read(plan)
    return len(plans) * BATCH / (time.perf_counter() - started)


def _evict(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def _samples(folder: Path, frames: int, shape: tuple[int, int]) -> SampleSource:
    info = TrainingDataInfo(
        domain="bench",
        archive_snapshot="BENCH",
        quantity="rainfall_rate",
        cadence_s=300,
        epoch="2026-01-01T00:00:00+00:00",
        cell_size_m=1000.0,
        packing=Packing("uint16", 0.05, 0.0, 65535),
        no_echo=None,
        wet_threshold=0.5,
        shape=shape,
    )
    data = write_training_data(_rain(frames, shape), info, folder)
    return SampleSource(data, SampleSpec(crop=CROP, event_limit=timedelta(hours=4)))


def _rain(frames: int, shape: tuple[int, int]) -> Iterator[FrameBatch]:
    """A drifting field of which a fifth is wet, as radar composites of a rainy day are."""
    random = np.random.default_rng(0)
    spectrum = np.fft.rfft2(random.standard_normal(shape))
    ky, kx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    spectrum *= (np.hypot(ky, kx) + 2 / max(shape)) ** -2.0
    field = np.fft.irfft2(spectrum, shape)
    rain = np.clip(np.exp((field - np.quantile(field, 0.8)) / field.std()) - 1, 0, None)
    for start in range(0, frames, 36):
        moved = [np.roll(rain, (frame // 2, frame), (0, 1)) for frame in range(start, min(start + 36, frames))]
        values = np.round(np.stack(moved) / 0.05).astype(np.float32) * np.float32(0.05)
        yield FrameBatch(np.arange(start, start + len(moved)), values)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--quick" in sys.argv)
