"""Any grid through a network of fixed size: overlapping tiles, smoothly blended, one row of tiles in memory at a time.

A tile's weight falls as sin² towards its edges over the overlap, but for its outermost `halo` cells, which see the
network's zero padding and weigh nothing; at the border of the grid it does not fall. A network that looks no further
than `halo` cells therefore gives the very field it would give without tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Strip:
    """What the network needs of some rows of the grid.

    Attributes:
        inputs: (T_in, rows, x) in network space, without gaps.
        wanted: (rows, x) bool; a tile without such a cell is not run and stays 0. None: all are.
    """

    inputs: Tensor
    wanted: Tensor | None = None


ReadRows = Callable[[slice], Strip]


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of a grid lie and what their cells weigh.

    Attributes:
        size: Cells (y, x) of the grid.
        patch: Cells (H, W) of a tile.
        overlap: Least cells that neighbours share.
        halo: Outermost cells of a tile that do not count; less than half the overlap.
    """

    size: tuple[int, int]
    patch: tuple[int, int]
    overlap: int
    halo: int = 0

    def __post_init__(self) -> None:
        if self.halo and not 0 < 2 * self.halo < self.overlap:
            raise ValueError(f"expected a halo below half the overlap of {self.overlap} cells; got {self.halo}")

    def along(self, axis: int) -> list[tuple[int, Tensor]]:
        """Each tile's first cell and weights (patch,) float32 along y (0) or x (1); they add to 1 in every cell."""
        length, patch = max(self.size[axis], self.patch[axis]), self.patch[axis]
        return self.along_starts(axis, tile_starts(length, patch, self.overlap))

    def along_starts(self, axis: int, starts: Sequence[int]) -> list[tuple[int, Tensor]]:
        """As `along`, for tiles that begin at `starts`: together they cover the axis."""
        length, patch = max(self.size[axis], self.patch[axis]), self.patch[axis]
        windows = [self._window(patch, first=start == 0, last=start + patch == length) for start in starts]
        total = torch.zeros(length, dtype=torch.float64)
        for start, window in zip(starts, windows, strict=True):
            total[start : start + patch] += window
        return [
            (start, (window / total[start : start + patch]).float())
            for start, window in zip(starts, windows, strict=True)
        ]

    def _window(self, patch: int, *, first: bool, last: bool) -> Tensor:
        inside = torch.full((patch,), math.inf, dtype=torch.float64)
        cell = torch.arange(patch, dtype=torch.float64)
        before, after = (inside if first else cell), (inside if last else patch - 1 - cell)
        distance = torch.minimum(before, after) + 0.5 - self.halo
        share = (distance / max(self.overlap - 2 * self.halo, 1)).clamp(0.0, 1.0)
        return torch.sin(share * (math.pi / 2)) ** 2


def tile_starts(length: int, patch: int, overlap: int) -> list[int]:
    """First cell of each tile along one axis: evenly spaced, sharing at least `overlap` cells, ending at `length`."""
    if length <= patch:
        return [0]
    count = math.ceil((length - overlap) / (patch - overlap))
    return [round(i * (length - patch) / (count - 1)) for i in range(count)]


def tiles_at_once(patch: tuple[int, int], device: torch.device) -> int:
    """Tiles of `patch` (H, W) per batch whose activations are a few GB at most, for published widths."""
    cells = 2**16 if device.type == "cpu" else 2**20
    return max(1, cells // (patch[0] * patch[1]))


def run_in_bands(
    network: Network, read: ReadRows, tiling: Tiling, *, frames_out: int, batch: int = 16
) -> Iterator[tuple[slice, Tensor]]:
    """The blended output from top to bottom: rows of the grid, and their (T_out, rows, x), as soon as they are final.

    Args:
        network: (B, T_in, H, W, 1) → (B, T_out, H, W, 1), both in network space.
        read: Asked for the rows of one row of tiles after the other.
        tiling: A grid smaller than the patch is padded with its edge cells.
        frames_out: T_out.
        batch: Tiles at once.
    """
    (height, _), size = tiling.patch, tiling.size
    rows = tiling.along(0)
    ends = [start for start, _ in rows[1:]] + [size[0]]
    open_rows: Tensor | None = None  # (T_out, H, x): sums of the rows that later tiles still reach
    for (start, weights), end in zip(rows, ends, strict=True):
        strip = _padded(read(slice(start, min(start + height, size[0]))), tiling)
        band = _run_row(network, strip, weights, tiling, frames_out, batch)
        if open_rows is not None:
            band[:, : open_rows.shape[1]] += open_rows
        yield slice(start, end), band[:, : end - start, : size[1]]
        open_rows = band[:, end - start :]


def _padded(strip: Strip, tiling: Tiling) -> Strip:
    rows, columns = strip.inputs.shape[1:]
    missing = (0, max(tiling.patch[1] - columns, 0), 0, max(tiling.patch[0] - rows, 0))
    if not any(missing):
        return strip
    wanted = None if strip.wanted is None else F.pad(strip.wanted, missing)
    return Strip(F.pad(strip.inputs[None], missing, mode="replicate")[0], wanted)


def _run_row(
    network: Network, strip: Strip, row_weights: Tensor, tiling: Tiling, frames_out: int, batch: int
) -> Tensor:
    """Weighted sum (T_out, H, x) of the tiles of one row."""
    u, width = strip.inputs, tiling.patch[1]
    band = u.new_zeros((frames_out, *u.shape[1:]))
    tiles = tiling.along(1)
    if strip.wanted is not None:
        tiles = [tile for tile in tiles if strip.wanted[:, tile[0] : tile[0] + width].any()]
    for first in range(0, len(tiles), batch):
        chunk = tiles[first : first + batch]
        inputs = torch.stack([u[:, :, column : column + width] for column, _ in chunk])
        for (column, weights), forecast in zip(chunk, network(inputs[..., None])[..., 0], strict=True):
            weighted = row_weights[:, None].to(forecast) * weights[None].to(forecast)
            band[:, :, column : column + width] += forecast * weighted
    return band


def run_tiled(
    network: Network,
    u: Tensor,
    patch: tuple[int, int],
    *,
    frames_out: int,
    overlap: int,
    halo: int = 0,
    batch: int = 16,
    wanted: Tensor | None = None,
) -> Tensor:
    """u (T_in, y, x) in network space → (T_out, y, x), all in memory; as `run_in_bands`."""
    tiling = Tiling((u.shape[1], u.shape[2]), patch, overlap, halo)

    def read(rows: slice) -> Strip:
        return Strip(u[:, rows], None if wanted is None else wanted[rows])

    out = u.new_zeros((frames_out, *u.shape[1:]))
    for rows, band in run_in_bands(network, read, tiling, frames_out=frames_out, batch=batch):
        out[:, rows] = band
    return out
