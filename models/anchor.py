"""The forecast that needs no training and that an anchored network corrects.

Our addition to the paper: what advection explains need not be learnt; growth, decay and change of motion remain
(Ravuri et al. 2021, doi:10.1038/s41586-021-03854-z).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.baselines import ContextTooShort
from models.baselines.extrapolation import Extrapolation

Fields = npt.NDArray[np.float32]


class Anchored(Protocol):
    """A configuration that says what its forecasts are anchored to."""

    @property
    def anchor(self) -> str:
        """Name of the anchor."""
        ...

    @property
    def quantity(self) -> str:
        """What the frames hold."""
        ...

    @property
    def cell_size_m(self) -> float:
        """Side of a cell."""
        ...

    @property
    def cadence_s(self) -> int:
        """Seconds between frames."""
        ...

    @property
    def t_out(self) -> int:
        """Lead times."""
        ...


def anchor_frames(config: Anchored, context: Fields) -> Fields:
    """Frames to be appended to `context` before the network: (t_out or 0, y, x), units of the context.

    Args:
        config: Its anchor, quantity, cell size and cadence.
        context: (t_in, y, x) float32 in physical units; NaN = not observed.

    Returns:
        The extrapolated frames; NaN where air comes from outside. Where the context shows no motion (only one of its
        frames is observed), the newest frame, repeated.
    """
    if config.anchor != "extrapolation":
        return np.empty((0, *context.shape[1:]), np.float32)
    flow = Extrapolation(config.quantity, config.cell_size_m, float(config.cadence_s), t_out=config.t_out)
    try:
        frames: Fields = flow.forecast(context[-flow.t_in :], config.t_out)[0]
    except ContextTooShort:
        frames = np.repeat(context[-1:], config.t_out, axis=0)
    return frames
