"""Cuboid cross-attention: the decoder looks into the encoder's memory of its level (Gao et al. 2022, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.earthformer.attention import attend_with_globals, merge_heads, split_heads
from models.earthformer.cuboids import (
    CuboidLayout,
    Padding,
    Pair,
    Strategy,
    Triple,
    attention_mask,
    bias_table_rows,
    masked_softmax,
    relative_position_bias,
)
from models.earthformer.layers import Norm, build_norm


class CuboidCrossAttentionLayer(nn.Module):
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
        (_, t_x, h, w, _), t_m = x.shape, mem.shape[1]
        query, memory = self.layouts((t_x, h, w), (t_m, h, w))
        tokens = query.split(self.norm(x))
        (q,) = split_heads(self.q_proj(tokens), 1, self.num_heads)
        k, v = split_heads(self.kv_proj(memory.split(mem)), 2, self.num_heads)
        scores = (q * self.scale) @ k.transpose(-2, -1)  # (B, n, h, V_x, V_m)
        if self.relative_position_bias_table is not None:
            table = self.relative_position_bias_table
            scores = scores + relative_position_bias(table, self.bias_cuboid, query.volume, memory.volume)
        allowed = attention_mask(query, memory, x.device)
        allowed = None if allowed is None else allowed[:, None]
        if mem_global_vectors is None or not self.use_global_vector:
            out = self.attn_drop(masked_softmax(scores, allowed)) @ v
        else:
            extra, extra_values = self._global_scores(tokens, q, mem_global_vectors)
            out = attend_with_globals(scores, v, extra, extra_values, allowed, self.attn_drop)
        merged = merge_heads(out)
        return query.join(merged if self.proj is None else self.proj_drop(self.proj(merged)))

    def _global_scores(self, tokens: Tensor, q: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, n, h, V_x, N) and values (B, 1, h, N, d) of the memory's global vectors."""
        if self.separate_global_qkv:
            (q,) = split_heads(self.l2g_q_net(tokens), 1, self.num_heads)
            k, v = split_heads(self.l2g_global_kv_net(g), 2, self.num_heads)
        else:
            k, v = split_heads(self.kv_proj(g), 2, self.num_heads)
        return (q * self.scale) @ k[:, None].transpose(-2, -1), v[:, None]
