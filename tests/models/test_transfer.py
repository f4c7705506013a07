"""Trained weights move to another geometry by stated rules; what has no rule is an error that names it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from builders.networks import batch_of, flow_anchored_config, small_architecture, small_config
from models.checkpoint import CheckpointError
from models.configuration import ForecasterConfig, build_network
from models.transfer import TransferReport, transfer_weights
from models.transfer_geometry import BiasGeometry, stretch, stretch_bias

TIME_TABLE = "encoder.blocks.0.0.attn_l.0.relative_position_bias_table"
CROSS_TABLE = "decoder.cross_blocks.0.0.attn_l.0.relative_position_bias_table"


def varied(**changes: Any) -> ForecasterConfig:
    """`small_config` with other fields of its architecture."""
    architecture = small_architecture(**changes)
    return small_config(architecture=architecture, t_in=architecture.input_shape[0], t_out=architecture.target_shape[0])


def move(
    parent: ForecasterConfig, child: ForecasterConfig
) -> tuple[dict[str, Tensor], torch.nn.Module, TransferReport]:
    """Weights of a random parent, the child's network after the transfer, and the report."""
    torch.manual_seed(1)
    state = build_network(parent).state_dict()
    torch.manual_seed(2)
    network = build_network(child)
    return state, network, transfer_weights(parent, state, child, network)


def test_an_equal_network_keeps_every_bit() -> None:
    state, network, report = move(small_config(), small_config())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert str(report) == f"{len(state)} kept, 0 adapted, 0 fresh, 0 dropped"
    assert report.context == {}


def test_another_grid_and_other_lengths_adapt_positions_and_nothing_else() -> None:
    parent, child = small_config(), small_config().resized(t_in=5, t_out=2, patch=(24, 32))
    state, network, report = move(parent, child)
    adapted = {change.key for change in report.adapted}
    assert all(key.endswith(("relative_position_bias_table", "_embed.weight")) for key in adapted)
    assert report.fresh == report.dropped == ()
    assert {*report.kept, *adapted} == set(network.state_dict())
    assert all(torch.equal(network.state_dict()[key], state[key]) for key in report.kept)
    assert report.context == {"t_in": "3 → 5", "t_out": "3 → 2", "patch": "(16, 16) → (24, 32)"}
    y = network(batch_of(child.architecture))
    assert y.shape == (2, 2, 24, 32, 1)
    assert torch.isfinite(y).all()


def test_position_embeddings_are_stretched_end_to_end() -> None:
    three, five = torch.tensor([[0.0], [1.0], [4.0]]), [0.0, 0.5, 1.0, 2.5, 4.0]
    assert stretch(three, [(3,)], [(5,)]).flatten().tolist() == five
    assert stretch(torch.tensor(five)[:, None], [(5,)], [(3,)]).flatten().tolist() == [0.0, 1.0, 4.0]


def test_the_frames_of_an_extrapolation_are_stretched_apart_from_the_context() -> None:
    seen = torch.tensor([[0.0], [1.0], [10.0], [20.0], [30.0]])
    assert stretch(seen, [(2, 3)], [(3, 2)]).flatten().tolist() == [0.0, 0.5, 1.0, 10.0, 30.0]
    assert stretch(seen[:2], [(2,)], [(2, 2)]).flatten().tolist() == [0.0, 1.0, 1.0, 1.0]
    assert stretch(seen, [(2, 3)], [(2,)]).flatten().tolist() == [0.0, 1.0]


def test_an_embedding_of_the_plane_is_stretched_along_both_axes() -> None:
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")
    plane = (10 * rows + columns).reshape(-1, 1)
    wider = stretch(plane, [(3,), (4,)], [(5,), (7,)]).reshape(5, 7)
    expected = 10 * torch.linspace(0, 2, 5)[:, None] + torch.linspace(0, 3, 7)
    assert torch.allclose(wider, expected)


def test_offsets_are_stretched_about_zero_as_far_as_they_were_trained() -> None:
    """Four rows of which the outermost never occur: trained from -1 to 2 for a cuboid of 4."""
    table = torch.tensor([-999.0, -999.0, -10.0, 0.0, 5.0, 10.0, 999.0])[:, None]
    old = BiasGeometry((4, 1, 1), (1, 0, 0), (2, 0, 0))
    longer = BiasGeometry((6, 1, 1), (2, 0, 0), (4, 0, 0))
    expected = [-10.0, -10.0, -10.0, -10.0, -5.0, 0.0, 2.5, 5.0, 7.5, 10.0, 10.0]
    assert stretch_bias(table, old, longer).flatten().tolist() == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9))
def test_a_stretched_table_is_symmetric_where_the_trained_one_was(before: int, now: int) -> None:
    old, new = (BiasGeometry((b, 1, b), (b - 1, 0, b - 1), (b - 1, 0, b - 1)) for b in (before, now))
    side = torch.rand(2 * before - 1, 1, 2 * before - 1, 1, generator=torch.Generator().manual_seed(before))
    table = (side + side.flip(0, 2)).reshape(-1, 1)
    out = stretch_bias(table, old, new).reshape(2 * now - 1, 2 * now - 1)
    assert torch.allclose(out, out.flip(0, 1), atol=1e-6)
    assert out[now - 1, now - 1] == table.reshape(2 * before - 1, 2 * before - 1)[before - 1, before - 1]
    assert table.min() - 1e-6 <= out.min()
    assert out.max() <= table.max() + 1e-6


def test_a_cross_attention_keeps_the_sides_of_query_and_memory_apart() -> None:
    parent, child = small_config(), small_config().resized(t_in=3, t_out=5, patch=(16, 16))
    state, network, _ = move(parent, child)
    before, now = state[CROSS_TABLE], network.state_dict()[CROSS_TABLE]
    assert (len(before), len(now)) == (11, 15)
    assert torch.equal(now[7], before[5])  # offset 0
    assert torch.equal(now[5], before[3])  # two frames of memory ahead of the query: the memory is as long as it was
    assert torch.equal(now[11], before[7])  # the last query sees the first frame of memory
    assert torch.allclose(now[9], before[6])  # half way


def test_more_input_channels_share_what_one_did() -> None:
    state, network, report = move(small_config(), varied(input_shape=(3, 16, 16, 3)))
    (change,) = report.adapted
    assert change.rule == "mean over 1 input channels for each of 3"
    trained, moved = state[change.key], network.state_dict()[change.key]
    assert torch.allclose(moved.sum(1), trained.sum(1), atol=1e-6)
    parent = build_network(small_config())
    parent.load_state_dict(state)
    x = batch_of(small_architecture())
    with torch.no_grad():
        same = network.eval()(x.expand(-1, -1, -1, -1, 3))
        assert torch.allclose(same, parent.eval()(x), atol=1e-5)


def test_every_output_channel_begins_as_the_mean_of_the_trained_ones() -> None:
    parent, child = varied(target_shape=(3, 16, 16, 2)), varied(target_shape=(3, 16, 16, 3))
    state, network, report = move(parent, child)
    assert {change.key for change in report.adapted} == {"dec_final_proj.weight", "dec_final_proj.bias"}
    weight = network.state_dict()["dec_final_proj.weight"]
    assert all(torch.allclose(row, state["dec_final_proj.weight"].mean(0)) for row in weight)


def test_another_anchor_begins_with_a_fresh_output() -> None:
    _, network, report = move(small_config(), flow_anchored_config())
    assert {change.key for change in report.fresh} == {"dec_final_proj.weight", "dec_final_proj.bias"}
    assert report.fresh[0].rule == "anchor none → extrapolation"
    assert float(network.state_dict()["network.dec_final_proj.weight"].abs().max()) == 0.0
    x = batch_of(flow_anchored_config().architecture)
    assert torch.equal(network(x), x[:, -3:])  # it begins at its anchor


def test_global_vectors_that_were_not_trained_begin_fresh_and_trained_ones_can_be_left() -> None:
    none, two, three = (varied(num_global_vectors=count) for count in (0, 2, 3))
    _, _, grown = move(none, two)
    assert "init_global_vectors" in {change.key for change in grown.fresh}
    assert grown.dropped == ()
    _, _, shrunk = move(two, none)
    assert {change.key for change in shrunk.dropped} == {change.key for change in grown.fresh}
    state, network, report = move(two, three)
    assert [change.key for change in report.adapted] == ["init_global_vectors"]
    assert torch.equal(network.state_dict()["init_global_vectors"][:2], state["init_global_vectors"])


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    (
        {"base_units": 32, "initial_downsample_stack_conv_dim_list": (32,)},
        r"init_global_vectors: expected \(2, 32\); got \(2, 16\)",
    ),
    ({"num_heads": 4}, r"relative_position_bias_table: expected \(5, 4\); got \(5, 2\)"),
    ({"enc_depth": (2, 1)}, r"encoder\.blocks\.0\.1\.attn_l\.0\.qkv\.weight: expected \(48, 16\); got no such key"),
    ({"gated_ffn": True}, r"ffn_1_gate\.weight: expected \(64, 16\); got no such key"),
    ({"enc_attn_patterns": ("full", "axial")}, r"another attention pattern"),
    ({"pos_embed_type": "t+hw"}, r"HW_embed\.weight: expected \(64, 16\); got no such key"),
    (
        {"initial_downsample_stack_conv_downscale_list": (4,)},
        r"reduction\.weight: expected \(16, 256\); got \(16, 64\)",
    ),
]


@pytest.mark.parametrize(("changes", "message"), UNKNOWN)
def test_what_is_not_geometry_is_refused_with_the_key_and_both_shapes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        move(small_config(), varied(**changes))


def test_the_report_is_a_json_document() -> None:
    import json

    _, _, report = move(small_config(), small_config().resized(t_in=4, t_out=3, patch=(16, 16)))
    told = json.loads(json.dumps(report.as_dict()))
    assert told["summary"] == str(report)
    (first, *_) = told["adapted"]
    assert {"key", "parent", "child", "rule"} == first.keys()
