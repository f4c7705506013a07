"""Forecasters side by side on the same held-out windows and the same cells: counts per window, for a paired verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.forecaster import Forecaster
from tasks.training.sample_set import SampleSet
from tasks.training.samples import Window
from tasks.verification.scores import Contingency, Errors, WindowCounts, contingency, errors, stack_windows

Fields = NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """Several forecasters on the same windows.

    Attributes:
        counts: Contingency counts per window, lead and threshold, by forecaster.
        deviations: Sums of errors per lead over all windows, by forecaster.
        wet_deviations: The same over the wet windows only; absent where no window is wet.
    """

    counts: dict[str, WindowCounts]
    deviations: dict[str, Errors]
    wet_deviations: dict[str, Errors]


def evaluate(
    forecasters: Mapping[str, Forecaster],
    samples: SampleSet,
    *,
    split: str,
    thresholds: Sequence[float],
    limit: int | None = None,
    wet: bool = False,
) -> Evaluation:
    """Forecast the held-out windows of a split with every forecaster and count.

    A cell counts only where it was observed and every forecaster gave a value, so that all are judged on the same
    cells (extrapolation has none where air flows in from outside).

    Args:
        forecasters: By name.
        samples: Windows.
        split: val or test.
        thresholds: In the quantity's units, ascending.
        limit: At most so many windows, evenly thinned over the split.
        wet: Wet windows only.

    Raises:
        ValueError: the split has no window, or no forecaster was given.
    """
    windows = samples.held_out(split, limit, wet=wet)
    if not windows or not forecasters:
        raise ValueError(f"expected windows in {split!r} and a forecaster; got {len(windows)} and {len(forecasters)}")
    reader = samples.reader()
    tables: dict[str, list[Contingency]] = {name: [] for name in forecasters}
    sums: dict[str, list[Errors]] = {name: [] for name in forecasters}
    for window in windows:
        fields = reader.read([window])[0]
        observed = fields[samples.t_in :]
        forecasts = forecast_all(forecasters, fields[: samples.t_in], len(observed))
        known = np.logical_and.reduce([np.isfinite(field) for field in forecasts.values()])
        for name, field in forecasts.items():
            judged = np.where(known, field, np.float32(np.nan))
            tables[name].append(contingency(judged, observed, thresholds))
            sums[name].append(errors(judged, observed))
    return _collect(tables, sums, samples, windows)


def forecast_all(forecasters: Mapping[str, Forecaster], context: Fields, leads: int) -> dict[str, Fields]:
    """First members (lead, y, x) of every forecaster's forecast of `leads` steps from `context` (t_in, y, x)."""
    return {
        name: forecaster.forecast(context[-forecaster.t_in :], leads)[0] for name, forecaster in forecasters.items()
    }


def _collect(
    tables: Mapping[str, list[Contingency]],
    sums: Mapping[str, list[Errors]],
    samples: SampleSet,
    windows: Sequence[Window],
) -> Evaluation:
    minutes = [(lead + 1) * samples.info.cadence_s / 60 for lead in range(samples.t_out)]
    inits = np.array([samples.init_time(window) for window in windows], "datetime64[ns]")
    events = [samples.event(window) for window in windows]
    counts = {name: stack_windows(found, minutes, inits, events) for name, found in tables.items()}
    wet = next(iter(counts.values())).wet
    return Evaluation(
        counts,
        {name: _add(found) for name, found in sums.items()},
        {name: _add([part for part, is_wet in zip(found, wet, strict=True) if is_wet]) for name, found in sums.items()}
        if wet.any()
        else {},
    )


def _add(parts: Sequence[Errors]) -> Errors:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
