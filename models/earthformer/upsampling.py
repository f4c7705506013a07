"""Nearest upsampling by whole factors followed by convolution, as one transposed convolution on the small map.

A kernel of k taps after upsampling by s sees few different cells: as a transposed convolution of stride s it has
s + k - 1 taps, (s + k - 1)² / s² multiply-adds a pixel instead of k², and the upsampled map is never written. Two
3x3 convolutions with nothing between them make one of s + 4 taps. Both are algebra, not approximation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Factors = tuple[int, int]
Edges = tuple[Tensor, Tensor, Tensor, Tensor]


def whole_factors(size: Sequence[int], target: Sequence[int]) -> Factors | None:
    """target / size along H and W where both are whole numbers."""
    (height, width), (to_height, to_width) = size, target
    if to_height % height or to_width % width:
        return None
    return to_height // height, to_width // width


def upsampled_kernel(weight: Tensor, factors: Factors) -> Tensor:
    """Kernel (out, in, k, k) after nearest upsampling → transposed kernel (in, out, s_h + k - 1, s_w + k - 1)."""
    s_h, s_w = factors
    padded = F.pad(weight.flip(2, 3), (s_w - 1, s_w - 1, s_h - 1, s_h - 1))
    return F.avg_pool2d(padded, (s_h, s_w), stride=1, divisor_override=1).transpose(0, 1)


def upsampled_convolution(frames: Tensor, kernel: Tensor, bias: Tensor | None, factors: Factors, taps: int) -> Tensor:
    """Frames (N, C, h, w) upsampled by `factors`, then convolved with `taps` taps and zero padding taps // 2.

    `kernel` is `upsampled_kernel` of the convolution.
    """
    crop = taps - 1 - taps // 2
    return F.conv_transpose2d(frames, kernel, bias, stride=factors, padding=crop)


def double_kernel(first: Tensor, second: Tensor, factors: Factors) -> Tensor:
    """Transposed kernel (in, out, s_h + 4, s_w + 4) of upsampling and the 3x3 kernels `first`, then `second`."""
    with torch.autocast(first.device.type, enabled=False):
        return F.conv_transpose2d(upsampled_kernel(first, factors), second.flip(2, 3).transpose(0, 1))


def double_pays(first: nn.Conv2d, second: nn.Conv2d, factors: Factors) -> bool:
    """Whether one kernel of both takes fewer multiply-adds for a cell than one after the other; 3x3 only."""
    if (first.kernel_size, second.kernel_size) != ((3, 3), (3, 3)):
        return False
    s_h, s_w = factors
    apart = first.out_channels * (first.in_channels * (s_h + 2) * (s_w + 2) + 9 * s_h * s_w * second.out_channels)
    return first.in_channels * second.out_channels * (s_h + 4) * (s_w + 4) < apart


def double_bias(bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
    """Bias of the two convolutions away from the border."""
    return second_bias + (second.sum((2, 3)) * bias).sum(1)


def edge_kernels(first: Tensor, factors: Factors) -> Tensor:
    """Of `first` one cell beside a map, given its outermost cells: top, bottom, left, right (4, in, out, taps)."""
    s_h, s_w = factors
    rows = [upsampled_kernel(first[:, :, i : i + 1], (1, s_w)).squeeze(2) for i in (2, 0)]
    columns = [upsampled_kernel(first[:, :, :, i : i + 1], (s_h, 1)).squeeze(3) for i in (2, 0)]
    return torch.stack([F.pad(kernel, (0, max(factors) + 2 - kernel.shape[2])) for kernel in (*rows, *columns)])


def edge_surplus(frames: Tensor, kernels: Tensor, bias: Tensor, second: Tensor, factors: Factors) -> Edges:
    """What the double kernel adds on the outermost rows and columns of the result (N, C, length).

    It carries the first convolution's result past the border, where the second one sees zeros.
    """
    s_h, s_w = factors
    rows, columns = kernels[:2, ..., : s_w + 2], kernels[2:, ..., : s_h + 2]
    return (
        _outside(frames[:, :, 0], rows[0], bias, second[:, :, 0], s_w, corners=True),
        _outside(frames[:, :, -1], rows[1], bias, second[:, :, 2], s_w, corners=True),
        _outside(frames[:, :, :, 0], columns[0], bias, second[..., 0], s_h, corners=False),
        _outside(frames[:, :, :, -1], columns[1], bias, second[..., 2], s_h, corners=False),
    )


def _outside(line: Tensor, kernel: Tensor, bias: Tensor, second: Tensor, factor: int, *, corners: bool) -> Tensor:
    """The second convolution of the first one's cells beside the border; rows own the corners."""
    padding = 0 if corners else 1
    beside = F.conv_transpose1d(line, kernel, bias, stride=factor, padding=padding)
    return F.conv1d(beside, second, padding=padding)


def double_convolution(frames: Tensor, kernel: Tensor, bias: Tensor, surplus: Edges, factors: Factors) -> Tensor:
    """Frames (N, C, h, w) through upsampling by `factors` and two 3x3 convolutions, both with zero padding 1."""
    result = F.conv_transpose2d(frames, kernel, bias, stride=factors, padding=2)
    less_edges: Callable[..., Tensor] = _LessEdges.apply
    return less_edges(result, *surplus)


class _LessEdges(torch.autograd.Function):
    """frames minus its edges' surplus, in place: slices assigned under autograd would copy the gradient four times."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.mark_dirty(frames)
        frames[:, :, 0] -= top
        frames[:, :, -1] -= bottom
        frames[:, :, :, 0] -= left
        frames[:, :, :, -1] -= right
        return frames

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        edges = (gradient[:, :, 0], gradient[:, :, -1], gradient[:, :, :, 0], gradient[:, :, :, -1])
        return gradient, *(-edge for edge in edges)
