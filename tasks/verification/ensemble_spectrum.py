"""Radially averaged power spectra of members, ensemble mean and observation: whether small scales are as lively.

Power is that of a logarithmic field (dBZ, or what a model's transform gives), whose spectrum is close to a power law:
Harris et al. (2001), doi:10.1175/1525-7541(2001)002<0406:MSPOAH>2.0.CO;2. The spectra are those of `pysteps`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasks.verification.ensemble_scores import Ensemble, known_cells
from tasks.verification.scores import Counts, Sums, ratio

# Below this share of known cells the shape of the hole and not the rain would set the spectrum.
LEAST_KNOWN = 0.5
DECADE = 10.0


@dataclass(frozen=True)
class Spectra:
    """Sums of power over windows, per lead and radial wavenumber.

    Attributes:
        count: Windows, int64 (lead,); those known on less than half of the grid are not among them.
        members: Power of a member, mean over members, summed over windows, float64 (lead, wavenumber).
        mean: Power of the ensemble mean.
        observed: Power of the observation on the same cells.
        frequencies: Radial frequency of each wavenumber [cycles per cell], from 0.
    """

    count: Counts
    members: Sums
    mean: Sums
    observed: Sums
    frequencies: tuple[float, ...]

    def __add__(self, other: Spectra) -> Spectra:
        if self.frequencies != other.frequencies:
            raise ValueError("expected spectra of the same grid size on both sides")
        return Spectra(
            self.count + other.count,
            self.members + other.members,
            self.mean + other.mean,
            self.observed + other.observed,
            self.frequencies,
        )

    def shortest_decade(self) -> Counts:
        """Indexes of the resolved wavelengths within a factor ten of the shortest (two cells), never the mean."""
        frequencies = np.array(self.frequencies)
        chosen = (frequencies > 0) & (frequencies >= frequencies[-1] / DECADE)
        return np.flatnonzero(chosen).astype(np.int64)

    def power_ratio(self, *, mean: bool = False) -> float:
        """Forecast over observed power in the shortest decade, all leads: geometric mean over wavenumbers.

        1 is as lively as observed, 0.1 a blur. The geometric mean gives each wavenumber one vote; a plain sum would be
        that of the longest waves of the decade alone. NaN where the observation has no power there.
        """
        band = self.shortest_decade()
        forecast, observed = ((self.mean if mean else self.members), self.observed)
        ratios = ratio(forecast.sum(axis=0)[band], observed.sum(axis=0)[band])
        with np.errstate(divide="ignore"):
            return float(np.exp(np.log(ratios).mean())) if len(band) else float("nan")

    def band_ratio(self, *, mean: bool = False) -> Sums:
        """Forecast over observed total power of the shortest decade, per lead."""
        band = self.shortest_decade()
        forecast = self.mean if mean else self.members
        return ratio(forecast[:, band].sum(axis=1), self.observed[:, band].sum(axis=1))


def spectra(forecast: Ensemble, observed: Ensemble) -> Spectra:
    """Power spectra of one window.

    Each field is taken about its mean and tapered towards the border (Tukey window), where a field that does not
    continue on the other side would add power that is not the rain's; cells not known are at the mean, in all alike.

    Args:
        forecast: (member, lead, y, x) in a logarithmic unit; NaN = not forecast.
        observed: (lead, y, x), same unit; NaN = not observed.

    Raises:
        ValueError: shapes do not fit.
    """
    known = known_cells(forecast, observed)
    enough = known.mean(axis=(-2, -1)) >= LEAST_KNOWN
    window = _taper(observed.shape[-2:])

    def power(field: Ensemble, lead: int) -> Sums:
        centred = field[lead] - np.average(field[lead][known[lead]], weights=window[known[lead]])
        return _rapsd(window * np.where(known[lead], centred, 0.0))

    nothing = np.zeros_like(_rapsd(window))
    rows: list[tuple[Sums, Sums, Sums]] = []
    average = forecast.mean(axis=0, dtype=np.float64)
    for lead, usable in enumerate(enough):
        if not usable:
            rows.append((nothing, nothing, nothing))
            continue
        members = np.mean([power(member, lead) for member in forecast], axis=0)
        rows.append((members, power(average, lead), power(observed, lead)))
    parts = [np.stack(part) for part in zip(*rows, strict=True)]
    size = max(observed.shape[-2:])
    frequencies = tuple(float(value) for value in np.arange(len(nothing)) / size)
    return Spectra(enough.astype(np.int64), parts[0], parts[1], parts[2], frequencies)


def _taper(shape: tuple[int, ...]) -> Sums:
    from models.baselines.pysteps_quiet import pysteps_module

    window: Sums = pysteps_module("pysteps.utils.tapering").compute_window_function(*shape, "tukey")
    return window


def _rapsd(field: Sums) -> Sums:
    from models.baselines.pysteps_quiet import pysteps_module

    power: Sums = pysteps_module("pysteps.utils.spectral").rapsd(field, fft_method=np.fft)
    return power
