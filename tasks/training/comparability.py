"""Whether a model can forecast the windows of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.training.sample_set import SampleSet

if TYPE_CHECKING:
    from models.forecaster import Forecaster

_SAME_CELLS = 0.05


def misfit(forecaster: Forecaster, samples: SampleSet) -> str | None:
    """Why `forecaster` cannot be compared on `samples`, in words; None where it can.

    It has to be of the same quantity, cadence and cell size (within a twentieth), to be content with the context of the
    windows, and to have all their lead times.
    """
    theirs, ours = getattr(forecaster, "config", None), samples.info
    if theirs is not None:
        same = (theirs.quantity, theirs.cadence_s) == (ours.quantity, ours.cadence_s)
        if not same or abs(theirs.cell_size_m / ours.cell_size_m - 1) > _SAME_CELLS:
            return f"trained on {theirs.quantity} of {theirs.cell_size_m:.0f} m and {theirs.cadence_s} s"
    if forecaster.t_in > samples.t_in or forecaster.t_out < samples.t_out:
        return f"needs {forecaster.t_in} frames and forecasts {forecaster.t_out}"
    return None
