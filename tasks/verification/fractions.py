"""Fractions skill score: sums per lead, neighbourhood and threshold that add up over products.

Whatever is not observed, inside the domain or beyond its border, holds no event for the forecast nor for the
observation; a window counts with the square of its coverage. With full coverage this is the usual score with zero
padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from tasks.verification.scores import Field, Sums, ascending, ratio


@dataclass(frozen=True)
class Fractions:
    """Sums of the fractions Brier score and its worst case in squared cells: whole numbers, exact in float64.

    Attributes:
        error: Sum over cells of (forecast - observed events in the window) squared, (lead, neighbourhood, threshold).
        reference: Sum over cells of both numbers of events squared, same dims.
        neighbourhoods_km: Nominal window widths [km].
        cells: Window widths in cells, odd, one per neighbourhood.
        thresholds: In the fields' units, ascending.

    References:
        Roberts & Lean (2008), doi:10.1175/2007MWR2123.1.
    """

    error: Sums
    reference: Sums
    neighbourhoods_km: tuple[float, ...]
    cells: tuple[int, ...]
    thresholds: tuple[float, ...]

    def __add__(self, other: Fractions) -> Fractions:
        ours, theirs = ((it.neighbourhoods_km, it.cells, it.thresholds) for it in (self, other))
        if ours != theirs:
            raise ValueError(f"expected neighbourhoods, cells and thresholds {ours} on both sides; got {theirs}")
        return Fractions(self.error + other.error, self.reference + other.reference, *ours)

    @property
    def fss(self) -> Sums:
        """1 - error / reference, 0..1; NaN where no event was forecast or observed."""
        return 1.0 - ratio(self.error, self.reference)


def window_cells(neighbourhood_km: float, cell_size_m: float) -> int:
    """The odd number of cells nearest to a window of `neighbourhood_km` [km], at least 1."""
    return max(1, 2 * round((neighbourhood_km * 1000 / cell_size_m - 1) / 2) + 1)


def fractions(
    forecast: Field,
    observed: Field,
    thresholds: Sequence[float],
    neighbourhoods_km: Sequence[float],
    cell_size_m: float,
) -> Fractions:
    """Sums for the fractions skill score of (lead, y, x) fields.

    Args:
        forecast: (lead, y, x) in physical units; NaN = not forecast.
        observed: Same shape and units; NaN = not observed. A cell with either NaN holds no event and is left out.
        thresholds: Ascending, same units; an event is value >= threshold.
        neighbourhoods_km: Window widths [km].
        cell_size_m: Cell size [m].

    Raises:
        ValueError: shapes differ, or thresholds are not strictly ascending.
    """
    if forecast.shape != observed.shape or forecast.ndim != 3:
        raise ValueError(f"expected two (lead, y, x) fields of one shape; got {forecast.shape} and {observed.shape}")
    levels = ascending(thresholds)
    widths = tuple(window_cells(width, cell_size_m) for width in neighbourhoods_km)
    leads = [_sum_field(ours, theirs, widths, levels) for ours, theirs in zip(forecast, observed, strict=True)]
    sums = np.array(leads, dtype=np.float64).reshape(len(forecast), len(widths), len(levels), 2)
    return Fractions(sums[..., 0], sums[..., 1], tuple(float(km) for km in neighbourhoods_km), widths, levels)


def _sum_field(
    forecast: Field, observed: Field, widths: tuple[int, ...], levels: tuple[float, ...]
) -> list[tuple[float, float]]:
    known = ~(np.isnan(forecast) | np.isnan(observed))
    events = {
        level: (((forecast >= level) & known).view(np.uint8), ((observed >= level) & known).view(np.uint8))
        for level in levels
    }
    weight = known.astype(np.float32)
    return [_sum_windows(*events[level], weight, width) for width, level in product(widths, levels)]


def _sum_windows(
    forecast: npt.NDArray[np.uint8], observed: npt.NDArray[np.uint8], weight: npt.NDArray[np.float32], width: int
) -> tuple[float, float]:
    """Error and reference of one field; all sums are of whole numbers below 2^53, so nothing is rounded.

    The weight is 1 on known cells and 0 elsewhere: multiplying takes a fraction of the time of picking.
    """
    if width == 1:  # a window of one cell counts that cell; there is no event in an unknown one
        events = np.count_nonzero(forecast) + np.count_nonzero(observed)
        return float(np.count_nonzero(forecast != observed)), float(events)
    ours, theirs = (_window_counts(event, width) for event in (forecast, observed))
    ours *= weight
    theirs *= weight
    reference = _dot(ours, ours) + _dot(theirs, theirs)
    return reference - 2 * _dot(ours, theirs), reference


def _dot(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Their product summed in float64: with einsum, as a threaded BLAS slows 20 times once cores are contended."""
    return float(np.einsum("i,i", one.ravel(), other.ravel(), dtype=np.float64))


def _window_counts(event: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.float32]:
    import cv2

    size = (width, width)
    counts = cv2.boxFilter(event, cv2.CV_32F, size, normalize=False, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(counts, np.float32)
