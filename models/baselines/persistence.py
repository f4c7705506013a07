"""Persistence: the newest frame at every lead time, the least that a forecast has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.baselines import ContextTooShort

Fields = NDArray[np.float32]


@dataclass(frozen=True)
class Persistence:
    """Forecaster that repeats the newest frame; keeps the `Forecaster` protocol.

    Attributes:
        family: Name in registries and products.
        t_in: Frames of context wanted.
        t_out: Lead times offered without asking for more.
    """

    family: str = "persistence"
    t_in: int = 1
    t_out: int = 12

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """The last frame of `context` (t_in, y, x) as (member, lead_time, y, x), same units; NaN stays NaN.

        Raises:
            ContextTooShort: the newest frame is absent or wholly unobserved.
        """
        if context.shape[0] == 0 or not np.isfinite(context[-1]).any():
            raise ContextTooShort("expected an observed newest frame; got none")
        newest = np.asarray(context[-1], np.float32)
        return np.ascontiguousarray(np.broadcast_to(newest, (members, lead_times, *newest.shape)))
