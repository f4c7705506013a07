"""Persistence: the newest frame at every lead time, the least that a forecast has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.baselines import check_context, check_request

Fields = NDArray[np.float32]


@dataclass(frozen=True)
class Persistence:
    """Forecaster that repeats the newest frame; keeps the `Forecaster` protocol.

    Attributes:
        family: Name in registries and products.
        t_in: Frames of context wanted.
        t_out: Most lead times.
    """

    family: str = "persistence"
    t_in: int = 1
    t_out: int = 12

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """The last frame of `context` (t_in, y, x) as (member, lead_time, y, x), same units; NaN stays NaN.

        Raises:
            ContextTooShort: the newest frame is wholly unobserved.
            ValueError: a context of another shape, more lead times than `t_out`, or no members.
        """
        check_context(context, self.t_in)
        check_request(lead_times, self.t_out, members)
        newest = np.asarray(context[-1], np.float32)
        return np.ascontiguousarray(np.broadcast_to(newest, (members, lead_times, *newest.shape)))
