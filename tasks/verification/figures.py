"""Figures of a training for people: scores by lead time, and forecasts beside what then was observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tasks.verification.scores import Contingency

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Fields = NDArray[np.float32]
UNITS = {"rainfall_rate": "mm h-1", "equivalent_reflectivity_factor": "dBZ", "vil": "kg m-2"}
# Lower edge of each colour; below the first a cell is drawn as dry.
LEVELS = {
    "rainfall_rate": (0.1, 0.5, 1, 2, 5, 10, 20, 50),
    "equivalent_reflectivity_factor": (5, 10, 15, 20, 25, 30, 35, 40, 45, 50),
    "vil": (0.1, 0.7, 3, 7, 12, 18, 26),
}
NOT_OBSERVED, DRY = "0.75", "white"


def score_curves(counts: Mapping[str, Contingency], score: str, lead_minutes: Sequence[float], quantity: str) -> Figure:
    """One panel per threshold, one curve per forecaster, over lead time.

    Args:
        counts: Contingency (lead, threshold) by forecaster.
        score: csi, pod, far or bias.
        lead_minutes: Of each lead.
        quantity: For the units.
    """
    from matplotlib.figure import Figure

    thresholds = next(iter(counts.values())).thresholds
    figure = Figure(figsize=(3.2 * len(thresholds), 3.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(thresholds), sharey=True))
    for column, (panel, threshold) in enumerate(zip(panels, thresholds, strict=True)):
        for name, table in counts.items():
            panel.plot(lead_minutes, getattr(table, score)[:, column], marker="o", markersize=3, label=name)
        panel.set_title(f"≥ {threshold:g} {UNITS.get(quantity, '')}")
        panel.set_xlabel("lead time [min]")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(score.upper())
    panels[0].legend()
    return figure


def error_curves(
    values: Mapping[str, NDArray[np.float64]], lead_minutes: Sequence[float], quantity: str, label: str | None = None
) -> Figure:
    """A score over lead time, one curve per forecaster: the mean squared error unless labelled otherwise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3.2), layout="constrained")
    panel = figure.subplots()
    for name, curve in values.items():
        panel.plot(lead_minutes, curve, marker="o", markersize=3, label=name)
    panel.set_xlabel("lead time [min]")
    panel.set_ylabel(label or f"MSE [({UNITS.get(quantity, '')})²]")
    panel.grid(alpha=0.3)
    panel.legend()
    return figure


def side_by_side(observed: Fields, forecasts: Mapping[str, Fields], titles: Sequence[str], quantity: str) -> Figure:
    """Rows: observation, then each forecast; columns: times; one colour scale; grey = not observed or not forecast.

    Args:
        observed: (time, y, x) in the quantity's units; NaN = not observed.
        forecasts: Same dims, by forecaster.
        titles: Of the columns.
        quantity: For colours and units.
    """
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure

    rows = {"observed": observed, **forecasts}
    size = 1.7
    figure = Figure(figsize=(size * len(titles) + 1.2, size * len(rows) + 0.4), layout="constrained")
    panels = figure.subplots(len(rows), len(titles), squeeze=False)
    levels = LEVELS.get(quantity, LEVELS["vil"])
    colours = field_colours(len(levels))
    norm = BoundaryNorm(levels, colours.N, extend="max")
    for line, (name, fields) in zip(panels, rows.items(), strict=True):
        for panel, field, title in zip(line, fields, titles, strict=True):
            image = panel.imshow(np.ma.masked_invalid(field), cmap=colours, norm=norm, interpolation="nearest")
            panel.set(xticks=[], yticks=[])
            if name == "observed":
                panel.set_title(title, fontsize=8)
        line[0].set_ylabel(name, fontsize=8)
    figure.colorbar(image, ax=panels, label=UNITS.get(quantity, ""), shrink=0.8)
    return figure


def field_colours(count: int):  # type: ignore[no-untyped-def]
    """Colour map of so many levels: white below the first, grey where not observed."""
    from matplotlib import colormaps

    colours = colormaps["turbo"].resampled(count).with_extremes(under=DRY, bad=NOT_OBSERVED)
    return colours
