"""Cuboid cross-attention: the decoder looks into the encoder's memory of its level (Gao et al. 2022, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.earthformer.cuboids import (
    CuboidLayout,
    Padding,
    Pair,
    Strategy,
    Triple,
    attention_mask,
    bias_table_rows,
    relative_position_bias,
)
from models.earthformer.execution import TwoPathModule
from models.earthformer.global_attention import Affine, global_scores, split_global_heads
from models.earthformer.layers import Norm, build_norm
from models.earthformer.plain_attention import plain_cross_attention
from models.earthformer.products import dropout, linear
from models.earthformer.softmax_attention import Extra, attend


class CuboidCrossAttentionLayer(TwoPathModule):
    """Query cuboid k attends to memory cuboid k, and to the memory's global vectors where there are any.

    Only the query is normalised. `max_temporal_relative` bounds query plus memory frames, both counted from 0.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        n_temporal: int = 1,
        cuboid_hw: Pair = (1, 1),
        shift_hw: Pair = (0, 0),
        strategy: Strategy = ("l", "l", "l"),
        *,
        max_temporal_relative: int = 50,
        cross_last_n_frames: int | None = None,
        padding_type: Padding = "ignore",
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_final_proj: bool = True,
        norm_layer: Norm = "layer_norm",
        use_global_vector: bool = False,
        separate_global_qkv: bool = False,
        global_dim_ratio: int = 1,
        use_relative_pos: bool = True,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"expected a width divisible by {num_heads} heads; got {dim}")
        if global_dim_ratio != 1 and not separate_global_qkv:
            raise ValueError("global_dim_ratio other than 1 needs separate_global_qkv")
        self.num_heads = num_heads
        self.n_temporal = n_temporal
        self.cuboid_hw: Pair = cuboid_hw
        self.shift_hw: Pair = shift_hw
        self.strategy: Strategy = strategy
        self.bias_cuboid: Triple = (max_temporal_relative, *cuboid_hw)
        self.cross_last_n_frames = cross_last_n_frames
        self.padding_type: Padding = padding_type
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.use_global_vector = use_global_vector
        self.separate_global_qkv = separate_global_qkv
        self.relative_position_bias_table: nn.Parameter | None = None
        if use_relative_pos:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(bias_table_rows(self.bias_cuboid), num_heads))
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv_proj = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        if use_global_vector and separate_global_qkv:
            self.l2g_q_net = nn.Linear(dim, dim, bias=qkv_bias)
            self.l2g_global_kv_net = nn.Linear(global_dim_ratio * dim, 2 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)
        self.proj = nn.Linear(dim, dim) if use_final_proj else None
        self.norm = build_norm(norm_layer, dim)

    def layouts(self, query: Triple, memory: Triple) -> tuple[CuboidLayout, CuboidLayout]:
        """How volumes of the sizes `query` and `memory` (T, H, W) are cut: equally many cuboids in both."""
        return self._layout(query, time_first=False), self._layout(memory, time_first=True)

    def _layout(self, size: Triple, *, time_first: bool) -> CuboidLayout:
        frames = -(-size[0] // self.n_temporal)
        _, kind_h, kind_w = self.strategy
        shift = (0, 0 if kind_h == "d" else self.shift_hw[0], 0 if kind_w == "d" else self.shift_hw[1])
        return CuboidLayout(size, (frames, *self.cuboid_hw), shift, self.strategy, self.padding_type, time_first)

    def forward(self, x: Tensor, mem: Tensor, mem_global_vectors: Tensor | None = None) -> Tensor:
        """x (B, T_x, H, W, C), mem (B, T_m, H, W, C), mem_global_vectors (B, N, rC) → update of x, without residual."""
        if self.cross_last_n_frames is not None:
            mem = mem[:, max(mem.shape[1] - self.cross_last_n_frames, 0) :]
        if self.is_plain:
            return plain_cross_attention(self, x, mem, mem_global_vectors)
        (_, t_x, h, w, _), t_m = x.shape, mem.shape[1]
        query, memory = self.layouts((t_x, h, w), (t_m, h, w))
        x, cut, cut_memory = self.norm(x), query, memory
        if self.q_proj.bias is not None:  # padded tokens are 0 before the projection, not after
            x, mem, cut, cut_memory = query.pad(x), memory.pad(mem), query.without_padding(), memory.without_padding()
        extra = None
        if mem_global_vectors is not None and self.use_global_vector:
            extra = self._seen(x, mem_global_vectors, cut)
        (q,) = cut.split_heads(linear(x, self.q_proj.weight, self.q_proj.bias), 1, self.num_heads).unbind(0)
        keys_values = linear(mem, self.kv_proj.weight, self.kv_proj.bias)
        k, v = cut_memory.split_heads(keys_values, 2, self.num_heads).unbind(0)
        out = cut.join_heads(
            attend(
                q,
                k,
                v,
                self._bias(query.volume, memory.volume),
                scale=self.scale,
                extra=extra,
                allowed=self._allowed(query, memory),
                drop=self.attn_drop.p if self.training else 0.0,
            )
        )
        if self.proj is not None:
            out = dropout(linear(out, self.proj.weight, self.proj.bias), self.proj_drop.p, self.training)
        return out if self.q_proj.bias is None else query.crop(out)

    def _seen(self, x: Tensor, g: Tensor, cut: CuboidLayout) -> Extra:
        """Scores and values of the memory's global vectors g (B, N, rC) as every token of x sees them."""
        query, net = (
            (self.l2g_q_net, self.l2g_global_kv_net) if self.separate_global_qkv else (self.q_proj, self.kv_proj)
        )
        k, v = split_global_heads(net(g), 2, self.num_heads)
        scores = global_scores(x, Affine.of(query), k, self.scale)
        return Extra(cut.split_heads(scores, 1, self.num_heads)[0], v)

    def _bias(self, queries: int, keys: int) -> Tensor | None:
        table = self.relative_position_bias_table
        if table is None:
            return None
        return self.derived(
            ("bias", queries, keys), (table,), lambda: relative_position_bias(table, self.bias_cuboid, queries, keys)
        )

    def _allowed(self, query: CuboidLayout, memory: CuboidLayout) -> Tensor | None:
        weight = self.q_proj.weight
        return self.derived(("allowed", query, memory), (weight,), lambda: attention_mask(query, memory, weight.device))
