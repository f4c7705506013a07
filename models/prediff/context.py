"""What PreDiff is told of the past: one rule for training and for service, so that a gap means the same in both."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from models.gaps import fill_gaps
from models.prediff.constraints import Constraint


@dataclass(frozen=True)
class KnownContext:
    """The newest frames of one context, without gaps.

    Attributes:
        frames: (context_frames, y, x), network space; a gap has what its cell showed last in the whole context.
        values: (context_frames, 1) of the constraint over observed cells; of a frame without any, the one before it.
    """

    frames: Tensor
    values: Tensor


def known_context(u: Tensor, constraint: Constraint, newest: int) -> KnownContext:
    """The last `newest` frames of u (t_in, y, x), network space, NaN = not observed; nothing later may be in it."""
    values = constraint.values(u[None, ..., None])[0]
    return KnownContext(fill_gaps(u)[-newest:], fill_gaps(values)[-newest:])
