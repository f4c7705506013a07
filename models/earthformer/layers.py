"""Earthformer without attention: norms, feed-forward, patch merging, upsampling, position embeddings."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.earthformer.cuboids import Padding, Triple, pad_volume
from models.earthformer.execution import TwoPathModule
from models.earthformer.upsampling import (
    Factors,
    double_bias,
    double_convolution,
    double_kernel,
    double_pays,
    edge_kernels,
    edge_surplus,
    upsampled_convolution,
    upsampled_kernel,
    whole_factors,
)

Norm = Literal["layer_norm", "rms_norm"]
Activation = Literal[
    "leaky", "gelu", "relu", "elu", "sigmoid", "tanh", "softrelu", "softplus", "softsign", "identity"
]  # fmt: skip
PositionEmbeddingKind = Literal["t+h+w", "t+hw"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softrelu": nn.Softplus,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "identity": nn.Identity,
}


def build_activation(name: Activation) -> nn.Module:
    """The activation called `name`; "leaky" has the published slope 0.1."""
    activation: nn.Module = nn.LeakyReLU(0.1) if name == "leaky" else _ACTIVATIONS[name]()
    return activation


class RMSNorm(nn.Module):
    """x / (rms(x) + eps) * scale over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, units: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(units))

    def forward(self, x: Tensor) -> Tensor:
        rms: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        return x / (rms + self.eps) * self.scale


def build_norm(kind: Norm, units: int) -> nn.Module:
    """Normalisation over the last axis, eps 1e-5."""
    return RMSNorm(units) if kind == "rms_norm" else nn.LayerNorm(units, eps=1e-5)


class FrameGroupNorm(nn.GroupNorm):
    """GroupNorm over frames (N, C, H, W).

    The input is made contiguous: torch 2.13.0's CPU backward segfaults on a channels-last input without grad.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.contiguous())


class PatchMerging3D(nn.Module):
    """(B, T, H, W, C) → (B, T/a, H/b, W/c, out_dim): blocks of a·b·c cells become one, normalised and projected.

    The merged channel index is ((i_t·b + i_h)·c + i_w)·C + channel.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int | None = None,
        downsample: Triple = (1, 2, 2),
        *,
        norm_layer: Norm = "layer_norm",
        padding_type: Padding = "nearest",
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.padding_type: Padding = padding_type
        merged = downsample[0] * downsample[1] * downsample[2] * dim
        self.reduction = nn.Linear(merged, out_dim or max(downsample) * dim, bias=False)
        self.norm = build_norm(norm_layer, merged)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.downsample
        size = x.shape[1:4]
        x = pad_volume(x, (-size[0] % a, -size[1] % b, -size[2] % c), self.padding_type)
        batch, t, h, w, dim = x.shape
        x = x.reshape(batch, t // a, a, h // b, b, w // c, c, dim).permute(0, 1, 3, 5, 2, 4, 6, 7)
        merged: Tensor = self.reduction(self.norm(x.reshape(batch, t // a, h // b, w // c, a * b * c * dim)))
        return merged


def merged_size(size: Triple, downsample: Triple) -> Triple:
    """(T, H, W) after patch merging, padding included."""
    t, h, w = (-(-n // s) for n, s in zip(size, downsample, strict=True))
    return t, h, w


class Upsample3DLayer(TwoPathModule):
    """(B, T, h, w, C) → (B, T, H, W, out_dim): nearest interpolation of each frame, then a convolution."""

    def __init__(self, dim: int, out_dim: int, target_size: Triple, *, kernel_size: int = 3) -> None:
        super().__init__()
        self.target_size = target_size
        self.conv = nn.Conv2d(dim, out_dim, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return from_frames(self.upsampled(to_frames(x)), x.shape[0])

    def upsampled(self, frames: Tensor) -> Tensor:
        """Frames (N, C, h, w) → (N, out_dim, H, W)."""
        factors = self._factors(frames)
        if factors is None:
            return self._plain(frames)
        weight, taps = self.conv.weight, self.conv.kernel_size[0]
        kernel = self.derived(f"kernel {factors}", (weight,), lambda: upsampled_kernel(weight, factors))
        return upsampled_convolution(frames, kernel, self.conv.bias, factors, taps)

    def upsampled_twice_convolved(self, frames: Tensor, second: nn.Conv2d) -> Tensor:
        """second(upsampled(frames)), as one convolution where that takes fewer multiplications."""
        factors, b, c = self._factors(frames), self.conv.bias, second.bias
        if factors is None or b is None or c is None or not double_pays(self.conv, second, factors):
            convolved: Tensor = second(self.upsampled(frames))
            return convolved
        w, v = self.conv.weight, second.weight
        kernel = self.derived(f"double {factors}", (w, v), lambda: double_kernel(w, v, factors))
        bias = self.derived("double bias", (b, v, c), lambda: double_bias(b, v, c))
        edges = self.derived(f"edges {factors}", (w,), lambda: edge_kernels(w, factors))
        surplus = edge_surplus(frames, edges, b, v, factors)
        return double_convolution(frames, kernel, bias, surplus, factors)

    def _plain(self, frames: Tensor) -> Tensor:
        _, height, width = self.target_size
        convolved: Tensor = self.conv(F.interpolate(frames, size=(height, width), mode="nearest"))
        return convolved

    def _factors(self, frames: Tensor) -> Factors | None:
        """Whole factors of the fast way; None where upsampling is done as written."""
        return None if self.is_plain else whole_factors(frames.shape[2:], self.target_size[1:])


def to_frames(x: Tensor) -> Tensor:
    """(B, T, H, W, C) → (B·T, C, H, W), channels last in memory."""
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def from_frames(frames: Tensor, batch: int) -> Tensor:
    """(B·T, C, H, W) → (B, T, H, W, C)."""
    x = frames.permute(0, 2, 3, 1)
    return x.reshape(batch, -1, *x.shape[1:])


class PosEmbed(nn.Module):
    """x + a learned table per axis: T, H and W ("t+h+w"), or T and the plane ("t+hw", row h·maxW + w)."""

    def __init__(self, embed_dim: int, maxT: int, maxH: int, maxW: int, typ: PositionEmbeddingKind = "t+h+w") -> None:
        super().__init__()
        self.typ: PositionEmbeddingKind = typ
        self.maxW = maxW
        self.T_embed = nn.Embedding(maxT, embed_dim)
        if typ == "t+h+w":
            self.H_embed = nn.Embedding(maxH, embed_dim)
            self.W_embed = nn.Embedding(maxW, embed_dim)
        else:
            self.HW_embed = nn.Embedding(maxH * maxW, embed_dim)

    def table(self, size: Triple) -> Tensor:
        """The embedding of a volume of `size`, (T, H, W, C)."""
        t, h, w = size
        time = self.T_embed.weight[:t, None, None, :]
        if self.typ == "t+h+w":
            return time + self.H_embed.weight[:h, None, :] + self.W_embed.weight[:w, :]
        plane = self.HW_embed.weight.view(-1, self.maxW, self.HW_embed.weight.shape[-1])
        return time + plane[:h, :w]

    def forward(self, x: Tensor) -> Tensor:
        _, t, h, w, _ = x.shape
        return x + self.table((t, h, w))
