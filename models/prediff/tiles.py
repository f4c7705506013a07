"""Frames and latents of any size through networks of fixed size: overlapping tiles that blend smoothly.

A sample of a large grid is one latent from the first step to the last. At every step the network answers tile by tile
and the answers are blended, so that neighbouring tiles never part (Bar-Tal et al. 2023, MultiDiffusion,
arXiv:2302.08113); the noise is a function of the latent cell, so that a cell's sample does not depend on where tiles
lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.tiling import Tiling

_BLOCK = 8  # latent cells along each axis that share one random stream

Box = tuple[slice, slice]


@dataclass(frozen=True)
class LatentTiles:
    """Tiles of a latent grid, and the same tiles in pixels.

    Attributes:
        size: (h, w) of the latent grid.
        patch: (h, w) of a tile.
        downscale: Pixels per latent cell along each axis.
        overlap: Least latent cells that neighbours share.
    """

    size: tuple[int, int]
    patch: tuple[int, int]
    downscale: int
    overlap: int

    @classmethod
    def of_grid(cls, pixels: tuple[int, int], patch: tuple[int, int], downscale: int) -> LatentTiles:
        """Tiles for a grid of (y, x) pixels, padded to whole latent cells and at least one tile of `patch` pixels."""
        tile = patch[0] // downscale, patch[1] // downscale
        size = tuple(max(-(-length // downscale), least) for length, least in zip(pixels, tile, strict=True))
        return cls((size[0], size[1]), tile, downscale, max(min(tile) // 4, 1))

    def pad(self, frames: Tensor) -> Tensor:
        """Frames (B, T, y, x, C) with their edge cells repeated up to the tiles' size."""
        rows = self.size[0] * self.downscale - frames.shape[2]
        columns = self.size[1] * self.downscale - frames.shape[3]
        if not rows and not columns:
            return frames
        flat = frames.flatten(0, 1).permute(0, 3, 1, 2)
        padded = F.pad(flat, (0, columns, 0, rows), mode="replicate").permute(0, 2, 3, 1)
        return padded.reshape(*frames.shape[:2], *padded.shape[1:])

    def encode(self, function: Callable[[Tensor], Tensor], frames: Tensor) -> Tensor:
        """`function` (B, T, H, W, C) → (B, T, h, w, c) tile by tile over padded frames."""
        return self._blend(function, frames, self.downscale, 1)

    def decode(self, function: Callable[[Tensor], Tensor], latent: Tensor) -> Tensor:
        """`function` (B, T, h, w, c) → (B, T, H, W, C) tile by tile over latents."""
        return self._blend(function, latent, 1, self.downscale)

    def boxes(self) -> list[Box]:
        """Rows and columns of every tile, latent cells."""
        (rows, _), (columns, _) = self._along(0, 1), self._along(1, 1)
        height, width = self.patch
        return [(slice(y, y + height), slice(x, x + width)) for y in rows for x in columns]

    def blend(self, answer: Callable[[Box], Tensor]) -> Tensor:
        """What `answer` gives for every tile (B, T, h, w, c), blended to the whole latent grid."""
        return self._gather([answer(box) for box in self.boxes()], 1)

    def _blend(self, function: Callable[[Tensor], Tensor], field: Tensor, unit_in: int, unit_out: int) -> Tensor:
        answers = [
            function(field[:, :, _times(rows, unit_in), _times(columns, unit_in)]) for rows, columns in self.boxes()
        ]
        return self._gather(answers, unit_out)

    def _gather(self, answers: Sequence[Tensor], unit: int) -> Tensor:
        if len(answers) == 1:
            return answers[0]
        (rows, row_weights), (columns, column_weights) = self._along(0, unit), self._along(1, unit)
        first = answers[0]
        shape = (*first.shape[:2], self.size[0] * unit, self.size[1] * unit, first.shape[-1])
        total = first.new_zeros(shape)
        height, width = self.patch[0] * unit, self.patch[1] * unit
        places = [
            (y, wy, x, wx)
            for y, wy in zip(rows, row_weights, strict=True)
            for x, wx in zip(columns, column_weights, strict=True)
        ]
        for (y, along_y, x, along_x), answer in zip(places, answers, strict=True):
            weight = (along_y[:, None] * along_x[None]).to(answer)[..., None]
            top, left = y * unit, x * unit
            total[:, :, top : top + height, left : left + width] += weight * answer
        return total

    def _along(self, axis: int, unit: int) -> tuple[list[int], list[Tensor]]:
        """First latent cell of each tile and its weights, at `unit` cells per latent cell."""
        latent = Tiling(self.size, self.patch, self.overlap).along(axis)
        if unit == 1:
            return [start for start, _ in latent], [weights for _, weights in latent]
        starts = [start for start, _ in latent]
        fine = Tiling(
            (self.size[0] * unit, self.size[1] * unit),
            (self.patch[0] * unit, self.patch[1] * unit),
            self.overlap * unit,
        )
        return starts, [weights for _, weights in fine.along_starts(axis, [start * unit for start in starts])]


class CellNoise:
    """Noise as a function of seed, member, step and latent cell: any window of a grid has the whole grid's noise.

    `origin` is the absolute (row, column) of the window's first latent cell.
    """

    def __init__(self, seed: int, members: Sequence[int], origin: tuple[int, int] = (0, 0), scale: float = 1.0) -> None:
        if not members:
            raise ValueError("expected at least one member")
        self.seed, self.members, self.origin, self.scale = seed, tuple(members), origin, scale

    def draw(self, index: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Noise (B, T, h, w, C) float32, B the number of members; what starts a sample (`index` 0) is scaled.

        Raises:
            ValueError: a batch of another size.
        """
        if shape[0] != len(self.members):
            raise ValueError(f"expected a batch of {len(self.members)} members; got {shape[0]}")
        fields = np.stack([self._one(member, index, shape[1:]) for member in self.members])
        return torch.from_numpy(fields).to(device) * (self.scale if index == 0 else 1.0)

    def _one(
        self, member: int, index: int, shape: tuple[int, ...]
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        frames, height, width, channels = shape
        (top, left), (bottom, right) = self.origin, (self.origin[0] + height, self.origin[1] + width)
        rows, columns = range(top // _BLOCK, -(-bottom // _BLOCK)), range(left // _BLOCK, -(-right // _BLOCK))
        size = (_BLOCK, _BLOCK, frames, channels)
        blocks = [
            [
                np.random.default_rng((self.seed, member, index, row % 2**32, column % 2**32)).standard_normal(
                    size, np.float32
                )
                for column in columns
            ]
            for row in rows
        ]
        whole = np.concatenate([np.concatenate(line, axis=1) for line in blocks], axis=0)
        y, x = top - rows.start * _BLOCK, left - columns.start * _BLOCK
        return np.ascontiguousarray(whole[y : y + height, x : x + width].transpose(2, 0, 1, 3))


def _times(cells: slice, unit: int) -> slice:
    return slice(cells.start * unit, cells.stop * unit)
