"""Forecasts that need no training: the bar every model has to clear."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ContextTooShort(ValueError):
    """The context holds fewer observed frames than a forecaster needs."""


def check_context(context: NDArray[np.float32], t_in: int) -> None:
    """Hold a context (t_in, y, x) to its length and to an observed newest frame.

    Raises:
        ValueError: other dimensions or another length.
        ContextTooShort: the newest frame is wholly unobserved.
    """
    if context.ndim != 3 or context.shape[0] != t_in or 0 in context.shape:
        raise ValueError(f"expected a context ({t_in}, y, x); got {context.shape}")
    if not np.isfinite(context[-1]).any():
        raise ContextTooShort("expected an observed newest frame; all its cells are NaN")


def check_request(lead_times: int, t_out: int, members: int) -> None:
    """Hold a request to what a forecaster offers.

    Raises:
        ValueError: no lead time or more than `t_out`, or no member.
    """
    if not 1 <= lead_times <= t_out:
        raise ValueError(f"expected 1 to {t_out} lead times; got {lead_times}")
    if members < 1:
        raise ValueError(f"expected at least one member; got {members}")
