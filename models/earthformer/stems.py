"""From pixels to tokens and back: convolutions with patch merging before the encoder, upsampling after the decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.earthformer.cuboids import Padding, Triple
from models.earthformer.layers import (
    Activation,
    FrameGroupNorm,
    PatchMerging3D,
    Upsample3DLayer,
    build_activation,
    from_frames,
    to_frames,
)


def convolutions(dim: int, out_dim: int, count: int, groups: int, activation: Activation) -> nn.Sequential:
    """`count` times 3x3 convolution, group normalisation, activation, on frames (N, C, H, W)."""
    layers: list[nn.Module] = []
    for index in range(count):
        layers += [
            nn.Conv2d(dim if index == 0 else out_dim, out_dim, 3, padding=1),
            FrameGroupNorm(groups, out_dim),
            build_activation(activation),
        ]
    return nn.Sequential(*layers)


def _per_frame(block: nn.Module, x: Tensor) -> Tensor:
    """`block` on each frame of x (B, T, H, W, C)."""
    return from_frames(block(to_frames(x)), x.shape[0])


class InitialEncoder(nn.Module):
    """Convolutions at full resolution, then one patch merging ("conv")."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        downsample_scale: Triple,
        *,
        num_conv_layers: int = 2,
        activation: Activation = "leaky",
        padding_type: Padding = "nearest",
    ) -> None:
        super().__init__()
        self.conv_block = convolutions(dim, out_dim, num_conv_layers, 16, activation) if num_conv_layers else None
        self.patch_merge = PatchMerging3D(out_dim, out_dim, downsample_scale, padding_type=padding_type)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv_block is not None:
            x = _per_frame(self.conv_block, x)
        merged: Tensor = self.patch_merge(x)
        return merged


class FinalDecoder(nn.Module):
    """Upsampling to the target size, then convolutions ("conv")."""

    def __init__(
        self, target_thw: Triple, dim: int, *, num_conv_layers: int = 2, activation: Activation = "leaky"
    ) -> None:
        super().__init__()
        self.upsample = Upsample3DLayer(dim, dim, target_thw)
        self.conv_block = convolutions(dim, dim, num_conv_layers, 16, activation) if num_conv_layers else None

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.upsample(x)
        return up if self.conv_block is None else _per_frame(self.conv_block, up)


class InitialStackPatchMergingEncoder(nn.Module):
    """Stages of convolutions and a spatial patch merging ("stack_conv")."""

    def __init__(
        self,
        num_merge: int,
        in_dim: int,
        out_dim_list: Sequence[int],
        downsample_scale_list: Sequence[int],
        num_conv_per_merge_list: Sequence[int],
        *,
        activation: Activation = "leaky",
        padding_type: Padding = "nearest",
    ) -> None:
        super().__init__()
        self.conv_block_list = nn.ModuleList()
        self.patch_merge_list = nn.ModuleList()
        width = in_dim
        for stage in range(num_merge):
            dim, scale, count = out_dim_list[stage], downsample_scale_list[stage], num_conv_per_merge_list[stage]
            self.conv_block_list.append(convolutions(width, dim, count, max(1, dim // 4), activation))
            self.patch_merge_list.append(PatchMerging3D(dim, dim, (1, scale, scale), padding_type=padding_type))
            width = dim

    def forward(self, x: Tensor) -> Tensor:
        for block, merge in zip(self.conv_block_list, self.patch_merge_list, strict=True):
            x = merge(_per_frame(block, x))
        return x


class FinalStackUpsamplingDecoder(nn.Module):
    """Stages of upsampling and convolutions, the mirror of the stacked encoder.

    `target_shape_list` holds each stage's output (T, H, W, C). No activation separates the upsampling's convolution
    from the first one of its stage, as published.
    """

    def __init__(
        self,
        target_shape_list: Sequence[tuple[int, int, int, int]],
        in_dim: int,
        num_conv_per_up_list: Sequence[int],
        *,
        activation: Activation = "leaky",
    ) -> None:
        super().__init__()
        self.upsample_list = nn.ModuleList()
        self.conv_block_list = nn.ModuleList()
        width = in_dim
        for (t, h, w, dim), count in zip(target_shape_list, num_conv_per_up_list, strict=True):
            self.upsample_list.append(Upsample3DLayer(width, width, (t, h, w)))
            self.conv_block_list.append(convolutions(width, dim, count, max(1, dim // 4), activation))
            width = dim

    def forward(self, x: Tensor) -> Tensor:
        for upsample, block in zip(self.upsample_list, self.conv_block_list, strict=True):
            x = _per_frame(block, upsample(x))
        return x
