"""Figures of ensembles for people: rank histogram, spectra, reliability, and members beside mean and probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tasks.verification.ensemble_reliability import Reliability
from tasks.verification.ensemble_spectrum import Spectra
from tasks.verification.figures import LEVELS, NOT_OBSERVED, UNITS, field_colours
from tasks.verification.scores import Sums

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Fields = NDArray[np.float32]
_PANEL = 3.2
_LEAST_SHOWN = 20  # forecasts of a probability; fewer are a coin toss and not a frequency


def rank_histograms(shares: Mapping[str, Sums]) -> Figure:
    """One panel per forecaster: share of cells (M + 1,) at each rank of the observation; dashed is reliable."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PANEL * len(shares), _PANEL), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(shares), sharey=True))
    for panel, (name, share) in zip(panels, shares.items(), strict=True):
        panel.bar(np.arange(len(share)), share, width=0.9, color="tab:blue")
        panel.axhline(1 / len(share), color="black", linestyle="--", linewidth=1)
        panel.set(title=name, xlabel="members below the observation")
    panels[0].set_ylabel("share of wet cells")
    return figure


def spectrum_curves(
    found: Mapping[str, Spectra], leads: Sequence[int], lead_minutes: Sequence[float], cell_size_m: float
) -> Figure:
    """One panel per lead: observed power (black), members (solid) and ensemble means (dotted) over wavelength.

    The shaded decade is what `Spectra.power_ratio` looks at.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PANEL * 1.3 * len(leads), _PANEL * 1.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(leads), sharey=True))
    for panel, lead in zip(panels, leads, strict=True):
        for colour, (name, one) in enumerate(found.items()):
            kilometres = cell_size_m / 1000 / np.array(one.frequencies[1:])
            count = max(int(one.count[lead]), 1)
            if colour == 0:
                panel.loglog(kilometres, one.observed[lead, 1:] / count, "k", linewidth=2, label="observed")
                band = kilometres[one.shortest_decade() - 1]
                panel.axvspan(band.min(), band.max(), color="0.93", zorder=0)
            panel.loglog(kilometres, one.members[lead, 1:] / count, f"C{colour}", label=name)
            panel.loglog(kilometres, one.mean[lead, 1:] / count, f"C{colour}:")
        panel.invert_xaxis()
        panel.set(title=f"+{lead_minutes[lead]:g} min", xlabel="wavelength [km]")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("power (dotted: ensemble mean)")
    panels[0].legend(fontsize=7)
    return figure


def reliability_curves(tables: Mapping[str, Reliability], quantity: str) -> Figure:
    """One panel per threshold: observed frequency over forecast probability, all leads; the diagonal is reliable.

    A probability forecast fewer than 20 times is not drawn.
    """
    from matplotlib.figure import Figure

    thresholds = next(iter(tables.values())).thresholds
    figure = Figure(figsize=(_PANEL * len(thresholds), _PANEL + 0.3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(thresholds), sharey=True))
    for column, (panel, threshold) in enumerate(zip(panels, thresholds, strict=True)):
        panel.plot([0, 1], [0, 1], "k--", linewidth=1)
        for name, table in tables.items():
            pooled = table.over_leads()
            seen = pooled.forecasts[0, column] >= _LEAST_SHOWN
            curve = np.where(seen, pooled.frequencies[0, column], np.nan)
            score = pooled.brier_skill()[0, column]
            panel.plot(pooled.probabilities, curve, marker="o", markersize=3, label=f"{name} (BSS {score:.2f})")
        panel.set(title=f"≥ {threshold:g} {UNITS.get(quantity, '')}", xlabel="forecast probability", xlim=(0, 1))
        panel.set_ylim(0, 1)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("observed frequency")
    return figure


def ensemble_picture(
    observed: Fields, forecast: Fields, threshold: float, titles: Sequence[str], quantity: str, *, members: int = 3
) -> Figure:
    """Rows: observation, ensemble mean, some members, probability of reaching `threshold`; columns: times.

    Args:
        observed: (time, y, x) in the quantity's units; NaN = not observed, grey.
        forecast: (member, time, y, x), same units; NaN = not forecast, grey.
        threshold: Of the probability, same units.
        titles: Of the columns.
        quantity: For colours and units.
        members: How many members are shown.
    """
    from matplotlib.figure import Figure

    known = np.isfinite(forecast).all(axis=0)
    probability = np.where(known, (forecast >= threshold).mean(axis=0), np.nan)
    shown = {f"member {number + 1}": member for number, member in enumerate(forecast[:members])}
    rows = {"observed": observed, "mean": forecast.mean(axis=0), **shown, f"P(≥ {threshold:g})": probability}
    figure = Figure(figsize=(1.7 * len(titles) + 1.2, 1.7 * len(rows) + 0.4), layout="compressed")
    panels = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, (name, fields) in zip(panels, rows.items(), strict=True):
        image = [
            _draw(panel, field, quantity, name.startswith("P(")) for panel, field in zip(line, fields, strict=True)
        ]
        line[0].set_ylabel(name, fontsize=8)
        if name in ("observed", list(rows)[-1]):
            label = "probability" if name.startswith("P(") else UNITS.get(quantity, "")
            figure.colorbar(image[0], ax=line.tolist() if name.startswith("P(") else panels[:-1], label=label)
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, fontsize=8)
    return figure


def _draw(panel: Axes, field: Fields, quantity: str, probability: bool):  # type: ignore[no-untyped-def]
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, Normalize

    panel.set(xticks=[], yticks=[])
    values = np.ma.masked_invalid(field)
    if probability:
        colours = colormaps["viridis"].with_extremes(bad=NOT_OBSERVED)
        return panel.imshow(values, cmap=colours, norm=Normalize(0, 1), interpolation="nearest")
    levels = LEVELS.get(quantity, LEVELS["vil"])
    colours = field_colours(len(levels))
    norm = BoundaryNorm(levels, colours.N, extend="max")
    return panel.imshow(values, cmap=colours, norm=norm, interpolation="nearest")
