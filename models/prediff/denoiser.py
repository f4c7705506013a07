"""The latent Earthformer-UNet (Gao et al. 2023, figure 2, arXiv:2307.10422): what noise is in this latent?"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.earthformer.layers import PatchMerging3D, PosEmbed, Upsample3DLayer
from models.prediff.architecture import DenoiserConfig
from models.prediff.blocks import Level, ResidualBlock, StepEmbedding
from models.prediff.initialise import initialise


class LatentDenoiser(nn.Module):
    """A UNet of Earthformer levels over context and noisy latent frames, conditioned on the diffusion step.

    What the output means (noise, v or velocity) is the objective's choice.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        units, sizes, merging = config.units, config.level_sizes, config.downsample_thw
        channels = config.target_shape[-1]
        self.stem = ResidualBlock(
            channels + 1 + config.condition_channels,
            units[0],
            None,
            groups=config.norm_groups,
            dropout=config.proj_drop,
        )
        self.position = PosEmbed(units[0], *sizes[0], config.pos_embed_type)
        self.step_embedding = StepEmbedding(units[0], config.time_units)
        self.down = nn.ModuleList(Level(config, level) for level in range(config.levels))
        self.merges = nn.ModuleList(
            PatchMerging3D(fine, coarse, merging, norm_layer=config.norm_layer, padding_type=config.padding_type)
            for fine, coarse in pairwise(units)
        )
        self.up = nn.ModuleList(Level(config, level) for level in range(config.levels))
        self.upsamples = nn.ModuleList(
            Upsample3DLayer(coarse, fine, size, kernel_size=config.upsample_kernel_size)
            for fine, coarse, size in zip(units, units[1:], sizes, strict=False)
        )
        self.final_proj = nn.Linear(units[0], channels)
        self.gate = nn.Linear(config.time_units, channels) if config.input_skip else None
        initialise(self)
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, z_t: Tensor, t: Tensor, context: Tensor, condition: Tensor | None = None) -> Tensor:
        """Noisy latent z_t (B, T_out, h, w, C), step t (B,), context latent (B, T_in, h, w, C) → as z_t.

        `condition` (B, T_out, h, w, condition_channels) joins the noisy frames; zeros stand beside the context.
        """
        frames = mark_frames(context, z_t)
        if self.config.condition_channels:
            frames = torch.cat([frames, beside_frames(condition, frames, self.config.condition_channels)], dim=-1)
        x = self.position(self.stem(frames))
        embedding = self.step_embedding(t)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                x = self.merges[level - 1](x)
            x = block(x, embedding)
            skips.append(x)
        for level in reversed(range(self.config.levels)):
            if level < self.config.levels - 1:
                x = self.upsamples[level](x)
                x = x + skips[level] if self.config.unet_res_connect else x
            x = self.up[level](x, embedding)
        noise: Tensor = self.final_proj(x[:, -z_t.shape[1] :])
        if self.gate is not None:
            noise = noise + z_t * self.gate(F.silu(embedding))[:, None, None, None]
        return noise


def mark_frames(context: Tensor, z_t: Tensor) -> Tensor:
    """Context and noisy frames one after the other, with a channel that is 1 on the context and 0 behind it.

    (B, T_in, h, w, C), (B, T_out, h, w, C) → (B, T_in + T_out, h, w, C + 1).
    """
    known = context.new_ones(*context.shape[:-1], 1)
    unknown = z_t.new_zeros(*z_t.shape[:-1], 1)
    return torch.cat([torch.cat([context, known], dim=-1), torch.cat([z_t, unknown], dim=-1)], dim=1)


def beside_frames(condition: Tensor | None, frames: Tensor, channels: int) -> Tensor:
    """`condition` (B, T_out, h, w, channels) beside the last frames of `frames` (B, T, h, w, C), zeros before it.

    Raises:
        ValueError: no condition, or one of other channels.
    """
    if condition is None or condition.shape[-1] != channels:
        came = "none" if condition is None else f"{condition.shape[-1]}"
        raise ValueError(f"expected a condition of {channels} channels; got {came}")
    before = condition.new_zeros(*frames.shape[:1], frames.shape[1] - condition.shape[1], *condition.shape[2:])
    return torch.cat([before, condition], dim=1)
