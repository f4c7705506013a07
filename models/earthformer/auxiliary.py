"""Earthformer with auxiliary inputs (Gao et al. 2022, EarthNet2021): a U-Net decoder fed by known future drivers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.earthformer.config import EarthformerConfig
from models.earthformer.cuboids import resample_nearest
from models.earthformer.decoder import cross_blocks, hierarchical_embeddings, self_blocks, upsample_layers
from models.earthformer.encoder import CuboidTransformerEncoder, level_blocks
from models.earthformer.initialise import initialise
from models.earthformer.layers import PatchMerging3D, PosEmbed
from models.earthformer.network import build_final_decoder, build_initial_encoder


class CuboidTransformerUNetDecoder(nn.Module):
    """Down the levels and up again; both ways attend to the memories where `unet_dec_cross_mode` says so."""

    def __init__(self, config: EarthformerConfig) -> None:
        super().__init__()
        self.config = config
        levels = list(enumerate(config.dec_depth))
        self.down_self_blocks = nn.ModuleList(self_blocks(config, level, depth) for level, depth in levels)
        self.up_self_blocks = nn.ModuleList(self_blocks(config, level, depth) for level, depth in levels)
        crossed = levels[config.dec_cross_start :]
        down, up = self._crosses("down"), self._crosses("up")
        self.down_cross_blocks = nn.ModuleList(cross_blocks(config, *pair) for pair in crossed if down)
        self.up_cross_blocks = nn.ModuleList(cross_blocks(config, *pair) for pair in crossed if up)
        self.upsample_layers = upsample_layers(config)
        self.downsample_layers = nn.ModuleList(
            PatchMerging3D(
                config.units[level],
                config.units[level + 1],
                config.downsample_thw,
                padding_type=config.padding_type,
            )
            for level in range(config.levels - 1)
        )
        self.hierarchical_pos_embed_l = hierarchical_embeddings(config)

    def forward(self, x: Tensor, memories: list[Tensor], globals_: list[Tensor | None]) -> Tensor:
        """x (B, T_out, H_0, W_0, C_0), memories and global vectors as the encoder returns them."""
        states = list(globals_)
        for level in range(self.config.levels):
            if level > 0:
                x = self._embed(level, self.downsample_layers[level - 1](x))
            x, states[level] = self._level("down", level, x, memories[level], states[level])
        for level in reversed(range(self.config.levels)):
            x, _ = self._level("up", level, x, memories[level], states[level])
            if level > 0:
                x = self._embed(level - 1, self.upsample_layers[level - 1](x))
        return x

    def _embed(self, level: int, x: Tensor) -> Tensor:
        tables = self.hierarchical_pos_embed_l
        return tables[level](x) if level < len(tables) else x

    def _crosses(self, way: str) -> bool:
        return self.config.unet_dec_cross_mode in (way, "both")

    def _level(self, way: str, level: int, x: Tensor, memory: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor | None]:
        attentions = self.down_self_blocks if way == "down" else self.up_self_blocks
        crosses = self.down_cross_blocks if way == "down" else self.up_cross_blocks
        start = self.config.dec_cross_start
        for index, attention in enumerate(level_blocks(attentions, level)):
            x, updated = attention(x, g)
            if updated is not None and self.config.dec_self_update_global:
                g = updated
            if self._crosses(way) and level >= start:
                x = level_blocks(crosses, level - start)[index](x, memory, g)
        return x, g


class AuxiliaryEarthformer(nn.Module):
    """forward(x, aux_enc, aux_dec): auxiliary fields beside the input and for the target period."""

    def __init__(self, config: EarthformerConfig) -> None:
        super().__init__()
        if config.auxiliary_channels is None:
            raise ValueError("expected auxiliary_channels; got None")
        self.config = config
        if config.num_global_vectors:
            width = config.global_dim_ratio * config.base_units
            self.init_global_vectors = nn.Parameter(torch.zeros(config.num_global_vectors, width))
        self.initial_encoder = build_initial_encoder(config, config.input_shape[-1])
        self.initial_aux_encoder = build_initial_encoder(config, config.auxiliary_channels)
        self.final_decoder = build_final_decoder(config)
        width = config.stem_units[0] if config.initial_downsample_type == "stack_conv" else config.base_units
        self.dec_final_proj = nn.Linear(width, config.target_shape[-1])
        self.encoder = CuboidTransformerEncoder(config)
        self.enc_pos_embed = PosEmbed(config.base_units, *config.level_sizes[0], typ=config.pos_embed_type)
        # Published, never used: the decoder starts from the encoded auxiliary fields.
        self.dec_pos_embed = PosEmbed(
            config.units[-1], config.frames_out, *config.level_sizes[-1][1:], typ=config.pos_embed_type
        )
        self.decoder = CuboidTransformerUNetDecoder(config)
        initialise(self, config)

    def forward(self, x: Tensor, aux_enc: Tensor, aux_dec: Tensor) -> Tensor:
        """x (B, T_in, H, W, C), aux_enc and aux_dec (B, T, h, w, C_aux) of any size → (B, T_out, H, W, C_out)."""
        config = self.config
        known = self.initial_aux_encoder(resample_nearest(aux_enc, config.input_shape[:3]))
        h = self.enc_pos_embed(self.initial_encoder(x) + known)
        g = self.init_global_vectors.expand(x.shape[0], -1, -1) if config.num_global_vectors else None
        memories, globals_ = self.encoder(h, g)
        y = self.initial_aux_encoder(resample_nearest(aux_dec, config.target_shape[:3]))
        out: Tensor = self.dec_final_proj(self.final_decoder(self.decoder(y, memories, globals_)))
        return out
