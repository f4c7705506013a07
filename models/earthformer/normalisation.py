"""Group normalisation, its activation and the convolution after it, a few frames at a time.

A map of 384x384 cells and 16 channels takes 120 MB for 13 frames: passing over all frames once per operation is bound
by memory and page faults, while one frame stays in the cache through all operations. What is kept for the backward
pass is the input alone; normalised and activated values are computed again from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK_BYTES = 8 << 20  # of one map; several of them fit a shared cache, and malloc reuses blocks of this size
Gradients = tuple[Tensor | None, ...]


class Normalisation(NamedTuple):
    """A group normalisation and its activation z if z > 0 else slope·z."""

    groups: int
    eps: float
    slope: float


def leaky_slope(activation: nn.Module) -> float | None:
    """The slope below zero of an activation that is linear on both sides, None for any other."""
    match activation:
        case nn.LeakyReLU():
            return float(activation.negative_slope)
        case nn.ReLU():
            return 0.0
        case nn.Identity():
            return 1.0
    return None


def frames_at_once(frames: int, frame_bytes: int, device: torch.device) -> int:
    """How many frames to take through an operation together; all of them off the CPU."""
    return max(1, CHUNK_BYTES // frame_bytes) if device.type == "cpu" else max(1, frames)


def in_chunks(step: Callable[[Tensor], Tensor], frames: Tensor, count: int) -> Tensor:
    """torch.cat([step(chunk) for chunk in frames.split(count)]) without holding the parts; for inference."""
    if len(frames) <= count:
        return step(frames)
    first = step(frames[:count])
    result = torch.empty_like(first[:1].expand(len(frames), *first.shape[1:]), memory_format=_format(first))
    result[:count] = first
    for start in range(count, len(frames), count):
        result[start : start + count] = step(frames[start : start + count])
    return result


def _format(frames: Tensor) -> torch.memory_format:
    channels_last = frames.ndim == 4 and frames.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def normalised_convolution(frames: Tensor, norm: nn.GroupNorm, slope: float, conv: nn.Conv2d | None = None) -> Tensor:
    """conv(activation(norm(frames))) of frames (N, C, H, W); without `conv` the activation's result."""
    weight, bias = (None, None) if conv is None else (conv.weight, conv.bias)
    device = frames.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        weight, bias = (None if tensor is None else tensor.to(dtype) for tensor in (weight, bias))
    how = Normalisation(norm.num_groups, norm.eps, slope)
    apply: Callable[..., Tensor] = _NormalisedConvolution.apply
    return apply(frames, norm.weight, norm.bias, weight, bias, how)


class _NormalisedConvolution(torch.autograd.Function):
    """Frames (N, C, H, W) → normalise, activate and, where a weight is given, convolve 3x3 with zero padding 1."""

    @staticmethod
    def forward(
        ctx: Any,
        frames: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        how: Normalisation,
    ) -> Tensor:
        frames = frames.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(frames, gamma, beta, weight)
        ctx.how, ctx.has_bias = how, bias is not None

        def step(chunk: Tensor) -> Tensor:
            active = _activated(chunk, gamma, beta, how)[0]
            return (
                active.to(chunk.dtype) if weight is None else F.conv2d(active.to(weight.dtype), weight, bias, padding=1)
            )

        return in_chunks(step, frames, _chunk(frames, weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        frames, gamma, beta, weight = ctx.saved_tensors
        _, _, _, weight_wanted, bias_wanted, _ = ctx.needs_input_grad
        result = torch.empty_like(frames)
        totals: list[Tensor | None] = [None] * 4  # gamma, beta, weight, bias
        for rows in _ranges(len(frames), _chunk(frames, weight)):
            active, mean, rstd = _activated(frames[rows], gamma, beta, ctx.how)
            outer = gradient[rows].contiguous(memory_format=torch.channels_last)
            if weight is not None:
                mask = [True, weight_wanted, bias_wanted and ctx.has_bias]
                outer, *of_conv = _convolution_backward(outer, active.to(weight.dtype), weight, mask)
            else:
                of_conv = [None, None]
            result[rows], *of_norm = _normalisation_backward(outer, frames[rows], active, mean, rstd, gamma, ctx.how)
            totals = [_sum(total, part) for total, part in zip(totals, (*of_norm, *of_conv), strict=True)]
        return result, *totals, None


def _activated(chunk: Tensor, gamma: Tensor, beta: Tensor, how: Normalisation) -> tuple[Tensor, Tensor, Tensor]:
    """Activated values in gamma's precision, and each group's mean and 1/σ."""
    n, channels, height, width = chunk.shape
    normal, mean, rstd = torch.native_group_norm(
        chunk.to(gamma.dtype), gamma, beta, n, channels, height * width, how.groups, how.eps
    )
    return normal if how.slope == 1 else F.leaky_relu_(normal, how.slope), mean, rstd


def _convolution_backward(
    gradient: Tensor, active: Tensor, weight: Tensor, mask: list[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    found: tuple[Tensor, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
        gradient, active, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
    )
    return found


def _normalisation_backward(
    gradient: Tensor,
    chunk: Tensor,
    active: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    how: Normalisation,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the input, gamma and beta.

    The input's is always asked for, and both maps have one layout: torch 2.13.0 ends the process by a segmentation
    fault on the CPU where a channels-last input's gradient is left out.
    """
    n, channels, height, width = chunk.shape
    gradient = gradient.to(gamma.dtype).contiguous(memory_format=torch.channels_last)
    if how.slope != 1:
        gradient = torch.ops.aten.leaky_relu_backward(gradient, active, how.slope, True)
    x = chunk.to(gamma.dtype).contiguous(memory_format=torch.channels_last)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm_backward(
        gradient, x, mean, rstd, gamma, n, channels, height * width, how.groups, [True, True, True]
    )
    return found


def _chunk(frames: Tensor, weight: Tensor | None) -> int:
    channels = frames.shape[1] if weight is None else max(weight.shape[:2])
    cells = frames.shape[2] * frames.shape[3]
    return frames_at_once(len(frames), channels * cells * frames.element_size(), frames.device)


def _ranges(length: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, length, step))


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    return part if total is None else total.add_(part) if part is not None else total
