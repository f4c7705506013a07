"""Blocks of PreDiff's latent networks: the step's embedding, time-residual blocks and Earthformer levels.

Volumes are (B, T, h, w, C) throughout. Convolutions and group norms see (B, C, T, h, w): the fast way as a view,
which is what torch calls channels last, the plain way as a copy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.earthformer.blocks import BlockSettings, StackCuboidSelfAttentionBlock
from models.earthformer.execution import TwoPathModule
from models.prediff.architecture import BackboneConfig


def sinusoid(step: Tensor, width: int) -> Tensor:
    """step (B,), any real number → (B, width) float32: cosines, then sines, of `width`/2 periods from 2π to 2π·10⁴."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, dtype=torch.float32, device=step.device) / half)
    phase = step.float()[:, None] * frequency
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


class StepEmbedding(nn.Module):
    """The diffusion step (B,) → (B, units): a sinusoid and two linear layers."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.width = width
        self.hidden = nn.Linear(width, units)
        self.out = nn.Linear(units, units)

    def forward(self, step: Tensor) -> Tensor:
        """step (B,), any real number."""
        embedding: Tensor = self.out(F.silu(self.hidden(sinusoid(step, self.width).to(self.hidden.weight.dtype))))
        return embedding


class VolumeGroupNorm(nn.GroupNorm):
    """GroupNorm over (B, C, T, h, w) with `groups` groups, or a group per channel where they do not divide C."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels if channels % groups else groups, channels, eps=1e-5)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(safe_for_group_norm(input))


def safe_for_group_norm(x: Tensor) -> Tensor:
    """The contiguity rule: where gradients are recorded, what has none itself enters a group norm contiguous.

    torch 2.13.0's CPU backward segfaults on such an input in channels-last memory: a latent, a frozen layer's output.
    """
    return x if x.requires_grad or not torch.is_grad_enabled() else x.contiguous()


class ResidualBlock(TwoPathModule):
    """x + conv(silu(norm(conv(silu(norm(x))) + step))), 3 x 3 x 3 convolutions over time and space.

    `time_units` is the width of the step's embedding, None for a block that does not see the step.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        time_units: int | None,
        *,
        groups: int,
        dropout: float = 0.0,
        scale_shift: bool = False,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm_in = VolumeGroupNorm(channels, groups)
        self.conv_in = nn.Conv3d(channels, out_channels, 3, padding=1)
        wide = 2 * out_channels if scale_shift else out_channels
        self.step_proj = None if time_units is None else nn.Linear(time_units, wide)
        self.norm_out = VolumeGroupNorm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv3d(channels, out_channels, 1)

    def project(self, embedding: Tensor) -> Tensor:
        """The step's embedding (B, time_units) → what `forward` adds, (B, C, 1, 1, 1), in all uses of a block."""
        if self.step_proj is None:
            raise ValueError("expected a block that sees the step; this one was built without time_units")
        step: Tensor = self.step_proj(F.silu(embedding))
        return step[:, :, None, None, None]

    def forward(self, x: Tensor, step: Tensor | None = None) -> Tensor:
        """x (B, T, h, w, C), step as `project` gives it → (B, T, h, w, C_out)."""
        volume = x.permute(0, 4, 1, 2, 3)
        if self.is_plain:
            volume = volume.contiguous()
        hidden = self.conv_in(F.silu(self.norm_in(volume)))
        if step is not None and self.scale_shift:
            scale, shift = step.chunk(2, dim=1)
            hidden = self.norm_out(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm_out(hidden if step is None else hidden + step)
        out: Tensor = self.skip(volume) + self.conv_out(self.dropout(F.silu(hidden)))
        out = out.permute(0, 2, 3, 4, 1)
        return out.contiguous() if self.is_plain else out


class Level(TwoPathModule):
    """`depth` x (time-residual block, attention stack) at one resolution; the residual block's weights are shared."""

    def __init__(self, config: BackboneConfig, level: int) -> None:
        super().__init__()
        units = config.units[level]
        settings = block_settings(config)
        self.time_block = ResidualBlock(
            units,
            units,
            config.time_units,
            groups=config.norm_groups,
            dropout=config.time_embed_dropout,
            scale_shift=config.time_embed_use_scale_shift_norm,
        )
        self.stacks = nn.ModuleList(
            StackCuboidSelfAttentionBlock(units, config.cuboids(level), settings) for _ in range(config.depth[level])
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (B, T, h, w, C), the step's embedding (B, time_units)."""
        step = self.time_block.project(embedding)
        for depth, stack in enumerate(self.stacks):
            if self.is_plain and depth:
                step = self.time_block.project(embedding)
            x, _ = stack(self.time_block(x, step))
        return x


def block_settings(config: BackboneConfig) -> BlockSettings:
    """The stacks' settings."""
    return BlockSettings(
        num_heads=config.num_heads,
        padding_type=config.padding_type,
        attn_drop=config.attn_drop,
        proj_drop=config.proj_drop,
        ffn_drop=config.ffn_drop,
        activation=config.ffn_activation,
        gated_ffn=config.gated_ffn,
        norm_layer=config.norm_layer,
        use_relative_pos=config.use_relative_pos,
        use_final_proj=config.self_attn_use_final_proj,
        checkpoint_level=config.checkpoint_level,
    )
