"""Noise and quantiles that belong to a member: the same whoever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]


class NoiseSource(Protocol):
    """Unit Gaussian noise for a batch of samples."""

    def draw(self, index: int, shape: Shape, device: torch.device) -> Tensor:
        """Noise (B, T, h, w, C) float32; `index` 0 starts the sample, k > 0 is what sampling step k adds."""
        ...


def member_quantiles(seed: int, members: Sequence[int]) -> Tensor:
    """A standard normal value for each member (M,) float32, spread evenly: the first 2^k members fill 2^k equal shares.

    The van der Corput sequence, shifted as a whole by the seed; a member's value depends on no other member.
    """
    shift = np.random.default_rng((seed, 0x5157)).random()
    shares = [(_radical_inverse(member) + shift) % 1.0 for member in members]
    normal = NormalDist()
    return torch.tensor([normal.inv_cdf(min(max(share, 1e-6), 1.0 - 1e-6)) for share in shares])


def _radical_inverse(index: int) -> float:
    """The binary digits of index mirrored at the point."""
    share, weight = 0.0, 0.5
    while index:
        index, bit = divmod(index, 2)
        share += bit * weight
        weight /= 2.0
    return share
