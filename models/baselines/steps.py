"""STEPS: extrapolation of a cascade of scales, each of which fades into noise with the observed structure.

Bowler, Pierce and Seed (2006), doi:10.1256/qj.04.100; Seed, Pierce and Norman (2013), doi:10.1002/wrcr.20536. The
computation is that of pysteps (Pulkkinen et al. 2019, doi:10.5194/gmd-12-4185-2019); the motion is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO

import cv2
import numpy as np
from numpy.typing import NDArray

from models.baselines import check_context, check_request
from models.baselines.extrapolation import Extrapolation
from models.baselines.motion import Motion, estimate_motion
from models.baselines.pysteps_quiet import pysteps_module

Fields = NDArray[np.float32]
Doubles = NDArray[np.float64]

_ORDER = 2  # of the autoregression: three frames
# Below this share of cells with rain a field has no structure that noise could imitate.
_LEAST_RAIN = 0.005
# Decibels between the rain threshold and the value that stands for no rain.
_STEP_DB = 5.0
# Amplitude a t^b + c [km h-1] of the motion error after t minutes for Lucas-Kanade vectors, as fitted by pysteps.
_ALONG = (2.31970635, 0.33734287, -2.64972861)
_ACROSS = (1.90769947, 0.33446594, -2.06603662)


@dataclass(frozen=True)
class Steps:
    """Ensemble forecaster by STEPS; keeps the `Forecaster` protocol.

    Attributes:
        quantity: rainfall_rate [mm h-1], equivalent_reflectivity_factor [dBZ] or vil [kg m-2].
        cell_size_m: Side of a cell [m].
        cadence_s: Step between frames [s].
        threshold: Least rain, in the quantity's units; None takes 0.1 mm h-1, 7 dBZ or 0.1 kg m-2.
        dry: Value of a cell without rain; None takes 0, of reflectivity the lowest of the context.
        levels: Scales of the cascade at most; a small grid has fewer.
        smoothing_m: Standard deviation [m] of the Gaussian that spreads tracked vectors.
        family: Name in registries and products.
        t_in: Frames of context, at least three.
        t_out: Most lead times.
    """

    quantity: str = "rainfall_rate"
    cell_size_m: float = 1000.0
    cadence_s: float = 300.0
    threshold: float | None = None
    dry: float | None = None
    levels: int = 6
    smoothing_m: float = 20_000.0
    family: str = "steps"
    t_in: int = 3
    t_out: int = 12

    def __post_init__(self) -> None:
        if self.quantity not in _THRESHOLDS:
            raise ValueError(f"expected a quantity of {', '.join(_THRESHOLDS)}; got {self.quantity!r}")
        if self.t_in <= _ORDER:
            raise ValueError(f"expected at least {_ORDER + 1} frames of context; got {self.t_in}")

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """Members (member, lead_time, y, x) from `context` (t_in, y, x), same units.

        NaN where the air comes from outside the grid, and in cells that one of the last three frames did not observe.
        Without rain every member is dry. Where the frames tell no evolution (an older one is lost or dry, or nothing
        changes but place), the members are those of extrapolation with perturbed motion.

        Raises:
            ContextTooShort: the newest frame, or all but it, is wholly unobserved.
            ValueError: a context of another shape, more lead times than `t_out`, or no members.
        """
        check_context(context, self.t_in)
        check_request(lead_times, self.t_out, members)
        recent = np.asarray(context, np.float32)
        frames, dry = recent[-_ORDER - 1 :], self._dry(recent)
        if self._rain_share(frames[-1]) < _LEAST_RAIN:
            steady = np.where(np.isfinite(frames[-1]), np.float32(dry), np.float32(np.nan))
            return np.broadcast_to(steady, (members, lead_times, *steady.shape)).copy()
        levels = self._decibels(frames)
        if all(self._rain_share(frame) >= _LEAST_RAIN for frame in frames) and all(map(_varies, levels)):
            smoothing = max(self.smoothing_m / self.cell_size_m, 2.0)
            motion = estimate_motion(recent, quantity=self.quantity, smoothing=smoothing)
            with suppress(np.linalg.LinAlgError):  # the frames are the same but for their motion
                return self._physical(self._ensemble(levels, motion, lead_times, members, seed), dry)
        return self._extrapolation.forecast(recent, lead_times, members=members, seed=seed)

    @property
    def _extrapolation(self) -> Extrapolation:
        grid = self.quantity, self.cell_size_m, self.cadence_s, self.smoothing_m
        return Extrapolation(*grid, t_in=self.t_in, t_out=self.t_out)

    def _ensemble(self, levels: Doubles, motion: Motion, lead_times: int, members: int, seed: int) -> Doubles:
        """Decibels (member, lead_time, y, x) from decibels (3, y, x) of which NaN is not observed."""
        velocity = _on_the_grid(motion)
        found: Doubles
        with _alone():
            found = pysteps_module("pysteps.nowcasts.steps").forecast(
                levels,
                velocity,
                lead_times,
                n_ens_members=members,
                n_cascade_levels=_cascade_levels(levels.shape[-2:], self.levels),
                precip_thr=self._least_decibels,
                kmperpixel=self.cell_size_m / 1000.0,
                timestep=self.cadence_s / 60.0,
                ar_order=_ORDER,
                vel_pert_kwargs={"p_par": _ALONG, "p_perp": _ACROSS},
                seed=seed,
            )
        return found

    @property
    def _least(self) -> float:
        return _THRESHOLDS[self.quantity] if self.threshold is None else self.threshold

    @property
    def _least_decibels(self) -> float:
        return self._least if self._logarithmic else 10.0 * float(np.log10(self._least))

    @property
    def _logarithmic(self) -> bool:
        return self.quantity == "equivalent_reflectivity_factor"

    def _dry(self, context: Fields) -> float:
        if self.dry is not None:
            return self.dry
        return min(float(np.nanmin(context)), self._least) if self._logarithmic else 0.0

    def _rain_share(self, frame: Fields) -> float:
        return float((frame >= self._least).mean())

    def _decibels(self, frames: Fields) -> Doubles:
        """Rain in decibels, no rain a fixed step below its threshold, NaN kept."""
        wet = frames >= self._least
        values = np.where(wet, frames, np.float32(self._least)).astype(np.float64)
        levels = values if self._logarithmic else 10.0 * np.log10(values)
        levels = np.where(wet, levels, self._least_decibels - _STEP_DB)
        return np.where(np.isfinite(frames), levels, np.nan)

    def _physical(self, levels: Doubles, dry: float) -> Fields:
        values = levels if self._logarithmic else np.power(10.0, levels / 10.0)
        values = np.where(levels >= self._least_decibels, values, dry)
        return np.where(np.isfinite(levels), values, np.nan).astype(np.float32)


_THRESHOLDS = {"rainfall_rate": 0.1, "equivalent_reflectivity_factor": 7.0, "vil": 0.1}


def _varies(field: Doubles) -> bool:
    return bool(np.nanmin(field) < np.nanmax(field))


def _on_the_grid(motion: Motion) -> Doubles:
    """Velocity (2, y, x) [cells per step] at every cell."""
    rows, columns = motion.shape
    parts = [cv2.resize(part, (columns, rows), interpolation=cv2.INTER_LINEAR) for part in motion.velocity]
    return np.stack(parts).astype(np.float64)


def _cascade_levels(shape: tuple[int, ...], most: int) -> int:
    """As many levels as have at least two wavenumbers each."""
    return max(3, min(most, int(np.log2(max(shape))) - 1))


@contextmanager
def _alone() -> Iterator[None]:
    """Silent, on this thread, and without a trace in numpy's global generator, which pysteps seeds."""
    import dask

    state = np.random.get_state()  # noqa: NPY002
    try:
        with redirect_stdout(StringIO()), dask.config.set(scheduler="synchronous"):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
