"""Any grid through a network of fixed size: overlapping tiles, smoothly blended, in batches of bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def tile_starts(length: int, patch: int, overlap: int) -> list[int]:
    """First cell of each tile along one axis: evenly spaced, sharing at least `overlap` cells, ending at `length`."""
    if length <= patch:
        return [0]
    count = math.ceil((length - overlap) / (patch - overlap))
    return [round(i * (length - patch) / (count - 1)) for i in range(count)]


def blend_weights(patch: tuple[int, int], overlap: int) -> Tensor:
    """Unnormalised weight of each cell of a tile (H, W): 1 inside, falling as sin² to the edge over `overlap` cells."""

    def ramp(length: int) -> Tensor:
        cell = torch.arange(length, dtype=torch.float64)
        distance = torch.minimum(cell, length - 1 - cell) + 0.5
        return torch.sin(torch.clamp(distance / max(overlap, 1), max=1.0) * (math.pi / 2)) ** 2

    return ramp(patch[0])[:, None] * ramp(patch[1])[None, :]


def normalised_weights(size: tuple[int, int], patch: tuple[int, int], overlap: int) -> list[tuple[int, int, Tensor]]:
    """Every tile of a grid of `size` as (row, column, weights (H, W) float32); the weights add to 1 in each cell."""
    window = blend_weights(patch, overlap)
    height, width = patch
    corners = [
        (row, column)
        for row in tile_starts(size[0], height, overlap)
        for column in tile_starts(size[1], width, overlap)
    ]
    total = torch.zeros(size, dtype=torch.float64)
    for row, column in corners:
        total[row : row + height, column : column + width] += window
    return [
        (row, column, (window / total[row : row + height, column : column + width]).float()) for row, column in corners
    ]


def run_tiled(
    network: Callable[[Tensor], Tensor],
    u: Tensor,
    patch: tuple[int, int],
    *,
    frames_out: int,
    overlap: int,
    batch: int = 16,
    wanted: Tensor | None = None,
) -> Tensor:
    """u (T_in, y, x) in network space → (T_out, y, x) through `network` (B, T_in, H, W, 1) → (B, T_out, H, W, 1).

    A grid smaller than the patch is padded with its edge cells. Tiles without a `wanted` (y, x) cell are left 0.
    """
    size = u.shape[1:]
    padded = F.pad(u[None], (0, max(patch[1] - size[1], 0), 0, max(patch[0] - size[0], 0)), mode="replicate")[0]
    height, width = patch
    out = padded.new_zeros((frames_out, *padded.shape[1:]))
    tiles = normalised_weights((padded.shape[1], padded.shape[2]), patch, overlap)
    if wanted is not None:
        tiles = [tile for tile in tiles if wanted[tile[0] : tile[0] + height, tile[1] : tile[1] + width].any()]
    for first in range(0, len(tiles), batch):
        chunk = tiles[first : first + batch]
        inputs = torch.stack([padded[:, row : row + height, column : column + width] for row, column, _ in chunk])
        for (row, column, weights), forecast in zip(chunk, network(inputs[..., None])[..., 0], strict=True):
            out[:, row : row + height, column : column + width] += forecast * weights.to(forecast)
    return out[:, : size[0], : size[1]]
