"""Where the randomness of a sample comes from: each member has its own noise, whoever else is in the batch."""

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


class MemberNoise:
    """Noise as a function of seed, member and step: on every device, in every batch, the same for the same member."""

    def __init__(self, seed: int, members: Sequence[int]) -> None:
        if not members:
            raise ValueError("expected at least one member")
        self.seed = seed
        self.members = tuple(members)

    def draw(self, index: int, shape: Shape, device: torch.device) -> Tensor:
        """Noise of `shape` (B, T, h, w, C), where B is the number of members; drawn on the CPU.

        Raises:
            ValueError: a batch of another size.
        """
        if shape[0] != len(self.members):
            raise ValueError(f"expected a batch of {len(self.members)} members; got {shape[0]}")
        return torch.stack([self._one(member, index, shape[1:]) for member in self.members]).to(device)

    def _one(self, member: int, index: int, shape: Shape) -> Tensor:
        state = np.random.SeedSequence((self.seed, member, index)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        return torch.randn(shape, generator=generator)


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
