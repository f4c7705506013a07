"""The hierarchical encoder: blocks at each level, patch merging in between, one memory a level."""

from __future__ import annotations

from torch import Tensor, nn

from models.earthformer.blocks import BlockSettings, StackCuboidSelfAttentionBlock
from models.earthformer.config import EarthformerConfig
from models.earthformer.layers import PatchMerging3D


def block_settings(config: EarthformerConfig, *, inter_ffn: bool, use_global_vector: bool) -> BlockSettings:
    """What the blocks of one half of the model share."""
    return BlockSettings(
        num_heads=config.num_heads,
        padding_type=config.padding_type,
        attn_drop=config.attn_drop,
        proj_drop=config.proj_drop,
        ffn_drop=config.ffn_drop,
        activation=config.ffn_activation,
        gated_ffn=config.gated_ffn,
        norm_layer=config.norm_layer,
        inter_ffn=inter_ffn,
        use_global_vector=use_global_vector,
        use_global_vector_ffn=config.use_global_vector_ffn,
        use_global_self_attn=config.use_global_self_attn,
        separate_global_qkv=config.separate_global_qkv,
        global_dim_ratio=config.global_dim_ratio,
        use_relative_pos=config.use_relative_pos,
        use_final_proj=config.self_attn_use_final_proj,
        checkpoint_level=config.checkpoint_level,
        reference_global_mask=config.reference_global_mask,
    )


class CuboidTransformerEncoder(nn.Module):
    """x (B, T, H, W, C) → memories of all levels, finest first, and the global vectors after each level."""

    def __init__(self, config: EarthformerConfig) -> None:
        super().__init__()
        units, wide = config.units, config.global_dim_ratio
        settings = block_settings(
            config, inter_ffn=config.enc_use_inter_ffn, use_global_vector=config.num_global_vectors > 0
        )
        self.down_layers = nn.ModuleList(
            PatchMerging3D(
                units[level],
                units[level + 1],
                config.downsample_thw,
                padding_type=config.padding_type,
            )
            for level in range(config.levels - 1)
        )
        projections = config.levels - 1 if config.num_global_vectors else 0
        self.down_layer_global_proj = nn.ModuleList(
            nn.Linear(wide * units[level], wide * units[level + 1]) for level in range(projections)
        )
        self.blocks = nn.ModuleList(
            nn.ModuleList(StackCuboidSelfAttentionBlock(dim, cuboids, settings) for _ in range(depth))
            for dim, cuboids, depth in zip(units, config.encoder_cuboids(), config.enc_depth, strict=True)
        )

    def forward(self, x: Tensor, global_vectors: Tensor | None = None) -> tuple[list[Tensor], list[Tensor | None]]:
        """Memories (B, T_i, H_i, W_i, C_i) and global vectors (B, N, rC_i), level 0 first."""
        memories: list[Tensor] = []
        globals_: list[Tensor | None] = []
        g = global_vectors
        for level in range(len(self.blocks)):
            if level > 0:
                x = self.down_layers[level - 1](x)
                g = self.down_layer_global_proj[level - 1](g) if g is not None else None
            for block in level_blocks(self.blocks, level):
                x, g = block(x, g)
            memories.append(x)
            globals_.append(g)
        return memories, globals_


def level_blocks(levels: nn.ModuleList, level: int) -> list[nn.Module]:
    """The blocks of one level."""
    return list(levels[level].children())
