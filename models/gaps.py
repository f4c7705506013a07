"""Frames with holes, for networks that take none."""

from __future__ import annotations

import torch
from torch import Tensor


def fill_gaps(u: Tensor) -> Tensor:
    """u (T, ...) without NaN: each gap takes the latest earlier value of its cell, else the next later one, else 0."""
    for order in (range(1, u.shape[0]), range(u.shape[0] - 2, -1, -1)):
        step = 1 if order.step > 0 else -1
        frames = list(u.unbind(0))
        for index in order:
            frames[index] = torch.where(torch.isnan(frames[index]), frames[index - step], frames[index])
        u = torch.stack(frames)
    return torch.nan_to_num(u, nan=0.0)
