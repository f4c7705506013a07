"""The fast attention and feed-forward network of Earthformer give the plain ones' values and gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.configuration import build_network
from models.earthformer.attention import CuboidSelfAttentionLayer
from models.earthformer.cross_attention import CuboidCrossAttentionLayer
from models.earthformer.execution import Execution, TwoPathModule, executed, set_execution
from models.earthformer.feed_forward import PositionwiseFFN
from models.earthformer.presets import preset_config
from models.earthformer.products import dropout, keep_mask, keep_scale, linear, linear_gradients
from models.earthformer.softmax_attention import Extra, _attend_fused, attend

TOLERANCE = 1e-11
SIZE = (3, 5, 6)
GLOBAL: dict[str, Any] = {"use_global_vector": True}
SEPARATE = {**GLOBAL, "separate_global_qkv": True, "use_global_self_attn": True}
SELF_CASES: dict[str, dict[str, Any]] = {
    "time": {"cuboid_size": (3, 1, 1)},
    "rows": {"cuboid_size": (1, 5, 1)},
    "columns with globals": {"cuboid_size": (1, 1, 6), **GLOBAL},
    "time, globals of their own": {"cuboid_size": (3, 1, 1), **SEPARATE},
    "wide globals": {"cuboid_size": (1, 5, 1), **SEPARATE, "global_dim_ratio": 2},
    "globals that see one another": {"cuboid_size": (1, 1, 6), **GLOBAL, "use_global_self_attn": True},
    "whole volume": {"cuboid_size": SIZE, **SEPARATE},
    "shifted": {"cuboid_size": (2, 2, 3), "shift_size": (1, 1, 1), **SEPARATE},
    "dilated": {"cuboid_size": (1, 2, 3), "strategy": ("l", "d", "d"), **GLOBAL},
    "padded with zeros": {"cuboid_size": (2, 2, 4), "padding_type": "zeros", **SEPARATE},
    "padded to the nearest": {"cuboid_size": (2, 3, 4), "padding_type": "nearest", **SEPARATE},
    "quirk of the mask repaired": {"cuboid_size": (2, 2, 4), **SEPARATE, "reference_global_mask": False},
    "biased projections": {"cuboid_size": (2, 2, 4), "padding_type": "zeros", "qkv_bias": True, **SEPARATE},
    "biased, shared": {"cuboid_size": (2, 3, 4), "padding_type": "nearest", "qkv_bias": True, **GLOBAL},
    "bare": {"cuboid_size": (2, 2, 4), "use_relative_pos": False, "use_final_proj": False, "norm_layer": "rms_norm"},
}
CROSS_CASES: dict[str, dict[str, Any]] = {
    "one column": {},
    "globals": {"use_global_vector": True},
    "globals of their own": {"use_global_vector": True, "separate_global_qkv": True, "global_dim_ratio": 2},
    "shifted squares": {"cuboid_hw": (2, 2), "shift_hw": (1, 1), "use_global_vector": True},
    "cuboids whose memory is all padding": {"n_temporal": 4, "cuboid_hw": (2, 2), "qkv_bias": True},
    "dilated, last frames": {"cuboid_hw": (2, 2), "strategy": ("l", "d", "d"), "cross_last_n_frames": 2},
    "padded with zeros": {"cuboid_hw": (2, 4), "padding_type": "zeros", "qkv_bias": True},
}


def scattered(module: nn.Module) -> nn.Module:
    """`module` in float64 with no parameter at 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return module


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outcome(module: nn.Module, way: str, *inputs: Tensor) -> dict[str, Tensor]:
    """Results of `module` and the gradients of all inputs and parameters."""
    module.zero_grad()
    sources = [x.clone().requires_grad_() for x in inputs]
    with executed(module, way):
        results = module(*sources)
    results = [y for y in (results if isinstance(results, tuple) else (results,)) if y is not None]
    sum((y * values(*y.shape, seed=9)).sum() for y in results).backward()
    found = {f"result {index}": y.detach() for index, y in enumerate(results)}
    found |= {f"input {index}": x.grad for index, x in enumerate(sources) if x.grad is not None}
    return found | {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def check_equal(plain: dict[str, Tensor], fast: dict[str, Tensor]) -> None:
    # A key's bias shifts all scores of a softmax alike: no gradient, or one of rounding errors only.
    assert plain.keys() == fast.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(fast[name], expected, rtol=TOLERANCE, atol=TOLERANCE * 100, msg=lambda m: name + m)  # noqa: B023


@pytest.mark.parametrize("case", SELF_CASES)
def test_self_attention_is_the_same_both_ways(case: str) -> None:
    layer = scattered(CuboidSelfAttentionLayer(8, 2, **SELF_CASES[case])).eval()
    inputs = [values(2, *SIZE, 8)]
    if layer.use_global_vector:
        inputs.append(values(2, 3, 8 * SELF_CASES[case].get("global_dim_ratio", 1), seed=1))
    check_equal(outcome(layer, "plain", *inputs), outcome(layer, "fast", *inputs))


@pytest.mark.parametrize("case", CROSS_CASES)
def test_cross_attention_is_the_same_both_ways(case: str) -> None:
    layer = scattered(CuboidCrossAttentionLayer(8, 2, max_temporal_relative=9, **CROSS_CASES[case])).eval()
    inputs = [values(2, 3, 4, 6, 8), values(2, 5, 4, 6, 8, seed=1)]
    if layer.use_global_vector:
        inputs.append(values(2, 3, 8 * CROSS_CASES[case].get("global_dim_ratio", 1), seed=2))
    check_equal(outcome(layer, "plain", *inputs), outcome(layer, "fast", *inputs))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_feed_forward_is_the_same_both_ways(gated: bool, pre_norm: bool) -> None:
    network = scattered(PositionwiseFFN(8, 32, gated_proj=gated, pre_norm=pre_norm)).eval()
    x = values(2, *SIZE, 8)
    check_equal(outcome(network, "plain", x), outcome(network, "fast", x))


def test_a_training_step_of_a_whole_network_is_the_same_both_ways() -> None:
    config = preset_config("earthformer/small-64").architecture
    network = scattered(build_network(config)).eval()
    x = values(1, *config.input_shape)
    plain, fast = outcome(network, "plain", x), outcome(network, "fast", x)
    largest = max(float(g.abs().max()) for g in plain.values())
    for name, expected in plain.items():
        torch.testing.assert_close(fast[name], expected, rtol=1e-7, atol=1e-12 * largest, msg=name)


@pytest.mark.parametrize("with_extra", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_the_kernel_of_other_devices_gives_the_same(with_extra: bool, with_mask: bool) -> None:
    q, k, v = (values(2, 2, 3, 4, 8, seed=seed).requires_grad_() for seed in range(3))
    bias = values(2, 4, 4, seed=3).requires_grad_()
    extra = Extra(values(2, 2, 3, 4, 5, seed=4), values(2, 2, 5, 8, seed=5)) if with_extra else None
    allowed = values(3, 4, 4, seed=6) > 0 if with_mask else None
    if allowed is not None:
        allowed[0, 0] = False
    ours = attend(q, k, v, bias, scale=0.3, extra=extra, allowed=allowed)
    theirs = _attend_fused(q, k, v, bias, 0.3, extra, allowed, 0.0)
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    for one, other in zip(
        torch.autograd.grad(ours.square().sum(), (q, k, v, bias)),
        torch.autograd.grad(theirs.square().sum(), (q, k, v, bias)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


def test_gradients_through_dropped_weights_are_those_of_finite_differences() -> None:
    q, k, v = (values(1, 2, 2, 3, 4, seed=seed).requires_grad_() for seed in range(3))
    bias = values(2, 3, 3, seed=3).requires_grad_()
    scores, vectors = values(1, 2, 2, 3, 2, seed=4).requires_grad_(), values(1, 2, 2, 4, seed=5).requires_grad_()

    def attention(*parts: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same weights are dropped each time
        q, k, v, bias, scores, vectors = parts
        return attend(q, k, v, bias, scale=0.5, extra=Extra(scores, vectors), drop=0.4)

    assert torch.autograd.gradcheck(attention, (q, k, v, bias, scores, vectors))


def test_a_bias_is_never_written_to() -> None:
    bias = values(1, 4, 4)
    before = bias.clone()
    q = values(1, 1, 1, 4, 8)
    attend(q, q, q, bias, scale=1.0)
    assert torch.equal(bias, before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Products are taken as convolutions only then."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_linear_as_a_convolution_equals_the_product() -> None:
    x, weight, bias = (values(*shape).float() for shape in ((3, 40, 64, 32), (16, 32), (16,)))
    assert x.numel() >= 65536
    grad = values(3, 40, 64, 16, seed=1).float()
    torch.testing.assert_close(linear(x, weight, bias), nn.functional.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
    d_x, d_weight, d_bias = linear_gradients(grad, x, weight)
    torch.testing.assert_close(d_x, grad @ weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(d_weight, grad.flatten(0, -2).T @ x.flatten(0, -2), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(d_bias, grad.flatten(0, -2).sum(0), rtol=1e-4, atol=1e-3)


def test_dropout_keeps_the_mean_and_the_wanted_share_and_repeats_with_the_seed() -> None:
    x = torch.ones(1_000_003)
    torch.manual_seed(5)
    dropped = dropout(x, 0.1, training=True)
    kept = dropped > 0
    assert abs(float(kept.float().mean()) - 0.9) < 0.0015  # five standard deviations
    assert torch.equal(dropped[kept], torch.full_like(dropped[kept], keep_scale(0.1)))
    torch.manual_seed(5)
    assert torch.equal(keep_mask(x, 0.1), kept)
    assert dropout(x, 0.1, training=False) is x
    assert not dropout(x, 1.0, training=True).any()


def test_the_ways_share_their_parameters_and_the_block_restores_the_choice() -> None:
    network = build_network(preset_config("earthformer/small-64").architecture)
    keys = list(network.state_dict())
    set_execution(network, "plain")
    assert list(network.state_dict()) == keys
    with executed(network, Execution.FAST):
        assert not any(m.is_plain for m in network.modules() if isinstance(m, TwoPathModule))
    assert all(m.is_plain for m in network.modules() if isinstance(m, TwoPathModule))
    with pytest.raises(ValueError, match="fastest"):
        set_execution(network, "fastest")


def doubled(layer: nn.Module) -> None:
    """Double every weight in place, as an optimizer would."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)


def loaded(layer: nn.Module) -> None:
    layer.load_state_dict({name: tensor * 3 for name, tensor in layer.state_dict().items()})


def assigned(layer: nn.Module) -> None:
    layer.load_state_dict({name: tensor * 3 for name, tensor in layer.state_dict().items()}, assign=True)


def written_through_data(layer: nn.Module) -> None:
    layer.train()
    for parameter in layer.parameters():
        parameter.data.mul_(2)
    layer.eval()


@pytest.mark.parametrize("change", [doubled, loaded, assigned, written_through_data, nn.Module.float])
def test_tensors_kept_at_inference_follow_the_weights(change: Any) -> None:
    layer = scattered(CuboidSelfAttentionLayer(8, 2, (3, 1, 1))).eval()
    x = values(1, *SIZE, 8)
    with torch.no_grad():
        layer(x)
        assert layer._kept
        change(layer)
        x = x.to(layer.qkv.weight.dtype)
        fresh = copy.deepcopy(layer)
        assert fresh._kept is None
        assert torch.equal(layer(x)[0], fresh(x)[0])
        with executed(layer, "plain"):
            torch.testing.assert_close(layer(x)[0], fresh(x)[0], rtol=1e-4, atol=1e-5)


def test_the_decoder_query_is_kept_until_its_table_changes() -> None:
    network = build_network(preset_config("earthformer/small-64").architecture).eval()
    memory = torch.zeros(1, *network.config.level_sizes[-1], network.config.units[-1])
    with torch.no_grad():
        first = network.initial_query(memory)
        assert network.initial_query(memory).data_ptr() == first.data_ptr()
        network.dec_pos_embed.T_embed.weight.add_(1)
        second = network.initial_query(memory)
    assert not torch.equal(first, second)
    with executed(network, "plain"):
        torch.testing.assert_close(network.initial_query(memory), second)


def test_kept_tensors_serve_inference_only() -> None:
    layer = scattered(CuboidSelfAttentionLayer(8, 2, (3, 1, 1))).eval()
    with torch.inference_mode():
        for way in ("plain", "fast"):
            with executed(layer, way):
                layer(values(1, *SIZE, 8))
    table = layer.relative_position_bias_table
    assert table is not None
    for way in ("plain", "fast"):
        table.grad = None
        with executed(layer, way):
            layer(values(1, *SIZE, 8))[0].square().sum().backward()
        assert table.grad is not None
        assert table.grad.abs().sum() > 0
