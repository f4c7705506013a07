"""The knowledge alignment network (Gao et al. 2023, section 3.3, arXiv:2307.10422): what does a noisy latent mean?"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.earthformer.layers import PatchMerging3D, PosEmbed, to_frames
from models.prediff.architecture import AlignmentConfig
from models.prediff.blocks import Level, ResidualBlock, StepEmbedding, VolumeGroupNorm
from models.prediff.denoiser import beside_frames
from models.prediff.initialise import initialise


class AttentionPool(nn.Module):
    """(N, C, L) → (N, out): attention of the tokens' mean to itself and to every token (Radford et al. 2021)."""

    def __init__(self, channels: int, tokens: int, heads: int, out_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(torch.randn(channels, tokens + 1) / channels**0.5)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Only the mean's query is formed: nothing else is read."""
        x = torch.cat([x.mean(dim=-1, keepdim=True), x], dim=-1) + self.position  # (N, C, L + 1)
        q, k, v = (part.unflatten(1, (self.heads, -1)) for part in self.qkv(x).chunk(3, dim=1))  # (N, heads, d, L + 1)
        scale = q.shape[2] ** -0.25
        scores = (q[..., :1] * scale).transpose(-2, -1) @ (k * scale)  # (N, heads, 1, L + 1)
        weights = scores.float().softmax(-1).to(v.dtype) if v.dtype != torch.float64 else scores.softmax(-1)
        pooled = (v @ weights.transpose(-2, -1)).flatten(1, 2)  # (N, C, 1)
        out: Tensor = self.proj(pooled)
        return out[..., 0]


class FrameReadout(nn.Module):
    """(B, T, h, w, C) → (B, T, out): group norm, SiLU and attention pooling of each frame."""

    def __init__(self, norm: VolumeGroupNorm, pool: AttentionPool) -> None:
        super().__init__()
        self.norm = norm
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, h, w, C)."""
        tokens = to_frames(x).flatten(2)  # (B·T, C, L)
        pooled: Tensor = self.pool(F.silu(self.norm(tokens)))
        return pooled.view(*x.shape[:2], -1)


class AlignmentNetwork(nn.Module):
    """Estimates a quantity of each decoded future frame (its average intensity) from the noisy latent."""

    def __init__(self, config: AlignmentConfig) -> None:
        super().__init__()
        self.config = config
        units, sizes = config.units, config.level_sizes
        groups = config.norm_groups
        self.stem = ResidualBlock(
            config.input_shape[-1] + config.condition_channels, units[0], None, groups=groups, dropout=config.proj_drop
        )
        self.position = PosEmbed(units[0], *sizes[0], config.pos_embed_type)
        self.step_embedding = StepEmbedding(units[0], config.time_units)
        self.down = nn.ModuleList(Level(config, level) for level in range(config.levels))
        self.merges = nn.ModuleList(
            PatchMerging3D(
                fine, coarse, config.downsample_thw, norm_layer=config.norm_layer, padding_type=config.padding_type
            )
            for fine, coarse in pairwise(units)
        )
        _, height, width = sizes[-1]
        pool = AttentionPool(units[-1], height * width, config.num_heads, config.out_channels)
        self.readout = FrameReadout(VolumeGroupNorm(units[-1], groups), pool)
        initialise(self)

    def forward(self, z_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Noisy latent z_t (B, T_out, h, w, C), step t (B,) → (B, T_out, out_channels), the quantity's units.

        `condition` (B, T_out, h, w, condition_channels): what the noisy latent is to be read against.
        """
        if self.config.condition_channels:
            z_t = torch.cat([z_t, beside_frames(condition, z_t, self.config.condition_channels)], dim=-1)
        x = self.position(self.stem(z_t))
        embedding = self.step_embedding(t)
        for level, block in enumerate(self.down):
            x = block(self.merges[level - 1](x) if level else x, embedding)
        estimate: Tensor = self.readout(x)
        return estimate
