"""A deterministic forecaster dressed as an ensemble with its own errors: the bar that a trained ensemble has to clear.

Dressing of a single forecast (Roulston & Smith 2003, Tellus 55A, 16-30) with whole error fields of held-out windows,
each lead with errors of that lead, added in the model's transformed space, where errors are nearest to additive. The
error fields keep their structure in space and in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.baselines import check_request
from models.forecaster import Forecaster
from models.transform import Transform
from tasks.training.sample_set import SampleSet

Fields = NDArray[np.float32]


@dataclass(frozen=True)
class DressedForecaster:
    """Forecaster whose members are one forecast plus drawn residual fields; keeps the `Forecaster` protocol.

    Attributes:
        inner: What is dressed; its first member counts.
        transform: Physical units to the space of the residuals.
        residuals: Observed minus forecast in that space, float32 (window, lead, y, x); NaN = not known.
        floor: Least physical value a member may take (dry, no echo).
    """

    inner: Forecaster
    transform: Transform
    residuals: Fields
    floor: float

    @property
    def family(self) -> str:
        """`dressed-<inner family>`."""
        return f"dressed-{self.inner.family}"

    @property
    def t_in(self) -> int:
        """Context frames of the inner forecaster."""
        return self.inner.t_in

    @property
    def t_out(self) -> int:
        """Lead times that both the inner forecaster and the residuals have."""
        return min(self.inner.t_out, len(self.residuals[0]))

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """Members (member, lead_time, y, x) from `context` (t_in, y, x), same units; NaN where the inner forecast is.

        Each member takes all its leads from one window; no window serves twice while there are enough. Where a residual
        is not known the forecast stays as it was.

        Raises:
            ValueError: as the inner forecaster, or a grid other than the residuals'.
        """
        check_request(lead_times, self.t_out, members)
        if context.shape[-2:] != self.residuals.shape[-2:]:
            raise ValueError(f"expected the residuals' grid {self.residuals.shape[-2:]}; got {context.shape[-2:]}")
        u = self.transform.forward(self.inner.forecast(context, lead_times, seed=seed)[0])
        count = len(self.residuals)
        drawn = np.random.default_rng(seed).choice(count, size=members, replace=members > count)
        values = self.transform.inverse(u + np.nan_to_num(self.residuals[drawn, :lead_times]))
        return np.asarray(np.maximum(values, self.floor), np.float32)


def dress(
    forecaster: Forecaster, samples: SampleSet, *, split: str = "val", limit: int = 200, wet: bool = True
) -> DressedForecaster:
    """Collect the residuals of `forecaster` over held-out windows, by default the wet ones it will be judged on.

    Args:
        forecaster: Deterministic; its first member counts.
        samples: Windows; their quantity's usual transform is used.
        split: Held out from training, and not the one that judges.
        limit: At most so many windows, evenly thinned.
        wet: Wet windows only, where there are any.

    Raises:
        ValueError: the split has no window.
    """
    windows = samples.held_out(split, limit, wet=wet)
    if not windows:
        raise ValueError(f"expected windows in {split!r} to take residuals from; got none")
    transform, reader = Transform.of_quantity(samples.info.quantity), samples.reader()
    leads = min(samples.t_out, forecaster.t_out)
    residuals, floor = np.empty((len(windows), leads, *samples.size), np.float32), np.inf
    for residual, window in zip(residuals, windows, strict=True):
        fields = reader.read([window])[0]
        context, observed = fields[: samples.t_in], fields[samples.t_in : samples.t_in + leads]
        forecast = forecaster.forecast(context[-forecaster.t_in :], leads)[0]
        residual[:] = transform.forward(observed) - transform.forward(forecast)
        floor = min(floor, float(np.nanmin(fields, initial=np.inf)))
    return DressedForecaster(forecaster, transform, residuals, floor if np.isfinite(floor) else 0.0)
