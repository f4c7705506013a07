"""Tiles: they cover, they add to one, and they do not show where the network looks only around a cell."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from builders.networks import small_architecture
from models.configuration import build_network
from models.tiling import Strip, Tiling, run_in_bands, run_tiled, tile_starts, tiles_at_once


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


@settings(deadline=None, max_examples=100)
@given(grids(), st.data())
def test_the_weights_of_all_tiles_add_to_one_in_every_cell(grid: tuple[int, int, int], data: st.DataObject) -> None:
    length, patch, overlap = grid
    halo = data.draw(st.integers(0, max((overlap - 1) // 2, 0)))
    total = torch.zeros(max(length, patch))
    for start, weights in Tiling((length, 1), (patch, 1), overlap, halo).along(0):
        assert weights.min() >= 0
        total[start : start + patch] += weights
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


def test_a_tile_that_would_not_count_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="below half the overlap of 4"):
        Tiling((40, 40), (16, 16), 4, halo=2)


@pytest.mark.parametrize("size", [(16, 16), (40, 23), (5, 60), (3, 4)])
def test_a_network_of_single_cells_gives_the_same_tiled_as_whole(size: tuple[int, int]) -> None:
    def pointwise(x: Tensor) -> Tensor:
        return torch.sin(3 * x[:, :2]) + x[:, -1:]

    u = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    whole = pointwise(u[None, ..., None])[0, ..., 0]
    tiled = run_tiled(pointwise, u, (16, 16), frames_out=2, overlap=4, batch=3)
    assert torch.allclose(tiled, whole, atol=1e-6)


def convolutions(radius: int) -> Callable[[Tensor], Tensor]:
    """A network (B, T, H, W, 1) → the same that looks `radius` cells far, zero-padded as convolutions are."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 1, 3, padding=1) for _ in range(radius)]

    def run(x: Tensor) -> Tensor:
        frames = x.permute(0, 1, 4, 2, 3).flatten(0, 1)
        with torch.no_grad():
            for layer in layers:
                frames = torch.tanh(layer(frames))
        return frames.reshape(x.shape)

    return run


def smooth_field(size: tuple[int, int], frames: int = 1) -> Tensor:
    """(T, y, x) without structure below about eight cells."""
    noise = torch.rand(frames, 1, size[0] + 16, size[1] + 16, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        noise = torch.nn.functional.avg_pool2d(noise, 9, stride=1)
    return (noise[:, 0] - 0.5) * 8


@pytest.mark.parametrize("size", [(16, 16), (40, 61), (17, 90), (12, 50)])
@pytest.mark.parametrize("radius", [1, 3])
def test_a_network_that_looks_no_further_than_the_halo_gives_the_same_tiled_as_whole(
    size: tuple[int, int], radius: int
) -> None:
    network, u = convolutions(radius), smooth_field(size)
    whole = network(u[None, ..., None])[0, ..., 0]
    tiled = run_tiled(network, u, (16, 16), frames_out=1, overlap=8, halo=3, batch=3)
    inside = whole.shape[1] if size[0] >= 16 else size[0] - radius  # below the patch, padding stands for the border
    assert torch.allclose(tiled[:, :inside], whole[:, :inside], atol=1e-6)


def test_a_local_network_without_halo_differs_only_near_the_edges_of_tiles_and_little() -> None:
    """A 3 x 3 mean sees the zeros outside its tile one cell deep, where the tile's weight is least."""

    def smooth(x: Tensor) -> Tensor:
        batch, frames, height, width, _ = x.shape
        frames_ = x.reshape(batch * frames, 1, height, width)
        return torch.nn.functional.avg_pool2d(frames_, 3, stride=1, padding=1).reshape(x.shape)

    u = torch.ones(1, 48, 48)
    tiled = run_tiled(smooth, u, (16, 16), frames_out=1, overlap=8)
    whole = smooth(u[None, ..., None])[0, ..., 0]
    assert (tiled - whole).abs().max() < 0.02


def seam_ratio(overlap: int, halo: int) -> float:
    """Mean gradient across the columns where tiles end, over that across all others, of a whole Earthformer's output.

    Attention sees the whole tile and nothing beyond, so neighbouring tiles disagree everywhere.
    """
    torch.manual_seed(3)
    network = build_network(small_architecture(input_shape=(3, 32, 32, 1), target_shape=(3, 32, 32, 1))).eval()
    with torch.no_grad():
        out = run_tiled(network, smooth_field((104, 200), 3), (32, 32), frames_out=3, overlap=overlap, halo=halo)
    step = (out[..., 1:] - out[..., :-1]).abs().mean(dim=(0, 1))
    starts = tile_starts(200, 32, overlap)
    ends = [start - 1 for start in starts[1:]] + [start + 31 for start in starts[:-1]]
    at_seam = torch.zeros_like(step, dtype=torch.bool)
    at_seam[ends] = True
    return float(step[at_seam].mean() / step[~at_seam].mean())


def test_no_seam_shows_in_the_gradients_of_a_network_that_sees_its_whole_tile() -> None:
    assert seam_ratio(overlap=0, halo=0) > 1.3  # the statistics do see seams
    assert 0.8 < seam_ratio(overlap=8, halo=2) < 1.05  # two tiles that disagree blend a little smoother than either


def test_rows_come_as_soon_as_they_are_final_and_only_those_of_a_row_of_tiles_are_read() -> None:
    u, read = torch.rand(1, 50, 20), list[slice]()

    def reading(rows: slice) -> Strip:
        read.append(rows)
        return Strip(u[:, rows])

    bands = list(run_in_bands(lambda x: x, reading, Tiling((50, 20), (16, 16), 4), frames_out=1))
    assert [(rows.start, rows.stop) for rows, _ in bands] == [(0, 11), (11, 23), (23, 34), (34, 50)]
    assert [(rows.start, rows.stop) for rows in read] == [(0, 16), (11, 27), (23, 39), (34, 50)]
    assert torch.allclose(torch.cat([band for _, band in bands], dim=1), u, atol=1e-6)


def test_no_more_tiles_run_at_once_than_the_batch() -> None:
    sizes: list[int] = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(x.shape[0])
        return x

    run_tiled(counting, torch.zeros(1, 50, 50), (16, 16), frames_out=1, overlap=4, batch=5)
    assert sizes == [4, 4, 4, 4]
    sizes.clear()
    run_tiled(counting, torch.zeros(1, 20, 100), (16, 16), frames_out=1, overlap=4, batch=5)
    assert sizes == [5, 3, 5, 3]


def test_a_batch_is_smaller_for_larger_tiles() -> None:
    cpu = torch.device("cpu")
    assert [tiles_at_once(patch, cpu) for patch in ((64, 64), (128, 128), (384, 384))] == [16, 4, 1]


def test_tiles_that_nobody_wants_are_not_run() -> None:
    calls: list[int] = []

    def counting(x: Tensor) -> Tensor:
        calls.append(x.shape[0])
        return x

    wanted = torch.zeros(64, 64, dtype=torch.bool)
    wanted[2, 2] = True
    run_tiled(counting, torch.zeros(1, 64, 64), (16, 16), frames_out=1, overlap=0, wanted=wanted)
    assert calls == [1]
