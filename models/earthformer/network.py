"""Earthformer (Gao et al. 2022, "Exploring Space-Time Transformers for Earth System Forecasting", arXiv:2207.05833).

(B, T_in, H, W, C_in) → (B, T_out, H, W, C_out) in one pass: stem, encoder with global vectors, decoder from a learned
query, stem. Parameter names are the published ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.earthformer.config import EarthformerConfig
from models.earthformer.cuboids import Triple, resample_nearest
from models.earthformer.decoder import CuboidTransformerDecoder
from models.earthformer.encoder import CuboidTransformerEncoder
from models.earthformer.execution import TwoPathModule
from models.earthformer.initialise import initialise
from models.earthformer.layers import PosEmbed
from models.earthformer.stems import (
    FinalDecoder,
    FinalStackUpsamplingDecoder,
    InitialEncoder,
    InitialStackPatchMergingEncoder,
)


def build_initial_encoder(config: EarthformerConfig, channels: int) -> nn.Module:
    """The stem of `config` for inputs of `channels`."""
    if config.initial_downsample_type == "conv":
        return InitialEncoder(
            channels,
            config.base_units,
            config.stem_scale,
            num_conv_layers=config.initial_downsample_conv_layers,
            activation=config.initial_downsample_activation,
            padding_type=config.padding_type,
        )
    return InitialStackPatchMergingEncoder(
        config.initial_downsample_stack_conv_num_layers,
        channels,
        config.stem_units,
        config.initial_downsample_stack_conv_downscale_list,
        config.initial_downsample_stack_conv_num_conv_list,
        activation=config.initial_downsample_activation,
        padding_type=config.padding_type,
    )


def build_final_decoder(config: EarthformerConfig) -> nn.Module:
    """The mirror of the stem."""
    if config.initial_downsample_type == "conv":
        return FinalDecoder(
            config.target_shape[:3],
            config.base_units,
            num_conv_layers=config.final_upsample_conv_layers,
            activation=config.initial_downsample_activation,
        )
    widths = config.stem_units
    stages = reversed(list(zip(config.stem_sizes[:-1], widths, strict=True)))
    return FinalStackUpsamplingDecoder(
        [(config.frames_out, size[1], size[2], dim) for size, dim in stages],
        config.base_units,
        config.initial_downsample_stack_conv_num_conv_list[::-1],
        activation=config.initial_downsample_activation,
    )


class Earthformer(TwoPathModule):
    """The plain model; static shapes, no output activation."""

    def __init__(self, config: EarthformerConfig) -> None:
        super().__init__()
        self.config = config
        top = config.units[-1]
        if config.num_global_vectors:
            width = config.global_dim_ratio * config.base_units
            self.init_global_vectors = nn.Parameter(torch.zeros(config.num_global_vectors, width))
        self.initial_encoder = build_initial_encoder(config, config.input_shape[-1])
        self.final_decoder = build_final_decoder(config)
        width = config.stem_units[0] if config.initial_downsample_type == "stack_conv" else config.base_units
        self.dec_final_proj = nn.Linear(width, config.target_shape[-1])
        self.encoder = CuboidTransformerEncoder(config)
        self.enc_pos_embed = PosEmbed(config.base_units, *config.level_sizes[0], typ=config.pos_embed_type)
        self.dec_pos_embed = PosEmbed(top, config.frames_out, *config.level_sizes[-1][1:], typ=config.pos_embed_type)
        self.z_proj = nn.Linear(top, top)
        self.decoder = CuboidTransformerDecoder(config)
        initialise(self, config)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T_in, H, W, C_in), network space → (B, T_out, H, W, C_out)."""
        self._check_shape(x)
        h = self.enc_pos_embed(self.initial_encoder(x))
        memories, globals_ = self.encoder(h, self._global_vectors(x.shape[0]))
        y = self.decoder(self.initial_query(memories[-1]), memories, globals_)
        out: Tensor = self.dec_final_proj(self.final_decoder(y))
        return out

    def initial_query(self, memory: Tensor) -> Tensor:
        """Decoder query z from the top memory (B, T, H, W, C) → (B, T_out, H, W, C)."""
        batch, _, h, w, _ = memory.shape
        frames = self.config.frames_out
        match self.config.z_init_method:
            case "zeros":
                return self._learned_query((frames, h, w)).expand(batch, -1, -1, -1, -1)
            case "nearest_interp":
                z = resample_nearest(memory, (frames, h, w))
            case "last":
                z = memory[:, -1:].expand(-1, frames, -1, -1, -1)
            case "mean":
                z = memory.mean(dim=1, keepdim=True).expand(-1, frames, -1, -1, -1)
        query: Tensor = self.z_proj(z)
        return query

    def _learned_query(self, size: Triple) -> Tensor:
        """The same for every input: kept at inference."""

        def query() -> Tensor:
            projected: Tensor = self.z_proj(self.dec_pos_embed.table(size)[None])
            return projected

        if self.is_plain:
            return query()
        return self.derived(("query", size), (*self.z_proj.parameters(), *self.dec_pos_embed.parameters()), query)

    def _global_vectors(self, batch: int) -> Tensor | None:
        return self.init_global_vectors.expand(batch, -1, -1) if self.config.num_global_vectors else None

    def _check_shape(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.config.input_shape:
            raise ValueError(
                f"expected an input (B, {', '.join(map(str, self.config.input_shape))}); got {tuple(x.shape)}"
            )
