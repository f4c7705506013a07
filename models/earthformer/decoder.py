"""The hierarchical decoder: from the coarsest level up, self-attention and cross-attention to the level's memory."""

from __future__ import annotations

from torch import Tensor, nn

from models.earthformer.blocks import BlockSettings, StackCuboidCrossAttentionBlock, StackCuboidSelfAttentionBlock
from models.earthformer.config import EarthformerConfig
from models.earthformer.encoder import block_settings, level_blocks
from models.earthformer.layers import PosEmbed, Upsample3DLayer


def self_block_settings(config: EarthformerConfig) -> BlockSettings:
    """Of the decoder's self-attention blocks; a global state that is never updated needs no feed-forward network."""
    return block_settings(config, inter_ffn=config.dec_use_inter_ffn, use_global_vector=config.use_dec_self_global)


def cross_blocks(config: EarthformerConfig, level: int, count: int) -> nn.ModuleList:
    """`count` cross-attention blocks of one level."""
    settings = block_settings(config, inter_ffn=config.dec_use_inter_ffn, use_global_vector=config.use_dec_cross_global)
    cuboids = config.cross_cuboids()[level]
    return nn.ModuleList(
        StackCuboidCrossAttentionBlock(
            config.units[level],
            cuboids,
            settings,
            max_temporal_relative=config.level_sizes[0][0] + config.frames_out,
            cross_last_n_frames=config.dec_cross_last_n_frames,
        )
        for _ in range(count)
    )


def self_blocks(config: EarthformerConfig, level: int, count: int) -> nn.ModuleList:
    """`count` self-attention blocks of one level."""
    settings, cuboids = self_block_settings(config), config.decoder_cuboids()[level]
    return nn.ModuleList(StackCuboidSelfAttentionBlock(config.units[level], cuboids, settings) for _ in range(count))


def upsample_layers(config: EarthformerConfig) -> nn.ModuleList:
    """From level i + 1 to level i, for each i."""
    return nn.ModuleList(
        Upsample3DLayer(
            config.units[level + 1],
            config.units[level],
            (config.frames_out, *config.level_sizes[level][1:]),
            kernel_size=config.upsample_kernel_size,
        )
        for level in range(config.levels - 1)
    )


def hierarchical_embeddings(config: EarthformerConfig) -> nn.ModuleList:
    """Position embeddings of the levels below the top, added on arrival; empty where not configured."""
    levels = config.levels - 1 if config.dec_hierarchical_pos_embed else 0
    return nn.ModuleList(
        PosEmbed(config.units[level], config.frames_out, *config.level_sizes[level][1:], typ=config.pos_embed_type)
        for level in range(levels)
    )


class CuboidTransformerDecoder(nn.Module):
    """Query z (B, T_out, H_top, W_top, C_top) and the encoder's memories → (B, T_out, H_0, W_0, C_0)."""

    def __init__(self, config: EarthformerConfig) -> None:
        super().__init__()
        self.config = config
        top = config.levels - 1
        self.self_blocks = nn.ModuleList()
        self.cross_blocks = nn.ModuleList()
        for level, depth in enumerate(config.dec_depth):
            leads = level < top or config.dec_use_first_self_attn
            self.self_blocks.append(self_blocks(config, level, depth if leads else depth - 1))
            if level >= config.dec_cross_start:
                self.cross_blocks.append(cross_blocks(config, level, depth))
        self.upsample_layers = upsample_layers(config)
        self.hierarchical_pos_embed_l = hierarchical_embeddings(config)

    def forward(self, z: Tensor, memories: list[Tensor], globals_: list[Tensor | None]) -> Tensor:
        """Memories and global vectors as the encoder returns them."""
        for level in reversed(range(self.config.levels)):
            z = self._level(level, z, memories[level], globals_[level])
            if level > 0:
                z = self.upsample_layers[level - 1](z)
                if len(self.hierarchical_pos_embed_l):
                    z = self.hierarchical_pos_embed_l[level - 1](z)
        return z

    def _level(self, level: int, z: Tensor, memory: Tensor, g: Tensor | None) -> Tensor:
        attentions, depth = level_blocks(self.self_blocks, level), self.config.dec_depth[level]
        delay = depth - len(attentions)  # 1 where the level begins with a cross-attention
        for index in range(depth):
            if index >= delay:
                z, updated = attentions[index - delay](z, g)
                if updated is not None and self.config.dec_self_update_global:
                    g = updated
            if level >= self.config.dec_cross_start:
                z = level_blocks(self.cross_blocks, level - self.config.dec_cross_start)[index](z, memory, g)
        return z
