"""Cuboid decomposition: nothing is lost, and who may see whom."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.earthformer.cuboids import (
    Axis,
    CuboidLayout,
    Padding,
    attention_mask,
    masked_softmax,
    relative_position_index,
)

CPU = torch.device("cpu")
SIZE = st.integers(1, 7)
TRIPLE = st.tuples(SIZE, SIZE, SIZE)
AXIS: st.SearchStrategy[Axis] = st.sampled_from(["l", "d"])
PADDING: st.SearchStrategy[Padding] = st.sampled_from(["zeros", "ignore"])


@st.composite
def layouts(draw: st.DrawFn) -> CuboidLayout:
    cuboid = draw(TRIPLE)
    shift = tuple(draw(st.integers(0, side - 1)) for side in cuboid)
    strategy = draw(st.tuples(AXIS, AXIS, AXIS))
    return CuboidLayout.reduced(draw(TRIPLE), cuboid, shift, strategy, draw(PADDING))


@settings(max_examples=200, deadline=None)
@given(layouts())
def test_joining_the_cuboids_of_a_volume_gives_the_volume_back(layout: CuboidLayout) -> None:
    t, h, w = layout.size
    x = torch.arange(2.0 * t * h * w * 3).reshape(2, t, h, w, 3)
    tokens = layout.split(x)
    assert tokens.shape[2] == layout.volume
    assert tokens.shape[1] * layout.volume == torch.tensor(layout.padded).prod()
    assert torch.equal(layout.join(tokens), x)


@settings(max_examples=100, deadline=None)
@given(layouts())
def test_the_mask_is_symmetric_and_every_real_token_sees_itself(layout: CuboidLayout) -> None:
    allowed = attention_mask(layout, layout, CPU)
    if allowed is None:
        assert not any(layout.shift)
        return
    assert torch.equal(allowed, allowed.transpose(1, 2))
    real = layout.real(CPU)
    itself = allowed.diagonal(dim1=1, dim2=2)
    assert torch.equal(itself, torch.ones_like(itself) if real is None else real)


@settings(max_examples=100, deadline=None)
@given(layouts())
def test_a_shifted_window_never_joins_the_two_ends_of_an_axis(layout: CuboidLayout) -> None:
    """Two tokens of one cuboid that see each other are nearer than the cuboid is long."""
    t, h, w = layout.padded
    grid = torch.stack(torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij"), dim=-1)
    full = CuboidLayout((t, h, w), layout.cuboid, layout.shift, layout.strategy, layout.padding)
    place = full.split(grid[None])[0]
    allowed = attention_mask(full, full, CPU)
    if allowed is None:
        return
    distance = (place[:, :, None] - place[:, None, :]).abs()
    for axis, kind in enumerate(full.strategy):
        if kind == "l":
            assert int(distance[..., axis][allowed].max()) < full.cuboid[axis]


def test_dilated_cuboids_take_every_nth_cell() -> None:
    layout = CuboidLayout.reduced((1, 6, 1), (1, 2, 1), (0, 0, 0), ("l", "d", "l"), "zeros")
    tokens = layout.split(torch.arange(6.0).reshape(1, 1, 6, 1, 1))
    assert tokens[0, :, :, 0].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_shifted_window_cuts_the_axis_where_it_wraps() -> None:
    layout = CuboidLayout.reduced((1, 1, 4), (1, 1, 2), (0, 0, 1), ("l", "l", "l"), "zeros")
    tokens = layout.split(torch.arange(4.0).reshape(1, 1, 1, 4, 1))
    assert tokens[0, :, :, 0].tolist() == [[1, 2], [3, 0]]
    allowed = attention_mask(layout, layout, CPU)
    assert allowed is not None
    assert allowed.tolist() == [[[True, True], [True, True]], [[True, False], [False, True]]]


def test_padded_keys_get_no_weight_and_padded_queries_get_zero() -> None:
    layout = CuboidLayout.reduced((1, 1, 3), (1, 1, 2), (0, 0, 0), ("l", "l", "l"), "ignore")
    allowed = attention_mask(layout, layout, CPU)
    weights = masked_softmax(torch.zeros(2, 2, 2), allowed)
    assert weights.tolist() == [[[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize("padding", ["zeros", "nearest"])
def test_padding_that_takes_part_needs_no_mask(padding: Padding) -> None:
    layout = CuboidLayout.reduced((2, 3, 3), (2, 2, 2), (0, 0, 0), ("l", "l", "l"), padding)
    assert attention_mask(layout, layout, CPU) is None


def test_relative_positions_are_told_apart_exactly() -> None:
    index = relative_position_index((2, 3, 2), 12, 12, CPU)
    offsets = {}
    for i in range(12):
        for j in range(12):
            offset = (i // 6 - j // 6, i // 2 % 3 - j // 2 % 3, i % 2 - j % 2)
            assert offsets.setdefault(offset, int(index[i, j])) == int(index[i, j])
    assert sorted(offsets.values()) == list(range(3 * 5 * 3))
