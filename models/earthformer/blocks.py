"""Blocks: the attention layers of one pattern, each with residual and feed-forward network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.earthformer.attention import CuboidSelfAttentionLayer
from models.earthformer.cross_attention import CuboidCrossAttentionLayer
from models.earthformer.cuboids import Padding
from models.earthformer.feed_forward import PositionwiseFFN
from models.earthformer.layers import Activation, Norm
from models.earthformer.patterns import CrossCuboid, SelfCuboid


@dataclass(frozen=True)
class BlockSettings:
    """What every block of a model shares; `inter_ffn` puts a feed-forward network after each attention, not after all.

    `checkpoint_level` recomputes in the backward pass: 1 the feed-forward networks, 2 also the attention.
    """

    num_heads: int
    padding_type: Padding = "ignore"
    qkv_bias: bool = False
    qk_scale: float | None = None
    attn_drop: float = 0.0
    proj_drop: float = 0.0
    ffn_drop: float = 0.0
    activation: Activation = "leaky"
    gated_ffn: bool = False
    norm_layer: Norm = "layer_norm"
    inter_ffn: bool = True
    use_global_vector: bool = False
    use_global_vector_ffn: bool = True
    use_global_self_attn: bool = False
    separate_global_qkv: bool = False
    global_dim_ratio: int = 1
    use_relative_pos: bool = True
    use_final_proj: bool = True
    checkpoint_level: int = 0
    reference_global_mask: bool = True

    def feed_forward(self, units: int) -> PositionwiseFFN:
        """A pre-norm feed-forward network of hidden width 4·units."""
        return PositionwiseFFN(
            units,
            4 * units,
            activation=self.activation,
            gated_proj=self.gated_ffn,
            normalization=self.norm_layer,
            dropout=self.ffn_drop,
            activation_dropout=self.ffn_drop,
        )


class StackCuboidSelfAttentionBlock(nn.Module):
    """Self-attention layers of one pattern; forward(x, g) → (x, g), residuals inside."""

    def __init__(self, dim: int, cuboids: Sequence[SelfCuboid], settings: BlockSettings) -> None:
        super().__init__()
        self.settings = settings
        wide = settings.global_dim_ratio * dim
        networks = len(cuboids) if settings.inter_ffn else 1
        self.attn_l = nn.ModuleList(_self_attention(dim, cuboid, settings) for cuboid in cuboids)
        self.ffn_l = nn.ModuleList(settings.feed_forward(dim) for _ in range(networks))
        global_networks = networks if settings.use_global_vector and settings.use_global_vector_ffn else 0
        self.global_ffn_l = nn.ModuleList(settings.feed_forward(wide) for _ in range(global_networks))

    def forward(self, x: Tensor, global_vectors: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, T, H, W, C), global_vectors (B, N, rC)."""
        g = global_vectors if self.settings.use_global_vector else None
        for layer, attention in enumerate(self.attn_l):
            update, global_update = self._run(2, attention, x, g)
            x = x + update
            g = g + global_update if g is not None else None
            if self.settings.inter_ffn:
                x, g = self._feed_forward(layer, x, g)
        return (x, g) if self.settings.inter_ffn else self._feed_forward(0, x, g)

    def _feed_forward(self, layer: int, x: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = self._run(1, self.ffn_l[layer], x)
        if g is not None and len(self.global_ffn_l):
            g = self._run(1, self.global_ffn_l[layer], g)
        return x, g

    def _run(self, level: int, module: nn.Module, *inputs: Tensor | None) -> Any:
        return run_recomputing(self.training and self.settings.checkpoint_level >= level, module, *inputs)


class StackCuboidCrossAttentionBlock(nn.Module):
    """Cross-attention layers of one pattern; forward(x, mem, g) → x, residuals inside."""

    def __init__(
        self,
        dim: int,
        cuboids: Sequence[CrossCuboid],
        settings: BlockSettings,
        *,
        max_temporal_relative: int,
        cross_last_n_frames: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.attn_l = nn.ModuleList(
            CuboidCrossAttentionLayer(
                dim,
                settings.num_heads,
                cuboid.n_temporal,
                cuboid.cuboid_hw,
                cuboid.shift_hw,
                cuboid.strategy,
                max_temporal_relative=max_temporal_relative,
                cross_last_n_frames=cross_last_n_frames,
                padding_type=settings.padding_type,
                qkv_bias=settings.qkv_bias,
                qk_scale=settings.qk_scale,
                attn_drop=settings.attn_drop,
                proj_drop=settings.proj_drop,
                norm_layer=settings.norm_layer,
                use_global_vector=settings.use_global_vector,
                separate_global_qkv=settings.separate_global_qkv,
                global_dim_ratio=settings.global_dim_ratio,
                use_relative_pos=settings.use_relative_pos,
            )
            for cuboid in cuboids
        )
        networks = len(cuboids) if settings.inter_ffn else 1
        self.ffn_l = nn.ModuleList(settings.feed_forward(dim) for _ in range(networks))

    def forward(self, x: Tensor, mem: Tensor, mem_global_vectors: Tensor | None = None) -> Tensor:
        """x (B, T_x, H, W, C), mem (B, T_m, H, W, C), mem_global_vectors (B, N, rC)."""
        for layer, attention in enumerate(self.attn_l):
            x = x + self._run(2, attention, x, mem, mem_global_vectors)
            if self.settings.inter_ffn:
                x = self._run(1, self.ffn_l[layer], x)
        return x if self.settings.inter_ffn else self._run(1, self.ffn_l[0], x)

    def _run(self, level: int, module: nn.Module, *inputs: Tensor | None) -> Any:
        return run_recomputing(self.training and self.settings.checkpoint_level >= level, module, *inputs)


def run_recomputing(recompute: bool, module: nn.Module, *inputs: Tensor | None) -> Any:
    """module(*inputs), keeping no activations for the backward pass when `recompute`."""
    return checkpoint(module, *inputs, use_reentrant=False) if recompute else module(*inputs)


def _self_attention(dim: int, cuboid: SelfCuboid, settings: BlockSettings) -> CuboidSelfAttentionLayer:
    return CuboidSelfAttentionLayer(
        dim,
        settings.num_heads,
        cuboid.size,
        cuboid.shift,
        cuboid.strategy,
        padding_type=settings.padding_type,
        qkv_bias=settings.qkv_bias,
        qk_scale=settings.qk_scale,
        attn_drop=settings.attn_drop,
        proj_drop=settings.proj_drop,
        use_final_proj=settings.use_final_proj,
        norm_layer=settings.norm_layer,
        use_global_vector=settings.use_global_vector,
        use_global_self_attn=settings.use_global_self_attn,
        separate_global_qkv=settings.separate_global_qkv,
        global_dim_ratio=settings.global_dim_ratio,
        use_relative_pos=settings.use_relative_pos,
        reference_global_mask=settings.reference_global_mask,
    )
