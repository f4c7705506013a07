"""From pixels to tokens and back: convolutions with patch merging before the encoder, upsampling after the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from models.earthformer.cuboids import Padding, Triple
from models.earthformer.execution import TwoPathModule
from models.earthformer.layers import (
    Activation,
    FrameGroupNorm,
    PatchMerging3D,
    Upsample3DLayer,
    build_activation,
    from_frames,
    to_frames,
)
from models.earthformer.normalisation import frames_at_once, in_chunks, leaky_slope, normalised_convolution


class ConvolutionBlock(TwoPathModule, nn.Sequential):
    """3x3 convolution, group normalisation, activation, again and again, on frames (N, C, H, W)."""

    def forward(self, input: Tensor) -> Tensor:
        if self.is_plain or not len(self):
            return _in_turn(self, input)
        return self.after_first(self[0](input))

    @property
    def width(self) -> int:
        """Channels of the block's maps."""
        return cast(nn.Conv2d, self[0]).out_channels if len(self) else 0

    def after_first(self, frames: Tensor) -> Tensor:
        """The block's result, given that of its first convolution."""
        layers = list(self)
        for norm, activation, *following in (layers[i : i + 3] for i in range(1, len(layers), 3)):
            slope = leaky_slope(activation)
            if slope is None or torch.compiler.is_compiling():  # a compiler fuses by itself
                frames = _in_turn([norm, activation, *following], frames)
            else:
                conv = cast(nn.Conv2d, following[0]) if following else None
                frames = normalised_convolution(frames, cast(FrameGroupNorm, norm), slope, conv)
        return frames


def _in_turn(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def convolutions(dim: int, out_dim: int, count: int, groups: int, activation: Activation) -> ConvolutionBlock:
    """`count` times 3x3 convolution, group normalisation, activation, on frames (N, C, H, W)."""
    layers: list[nn.Module] = []
    for index in range(count):
        layers += [
            nn.Conv2d(dim if index == 0 else out_dim, out_dim, 3, padding=1),
            FrameGroupNorm(groups, out_dim),
            build_activation(activation),
        ]
    return ConvolutionBlock(*layers)


def merged_stage(block: ConvolutionBlock, merge: PatchMerging3D, x: Tensor) -> Tensor:
    """Each frame of x (B, T, H, W, C) through `block`, then patch merging."""

    def stage(volume: Tensor) -> Tensor:
        merged: Tensor = merge(_convolved(block, volume))
        return merged

    if block.is_plain or merge.downsample[0] > 1:
        return stage(x)
    return _frame_by_frame(stage, x, x.shape[2] * x.shape[3] * max(block.width, x.shape[4]))


def upsampled_stage(upsample: Upsample3DLayer, block: ConvolutionBlock, x: Tensor) -> Tensor:
    """Each frame of x (B, T, h, w, C) upsampled, then through `block`."""

    def stage(volume: Tensor) -> Tensor:
        first = upsample.upsampled_twice_convolved(to_frames(volume), cast(nn.Conv2d, block[0]))
        return from_frames(block.after_first(first), volume.shape[0])

    if block.is_plain or not len(block):
        return _convolved(block, upsample(x))
    _, height, width = upsample.target_size
    return _frame_by_frame(stage, x, height * width * block.width)


def _convolved(block: ConvolutionBlock, x: Tensor) -> Tensor:
    return from_frames(block(to_frames(x)), x.shape[0])


def _frame_by_frame(step: Callable[[Tensor], Tensor], x: Tensor, frame_values: int) -> Tensor:
    """step(x) of x (B, T, H, W, C), at inference on the CPU a few frames at a time, each with maps of `frame_values`.

    `step` must treat frames alike and alone.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return step(x)
    count = frames_at_once(x.shape[0] * x.shape[1], frame_values * x.element_size(), x.device)
    result = in_chunks(step, x.flatten(0, 1)[:, None], count)
    return result.reshape(*x.shape[:2], *result.shape[2:])


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
        self.conv_block = convolutions(dim, out_dim, num_conv_layers, 16, activation)
        self.patch_merge = PatchMerging3D(out_dim, out_dim, downsample_scale, padding_type=padding_type)

    def forward(self, x: Tensor) -> Tensor:
        return merged_stage(self.conv_block, self.patch_merge, x)


class FinalDecoder(nn.Module):
    """Upsampling to the target size, then convolutions ("conv")."""

    def __init__(
        self, target_thw: Triple, dim: int, *, num_conv_layers: int = 2, activation: Activation = "leaky"
    ) -> None:
        super().__init__()
        self.upsample = Upsample3DLayer(dim, dim, target_thw)
        self.conv_block = convolutions(dim, dim, num_conv_layers, 16, activation)

    def forward(self, x: Tensor) -> Tensor:
        return upsampled_stage(self.upsample, self.conv_block, x)


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
            x = merged_stage(cast(ConvolutionBlock, block), cast(PatchMerging3D, merge), x)
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
            x = upsampled_stage(cast(Upsample3DLayer, upsample), cast(ConvolutionBlock, block), x)
        return x
