"""Earthformer's cuboid decomposition (Gao et al. 2022, section 3.1, arXiv:2207.05833).

A (T, H, W) volume is padded, rolled and cut into cuboids of equal size; attention runs inside each. Along an axis a
cuboid is local ("l", neighbouring cells) or dilated ("d", every n-th cell).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

Axis = Literal["l", "d"]
Padding = Literal["ignore", "zeros", "nearest"]
Triple = tuple[int, int, int]
Pair = tuple[int, int]
Strategy = tuple[Axis, Axis, Axis]


def resample_nearest(x: Tensor, size: Triple) -> Tensor:
    """Nearest-neighbour resampling of x (B, T, H, W, C) to `size` (T, H, W)."""
    resampled = F.interpolate(x.permute(0, 4, 1, 2, 3), size=size, mode="nearest")
    return resampled.permute(0, 2, 3, 4, 1)


def pad_volume(x: Tensor, pads: Triple, padding: Padding, *, time_first: bool = False) -> Tensor:
    """x (B, T, H, W, C) enlarged by `pads` at the end of each axis, or at the front of T for `time_first`.

    "zeros" and "ignore" append zeros; "nearest" resamples the whole volume.
    """
    if not any(pads):
        return x
    if padding == "nearest":
        t, h, w = (n + p for n, p in zip(x.shape[1:4], pads, strict=True))
        return resample_nearest(x, (t, h, w))
    pad_t, pad_h, pad_w = pads
    before, after = (pad_t, 0) if time_first else (0, pad_t)
    return F.pad(x, (0, 0, 0, pad_w, 0, pad_h, before, after))


@dataclass(frozen=True)
class CuboidLayout:
    """How one volume of `size` is cut: pure geometry, no tensors.

    `time_first` pads the time axis at its front (memory of a cross attention).
    """

    size: Triple
    cuboid: Triple
    shift: Triple
    strategy: Strategy
    padding: Padding
    time_first: bool = False

    @classmethod
    def reduced(cls, size: Triple, cuboid: Triple, shift: Triple, strategy: Strategy, padding: Padding) -> Self:
        """A cuboid never larger than the volume; an axis that is dilated or inside one cuboid is not shifted."""
        axes = [
            (min(n, b), 0 if kind == "d" or n <= b else s)
            for n, b, s, kind in zip(size, cuboid, shift, strategy, strict=True)
        ]
        (b_t, s_t), (b_h, s_h), (b_w, s_w) = axes
        return cls(size, (b_t, b_h, b_w), (s_t, s_h, s_w), strategy, padding)

    @property
    def pads(self) -> Triple:
        """Cells added per axis to reach a multiple of the cuboid."""
        t, h, w = (-n % b for n, b in zip(self.size, self.cuboid, strict=True))
        return t, h, w

    @property
    def padded(self) -> Triple:
        """Size after padding."""
        t, h, w = (n + p for n, p in zip(self.size, self.pads, strict=True))
        return t, h, w

    @property
    def volume(self) -> int:
        """Tokens in one cuboid."""
        return self.cuboid[0] * self.cuboid[1] * self.cuboid[2]

    @property
    def cuboids(self) -> int:
        """Number of cuboids."""
        t, h, w = (n // b for n, b in zip(self.padded, self.cuboid, strict=True))
        return t * h * w

    def split(self, x: Tensor) -> Tensor:
        """x (B, T, H, W, C) → tokens (B, cuboids, volume, C): pad, roll, reorder."""
        return self._reorder(self.enlarge(x))

    def join(self, tokens: Tensor) -> Tensor:
        """Inverse of `split`: tokens (B, cuboids, volume, C) → (B, T, H, W, C)."""
        return self.reduce(self.restore(tokens))

    def restore(self, tokens: Tensor) -> Tensor:
        """tokens (B, cuboids, volume, C) in their places in the padded and rolled volume (B, T, H, W, C)."""
        x = tokens.reshape(tokens.shape[0], *self._counts, *self.cuboid, tokens.shape[-1])
        return x.permute(*self._home, 7).reshape(tokens.shape[0], *self.padded, tokens.shape[-1])

    def split_heads(self, x: Tensor, parts: int, heads: int) -> Tensor:
        """x (B, T, H, W, parts·h·d) → (parts, B, h, cuboids, volume, d): `split` and the heads apart, in one copy."""
        x = self.enlarge(x)
        x = x.reshape(x.shape[0], *self._axes, parts, heads, -1)
        x = x.permute(7, 0, 8, *self._away[1:], 9)
        return x.reshape(parts, x.shape[1], heads, self.cuboids, self.volume, -1)

    def join_heads(self, x: Tensor) -> Tensor:
        """x (B, h, cuboids, volume, d) → (B, T, H, W, h·d): `join` and the heads together, in one copy."""
        batch, heads = x.shape[:2]
        x = x.reshape(batch, heads, *self._counts, *self.cuboid, -1)
        x = x.permute(0, *(1 + axis for axis in self._home[1:]), 1, 8)
        return self.reduce(x.reshape(batch, *self.padded, -1))

    def enlarge(self, x: Tensor) -> Tensor:
        """x (B, T, H, W, C) padded and rolled."""
        return self._roll(self.pad(x))

    def pad(self, x: Tensor) -> Tensor:
        """x (B, T, H, W, C) padded to a multiple of the cuboid."""
        return pad_volume(x, self.pads, self.padding, time_first=self.time_first)

    def without_padding(self) -> Self:
        """The same cuboids for a volume padded before."""
        return replace(self, size=self.padded)

    def reduce(self, x: Tensor) -> Tensor:
        """Inverse of `enlarge`."""
        if any(self.shift):
            x = x.roll(self.shift, dims=(1, 2, 3))
        return self.crop(x)

    @property
    def _counts(self) -> list[int]:
        return [n // b for n, b in zip(self.padded, self.cuboid, strict=True)]

    @property
    def _axes(self) -> list[int]:
        """Two axes for each of T, H, W: cuboid number and position inside where local, the reverse where dilated."""
        axes: list[int] = []
        for count, b, kind in zip(self._counts, self.cuboid, self.strategy, strict=True):
            axes += [count, b] if kind == "l" else [b, count]
        return axes

    @property
    def _away(self) -> list[int]:
        """Permutation of (B, `_axes`) that puts the cuboids' numbers before the positions inside."""
        number = [1 + 2 * axis + (kind == "d") for axis, kind in enumerate(self.strategy)]
        inside = [1 + 2 * axis + (kind == "l") for axis, kind in enumerate(self.strategy)]
        return [0, *number, *inside]

    @property
    def _home(self) -> list[int]:
        """Inverse of `_away`."""
        return sorted(range(7), key=self._away.__getitem__)

    def regions(self, device: torch.device) -> Tensor | None:
        """Region label of every token (cuboids, volume): cells that the roll made neighbours carry different labels.

        None where nothing was rolled.
        """
        if not any(self.shift):
            return None
        label = torch.zeros(self.padded, dtype=torch.int64, device=device)
        for axis, (n, b, s) in enumerate(zip(self.padded, self.cuboid, self.shift, strict=True)):
            position = torch.arange(n, device=device)
            part = (position >= n - b).long() + (position >= n - s).long() if s else torch.zeros_like(position)
            label = 3 * label + part.view([-1 if a == axis else 1 for a in range(3)])
        return self._reorder(label[None, ..., None])[0, :, :, 0]

    def real(self, device: torch.device) -> Tensor | None:
        """True for tokens that are not padding (cuboids, volume); None where padding is absent or takes part."""
        observed = self.real_volume(device)
        if observed is None:
            return None
        return self._reorder(observed[None, ..., None])[0, :, :, 0]

    def real_volume(self, device: torch.device) -> Tensor | None:
        """As `real`, in the order of the padded and rolled volume (T, H, W)."""
        if self.padding != "ignore" or not any(self.pads):
            return None
        ones = torch.ones(1, *self.size, 1, device=device)
        return self._roll(pad_volume(ones, self.pads, "zeros", time_first=self.time_first))[0, ..., 0].bool()

    def _roll(self, x: Tensor) -> Tensor:
        if not any(self.shift):
            return x
        return x.roll([-s for s in self.shift], dims=(1, 2, 3))

    def _reorder(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], *self._axes, x.shape[-1]).permute(*self._away, 7)
        return x.reshape(x.shape[0], -1, self.volume, x.shape[-1])

    def crop(self, x: Tensor) -> Tensor:
        """Inverse of `pad`."""
        if not any(self.pads):
            return x
        if self.padding == "nearest":
            return resample_nearest(x, self.size)
        t, h, w = self.size
        start = self.pads[0] if self.time_first else 0
        return x[:, start : start + t, :h, :w].contiguous()


def attention_mask(query: CuboidLayout, key: CuboidLayout, device: torch.device) -> Tensor | None:
    """Which key a query may see, (cuboids, query volume, key volume) bool; None where every pair is allowed.

    Tokens of different regions never see each other; with padding "ignore" neither do padded tokens.
    """
    allowed: Tensor | None = None
    for left, right, equal in (
        (query.regions(device), key.regions(device), True),
        (query.real(device), None, False),
        (None, key.real(device), False),
    ):
        pair = _pairwise(left, right, equal)
        if pair is not None:
            allowed = pair if allowed is None else allowed & pair
    return None if allowed is None else allowed.expand(-1, query.volume, key.volume)


def _pairwise(left: Tensor | None, right: Tensor | None, equal: bool) -> Tensor | None:
    if equal:
        return None if left is None or right is None else left[:, :, None] == right[:, None, :]
    if left is not None:
        return left[:, :, None]
    return None if right is None else right[:, None, :]


def masked_softmax(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Softmax over the last axis of `scores` among allowed keys; a row with none is all zero."""
    if allowed is None:
        return scores.softmax(-1)
    floor = -1e4 if scores.dtype == torch.float16 else -1e18
    return scores.masked_fill(~allowed, floor).softmax(-1) * allowed


def relative_position_index(cuboid: Triple, queries: int, keys: int, device: torch.device) -> Tensor:
    """Row of the bias table for every (query, key) token pair, (queries, keys) int64.

    Tokens are numbered row-major in `cuboid`, the size a layer was constructed for, even where the volume is smaller.
    """
    b_t, b_h, b_w = cuboid

    def coordinates(count: int) -> tuple[Tensor, Tensor, Tensor]:
        token = torch.arange(count, device=device)
        return token // (b_h * b_w), token // b_w % b_h, token % b_w

    (q_t, q_h, q_w), (k_t, k_h, k_w) = coordinates(queries), coordinates(keys)
    d_t = q_t[:, None] - k_t[None, :] + b_t - 1
    d_h = q_h[:, None] - k_h[None, :] + b_h - 1
    d_w = q_w[:, None] - k_w[None, :] + b_w - 1
    return (d_t * (2 * b_h - 1) + d_h) * (2 * b_w - 1) + d_w


def relative_position_bias(table: Tensor, cuboid: Triple, queries: int, keys: int) -> Tensor:
    """Bias (heads, queries, keys) gathered from `table` (offsets, heads)."""
    index = relative_position_index(cuboid, queries, keys, table.device)
    return table[index].permute(2, 0, 1)


def bias_table_rows(cuboid: Triple) -> int:
    """Number of distinct offsets inside `cuboid`."""
    return (2 * cuboid[0] - 1) * (2 * cuboid[1] - 1) * (2 * cuboid[2] - 1)
