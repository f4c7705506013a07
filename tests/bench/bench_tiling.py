"""Time and memory of a network on grids far larger than it was trained on, up to MRMS's 3500 x 7000 cells.

    python tests/bench/bench_tiling.py out.json [--quick | --full]

Each area runs in a process of its own: 13 simulated frames, one forecast of all lead times. Memory is the process's
peak, interpreter, context and forecast included. Target: all of MRMS in at most 12 GB, time linear in the area; growth
is judged by processor time, which other load disturbs least. Random weights: they change nothing of this. --full
measures the whole grid too (many minutes on two cores); without it, it is extrapolated from the largest area.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MRMS, LIMIT_GB = (3500, 7000), 12.0
AREAS = ((437, 875), (875, 1750), (1750, 3500))
PRESETS = {"earthformer/small-64": AREAS, "earthformer/sevir": ((384, 384), (672, 672), (960, 1248))}


def main(out: Path, *, quick: bool = False, full: bool = False) -> dict[str, Any]:
    """Measure every area, write the rows to `out` as JSON and return them."""
    rows = []
    for preset, areas in PRESETS.items():
        chosen = areas[:2] if quick else areas
        whole = (MRMS,) if full and preset == "earthformer/small-64" else ()
        rows += [_in_own_process(preset, area) for area in (*chosen, *whole)]
    found: dict[str, Any] = {"rows": rows, **{preset: _growth(rows, preset) for preset in PRESETS}}
    out.write_text(json.dumps(found, indent=1))
    return found


def _in_own_process(preset: str, area: tuple[int, int]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", preset, *map(str, area)]
    row: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return row


def _growth(rows: list[dict[str, Any]], preset: str) -> dict[str, float]:
    """Seconds per million cells, how far from proportional they are, and what MRMS takes at the largest area's rate."""
    mine = [row for row in rows if row["preset"] == preset]
    cells, spent = (np.array([row[name] for row in mine]) for name in ("cells", "processor_seconds"))
    last, share = mine[-1], MRMS[0] * MRMS[1] / cells[-1]
    return {
        "growth_exponent": round(float(np.polyfit(np.log(cells), np.log(spent), 1)[0]), 3),
        "processor_seconds_per_tile": round(last["processor_seconds"] / last["tiles"], 4),
        "mrms_processor_seconds": round(float(spent[-1] * share), 1),
        "mrms_seconds": round(float(last["seconds"] * share), 1),
        "mrms_peak_gb": round(_mrms_peak(mine), 2),
    }


def _mrms_peak(rows: list[dict[str, Any]]) -> float:
    """Peak on all of MRMS, on the line through the two largest areas; at least what its fields alone add."""
    before, last = rows[-2:]
    per_cell = max((last["peak_gb"] - before["peak_gb"]) / (last["cells"] - before["cells"]), 4e-9 * last["frames"])
    return float(last["peak_gb"] + (MRMS[0] * MRMS[1] - last["cells"]) * per_cell)


def measure(preset: str, area: tuple[int, int]) -> dict[str, Any]:
    """One forecast of `area` (y, x) in this process."""
    import torch

    from models.configuration import build_network
    from models.earthformer.presets import preset_config
    from models.forecaster import NetworkForecaster
    from models.tiling import tile_starts

    torch.manual_seed(0)
    config = preset_config(preset)
    forecaster = NetworkForecaster(config, build_network(config))
    forecaster.forecast(_rain(config.t_in, config.patch), config.t_out)  # what is done once is not the area's
    context, overlap = _rain(config.t_in, area), min(config.patch) // 4
    began, spent = time.perf_counter(), time.process_time()
    forecast = forecaster.forecast(context, config.t_out)
    seconds, processor = time.perf_counter() - began, time.process_time() - spent
    assert np.isfinite(forecast).all()
    assert forecast.shape == (1, config.t_out, *area)
    frames = config.frames_in + config.t_out  # float32 fields of the whole grid that are alive at once
    return {
        "preset": preset,
        "area": list(area),
        "cells": area[0] * area[1],
        "tiles": int(np.prod([len(tile_starts(n, p, overlap)) for n, p in zip(area, config.patch, strict=True)])),
        "frames": frames,
        "seconds": round(seconds, 3),
        "processor_seconds": round(processor, 3),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "threads": torch.get_num_threads(),
    }


def _rain(frames: int, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(frame, y, x) drifting over all of the grid: one field of 512 x 512 cells, repeated."""
    random = np.random.default_rng(0)
    spectrum = np.fft.rfft2(random.standard_normal((512, 512)))
    ky, kx = np.fft.fftfreq(512)[:, None], np.fft.rfftfreq(512)[None]
    field = np.fft.irfft2(spectrum * (np.hypot(ky, kx) + 0.004) ** -2.0)
    rain = np.clip(np.exp((field - np.quantile(field, 0.7)) / field.std()) - 1, 0, None).astype(np.float32)
    out = np.empty((frames, *shape), np.float32)
    rows, columns = np.arange(shape[0]) % 512, np.arange(shape[1])
    for frame in range(frames):
        out[frame] = rain[rows[:, None], (columns - 2 * frame) % 512]
    return out


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        sys.stdout.write(json.dumps(measure(sys.argv[2], (int(sys.argv[3]), int(sys.argv[4])))))
    else:
        main(Path(sys.argv[1]), quick="--quick" in sys.argv, full="--full" in sys.argv)
