"""The fast convolutions of Earthformer's stems give the plain ones' values and gradients."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.earthformer import normalisation
from models.earthformer.execution import Execution, executed
from models.earthformer.layers import Activation, Upsample3DLayer
from models.earthformer.normalisation import in_chunks, leaky_slope
from models.earthformer.stems import (
    FinalDecoder,
    FinalStackUpsamplingDecoder,
    InitialEncoder,
    InitialStackPatchMergingEncoder,
    convolutions,
)
from models.earthformer.upsampling import double_kernel, double_pays, upsampled_kernel, whole_factors

TOLERANCE = 1e-12


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scattered(module: nn.Module) -> nn.Module:
    """`module` in float64 with no parameter at 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    return module


def value_and_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y: Tensor = module(x)
    weights = values(*y.shape, seed=2)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])]


def assert_close(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= TOLERANCE * max(scale, float(expected.abs().max()))


def assert_fast_is_plain(module: nn.Module, x: Tensor) -> None:
    """Values, gradients of the input and of all parameters, and values at inference."""
    scattered(module)
    with executed(module, Execution.PLAIN):
        expected = value_and_gradients(module, x)
    for found, wanted in zip(value_and_gradients(module, x), expected, strict=True):
        assert_close(found, wanted, scale=10)
    with torch.no_grad():
        assert_close(module(x), expected[0])


@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    factors=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel_size=st.integers(1, 5),
)
def test_upsampling_by_whole_factors_is_one_transposed_convolution(
    size: tuple[int, int], factors: tuple[int, int], kernel_size: int
) -> None:
    target = (2, size[0] * factors[0], size[1] * factors[1])
    assert_fast_is_plain(Upsample3DLayer(3, 2, target, kernel_size=kernel_size), values(1, 2, *size, 3))


def test_upsampling_by_a_fraction_is_done_as_written() -> None:
    assert whole_factors((5, 7), (9, 13)) is None
    assert whole_factors((5, 7), (10, 21)) == (2, 3)
    assert_fast_is_plain(Upsample3DLayer(3, 2, (2, 9, 13)), values(1, 2, 5, 7, 3))


def test_a_kernel_of_ones_counts_how_often_a_cell_is_seen() -> None:
    kernel = upsampled_kernel(torch.ones(1, 1, 3, 3), (1, 3))
    assert kernel.shape == (1, 1, 3, 5)
    assert kernel[0, 0, 0].tolist() == [1, 2, 3, 2, 1]


def test_the_double_kernel_takes_the_multiplications_that_the_specification_names() -> None:
    first, second = nn.Conv2d(64, 64, 3), nn.Conv2d(64, 16, 3)
    kernel = double_kernel(first.weight, second.weight, (3, 3))
    assert kernel.shape == (64, 16, 7, 7)
    assert kernel[0, 0].numel() / 9 == pytest.approx(5.44, abs=0.005)  # for a cell of the upsampled map
    assert double_pays(first, second, (3, 3))
    assert not double_pays(first, first, (1, 1))
    assert not double_pays(nn.Conv2d(64, 64, 5), second, (3, 3))


@given(size=st.tuples(st.integers(1, 5), st.integers(1, 5)), scales=st.tuples(st.integers(2, 3), st.integers(1, 3)))
def test_two_convolutions_after_upsampling_are_one_up_to_the_border(
    size: tuple[int, int], scales: tuple[int, int]
) -> None:
    shapes, h, w = [], *size
    for scale, dim in zip(scales, (8, 4), strict=True):
        h, w = h * scale, w * scale
        shapes.append((2, h, w, dim))
    assert_fast_is_plain(FinalStackUpsamplingDecoder(shapes, 8, (2, 1)), values(1, 2, *size, 8))


def test_the_border_is_corrected_where_the_factors_differ() -> None:
    assert double_pays(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 4, 3), (2, 3))
    assert_fast_is_plain(FinalStackUpsamplingDecoder([(2, 6, 12, 4)], 16, (1,)), values(1, 2, 3, 4, 16))


@pytest.mark.parametrize("activation", ["leaky", "relu", "gelu", "identity"])
def test_the_stems_are_the_plain_ones_for_every_activation(activation: Activation) -> None:
    stack = InitialStackPatchMergingEncoder(2, 1, (8, 16), (3, 2), (2, 3), activation=activation)
    assert_fast_is_plain(stack, values(2, 3, 11, 13, 1))
    assert_fast_is_plain(InitialEncoder(3, 32, (1, 2, 1), activation=activation), values(2, 3, 5, 4, 3))
    assert_fast_is_plain(FinalDecoder((3, 6, 4), 32, activation=activation), values(2, 3, 3, 4, 32))


def test_stems_without_convolutions_and_merging_over_time_stay_as_they_are() -> None:
    assert_fast_is_plain(InitialEncoder(16, 16, (1, 2, 2), num_conv_layers=0), values(1, 2, 5, 5, 16))
    assert_fast_is_plain(InitialEncoder(2, 16, (2, 2, 2), num_conv_layers=1), values(1, 4, 6, 6, 2))
    assert_fast_is_plain(FinalDecoder((2, 6, 6), 16, num_conv_layers=0), values(1, 2, 3, 3, 16))
    assert_fast_is_plain(FinalStackUpsamplingDecoder([(2, 6, 6, 8)], 8, (0,)), values(1, 2, 3, 3, 8))


def test_frames_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "CHUNK_BYTES", 2 * 8 * 11 * 13 * 8)  # two frames of the widest map
    stack = InitialStackPatchMergingEncoder(2, 1, (8, 8), (3, 2), (2, 2))
    assert_fast_is_plain(stack, values(1, 5, 11, 13, 1))
    assert_fast_is_plain(FinalStackUpsamplingDecoder([(5, 11, 13, 8)], 8, (2,)), values(1, 5, 11, 13, 8))
    seen: list[int] = []

    def step(chunk: Tensor) -> Tensor:
        seen.append(len(chunk))
        return 2 * chunk

    frames = values(5, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    result = in_chunks(step, frames, 2)
    assert seen == [2, 2, 1]
    assert torch.equal(result, 2 * frames)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_kept_kernels_follow_their_weights() -> None:
    decoder = scattered(FinalStackUpsamplingDecoder([(2, 6, 6, 4)], 16, (1,))).eval()
    x = values(1, 2, 3, 3, 16)
    with torch.no_grad():
        before = decoder(x)
        for parameter in decoder.parameters():
            parameter.mul_(1.5)
        after = decoder(x)
        with executed(decoder, Execution.PLAIN):
            assert_close(after, decoder(x))
    assert not torch.allclose(before, after)


def test_what_is_kept_for_the_backward_pass_is_the_convolutions_results() -> None:
    def kept(execution: Execution) -> int:
        block = convolutions(8, 8, 3, 2, "leaky")
        block.execution = execution
        frames = torch.randn(2, 8, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.shape == frames.shape:
                storages[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = block(frames)
        result.sum().backward()
        return len(storages)

    assert kept(Execution.FAST) == 1 + 3  # the input and each convolution's result
    assert kept(Execution.PLAIN) >= 1 + 3 * 3 - 1  # also normalised and activated values


def test_autocast_stays_close_and_reaches_every_parameter() -> None:
    decoder = FinalStackUpsamplingDecoder([(2, 8, 8, 16), (2, 24, 24, 8)], 32, (2, 2))
    x = values(1, 2, 4, 4, 32).float()
    with torch.no_grad():
        expected = decoder(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoder(x)
    found.float().square().mean().backward()
    assert float((found.detach().float() - expected).abs().max()) < 0.1 * float(expected.abs().max())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in decoder.parameters())


def test_leaky_slopes_are_of_activations_with_two_straight_sides() -> None:
    assert leaky_slope(nn.LeakyReLU(0.1)) == 0.1
    assert leaky_slope(nn.ReLU()) == 0.0
    assert leaky_slope(nn.Identity()) == 1.0
    assert leaky_slope(nn.GELU()) is None


FROZEN = """
import torch
from models.earthformer.stems import convolutions
for execution in ("fast", "plain"):
    block = convolutions(4, 8, 2, 2, "leaky")
    block.execution = type(block.execution)(execution)
    for frozen in (block[0], block[1], block[3]):
        frozen.requires_grad_(False)
    frames = torch.rand(6, 16, 16, 4).permute(0, 3, 1, 2)
    block(frames).square().mean().backward()
    assert block[4].weight.grad.abs().sum() > 0
    assert block[3].weight.grad is None
"""


def test_group_normalisation_survives_channels_last_memory_and_frozen_convolutions() -> None:
    """In a process of its own: where the layout rule is broken, a segmentation fault ends it."""
    run = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
