"""Semi-Lagrangian extrapolation along optical flow: the newest frame moved on, without growth or decay.

Germann and Zawadzki (2002), doi:10.1175/1520-0493(2002)130<2859:SDOTPO>2.0.CO;2. Members beyond the first perturb the
motion along and across itself after Bowler, Pierce and Seed (2006), doi:10.1256/qj.04.100.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.baselines import check_context, check_request
from models.baselines.motion import Motion, displaced, estimate_motion

Fields = NDArray[np.float32]

# Amplitude a t^b + c [km h-1] of the motion error after t minutes, along and across the motion.
_ALONG = (10.88, 0.23, -7.68)
_ACROSS = (5.76, 0.31, -2.72)


@dataclass(frozen=True)
class Extrapolation:
    """Forecaster that advects the newest frame; keeps the `Forecaster` protocol.

    Attributes:
        quantity: rainfall_rate [mm h-1], equivalent_reflectivity_factor [dBZ] or vil [kg m-2].
        cell_size_m: Side of a cell [m]; sets the smoothing of the motion and the members' spread.
        cadence_s: Step between frames [s].
        smoothing_m: Standard deviation [m] of the Gaussian that spreads tracked vectors.
        family: Name in registries and products.
        t_in: Frames of context, at least two.
        t_out: Most lead times.
    """

    quantity: str = "rainfall_rate"
    cell_size_m: float = 1000.0
    cadence_s: float = 300.0
    smoothing_m: float = 20_000.0
    family: str = "extrapolation"
    t_in: int = 3
    t_out: int = 12

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """The newest frame of `context` (t_in, y, x) advected to (member, lead_time, y, x), same units.

        NaN where the air comes from outside the grid or from cells that the newest frame did not observe.

        Raises:
            ContextTooShort: the newest frame, or all but it, is wholly unobserved.
            ValueError: a context of another shape, more lead times than `t_out`, or no members.
        """
        check_context(context, self.t_in)
        check_request(lead_times, self.t_out, members)
        recent = np.asarray(context, np.float32)
        smoothing = max(self.smoothing_m / self.cell_size_m, 2.0)
        motion = estimate_motion(recent, quantity=self.quantity, smoothing=smoothing)
        forecast = np.empty((members, lead_times, *motion.shape), np.float32)
        draw = np.random.default_rng(seed)
        for member in range(members):
            shift = self._perturbation(motion, lead_times, draw) if member else None
            for lead, displacement in enumerate(motion.trajectories(lead_times, shift=shift)):
                forecast[member, lead] = displaced(recent[-1], displacement)
        return forecast

    def _perturbation(self, motion: Motion, lead_times: int, draw: np.random.Generator) -> Fields:
        """Velocity errors (lead_time, 2, yc, xc) [cells per step] that grow with lead time."""
        along, across = draw.laplace(scale=np.sqrt(0.5), size=2)
        u, v = motion.velocity / np.maximum(np.hypot(*motion.velocity), 1e-6)
        minutes = np.arange(1, lead_times + 1) * self.cadence_s / 60.0
        cells_per_step = 1000.0 / 3600.0 * self.cadence_s / self.cell_size_m
        a, b = (
            (scale * np.power(minutes, power) + offset) * cells_per_step * error
            for (scale, power, offset), error in ((_ALONG, along), (_ACROSS, across))
        )
        a, b = a[:, None, None], b[:, None, None]
        return np.stack([a * u - b * v, a * v + b * u], axis=1).astype(np.float32)


def between(before: Fields, after: Fields, share: float, *, quantity: str, smoothing: float = 20.0) -> Fields:
    """The frame (y, x) at `share` (0..1) of the way from `before` to `after`, each moved there along their motion.

    Weighted by closeness in time where both are known, the known one where only one is, NaN where neither is.

    Raises:
        ContextTooShort: one of the two is wholly unobserved.
    """
    motion = estimate_motion(np.stack([before, after]), quantity=quantity, smoothing=smoothing)
    forwards = displaced(before, next(motion.trajectories(1, share)))
    backwards = displaced(after, next(motion.trajectories(1, share - 1.0)))
    both = (1.0 - share) * forwards + share * backwards
    either = np.where(np.isfinite(forwards), forwards, backwards)
    return np.where(np.isfinite(both), both, either).astype(np.float32)
