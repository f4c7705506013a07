"""Tiles: they cover, they add to one, and they do not show where the network looks only around a cell."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.tiling import normalised_weights, run_tiled, tile_starts


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, int, int]:
    """(length, patch, overlap) of one axis."""
    patch = draw(st.integers(1, 20))
    return draw(st.integers(1, 90)), patch, draw(st.integers(0, patch - 1))


@given(grids())
def test_tiles_cover_an_axis_with_at_least_the_overlap(grid: tuple[int, int, int]) -> None:
    length, patch, overlap = grid
    starts = tile_starts(length, patch, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(length - patch, 0)
    assert all(first + patch - second >= overlap for first, second in pairwise(starts))
    assert starts == sorted(set(starts))


@settings(deadline=None, max_examples=50)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 7))
def test_the_weights_of_all_tiles_add_to_one_in_every_cell(height: int, width: int, overlap: int) -> None:
    total = torch.zeros(height, width)
    for row, column, weights in normalised_weights((height, width), (8, 8), overlap):
        assert weights.min() > 0
        total[row : row + 8, column : column + 8] += weights
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (40, 23), (5, 60), (3, 4)])
def test_a_network_of_single_cells_gives_the_same_tiled_as_whole(size: tuple[int, int]) -> None:
    def pointwise(x: Tensor) -> Tensor:
        return torch.sin(3 * x[:, :2]) + x[:, -1:]

    u = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    whole = pointwise(u[None, ..., None])[0, ..., 0]
    tiled = run_tiled(pointwise, u, (16, 16), frames_out=2, overlap=4, batch=3)
    assert torch.allclose(tiled, whole, atol=1e-6)


def test_a_local_network_differs_only_near_the_edges_of_tiles_and_little() -> None:
    """A 3 x 3 mean sees the zeros outside its tile one cell deep, where the tile's weight is least."""

    def smooth(x: Tensor) -> Tensor:
        batch, frames, height, width, _ = x.shape
        frames_ = x.reshape(batch * frames, 1, height, width)
        return torch.nn.functional.avg_pool2d(frames_, 3, stride=1, padding=1).reshape(x.shape)

    u = torch.ones(1, 48, 48)
    tiled = run_tiled(smooth, u, (16, 16), frames_out=1, overlap=8)
    whole = smooth(u[None, ..., None])[0, ..., 0]
    assert (tiled - whole).abs().max() < 0.02


def test_no_more_tiles_run_at_once_than_the_batch() -> None:
    sizes: list[int] = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(x.shape[0])
        return x

    run_tiled(counting, torch.zeros(1, 50, 50), (16, 16), frames_out=1, overlap=4, batch=5)
    assert sizes == [5, 5, 5, 1]


def test_tiles_that_nobody_wants_are_not_run() -> None:
    calls: list[int] = []

    def counting(x: Tensor) -> Tensor:
        calls.append(x.shape[0])
        return x

    wanted = torch.zeros(64, 64, dtype=torch.bool)
    wanted[2, 2] = True
    run_tiled(counting, torch.zeros(1, 64, 64), (16, 16), frames_out=1, overlap=0, wanted=wanted)
    assert calls == [1]
