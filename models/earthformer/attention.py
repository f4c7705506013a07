"""Cuboid self-attention with global vectors (Gao et al. 2022, equations 2–7, arXiv:2207.05833).

Shapes: B batch, n cuboids, V tokens a cuboid, h heads, d = C/h, N global vectors, r their width over C.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.earthformer.cuboids import (
    CuboidLayout,
    Padding,
    Strategy,
    Triple,
    attention_mask,
    bias_table_rows,
    masked_softmax,
    relative_position_bias,
)
from models.earthformer.layers import Norm, build_norm

# Query, key and value of one path; None where the path reuses another's.
Heads = tuple[Tensor, ...]


def split_heads(x: Tensor, parts: int, heads: int) -> Heads:
    """x (B, ..., L, parts·h·d) → `parts` tensors (B, ..., h, L, d)."""
    split = x.view(*x.shape[:-1], parts, heads, -1).transpose(-4, -2)
    return tuple(split[..., part, :, :] for part in range(parts))


def merge_heads(x: Tensor) -> Tensor:
    """(B, ..., h, L, d) → (B, ..., L, h·d)."""
    return x.transpose(-3, -2).flatten(-2)


class CuboidSelfAttentionLayer(nn.Module):
    """Attention inside cuboids; tokens also see the global vectors, and the global vectors see every token.

    No residual inside. `reference_global_mask` keeps a published quirk for padding "ignore": global vectors read the
    validity of keys in raster instead of cuboid order.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        cuboid_size: Triple,
        shift_size: Triple = (0, 0, 0),
        strategy: Strategy = ("l", "l", "l"),
        *,
        padding_type: Padding = "ignore",
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_final_proj: bool = True,
        norm_layer: Norm = "layer_norm",
        use_global_vector: bool = False,
        use_global_self_attn: bool = False,
        separate_global_qkv: bool = False,
        global_dim_ratio: int = 1,
        use_relative_pos: bool = True,
        reference_global_mask: bool = True,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"expected a width divisible by {num_heads} heads; got {dim}")
        if global_dim_ratio != 1 and not separate_global_qkv:
            raise ValueError("global_dim_ratio other than 1 needs separate_global_qkv")
        self.num_heads = num_heads
        self.cuboid_size: Triple = cuboid_size
        self.bias_cuboid: Triple = cuboid_size  # the bias table keeps this geometry even where the cuboid is reduced
        self.shift_size: Triple = shift_size
        self.strategy: Strategy = strategy
        self.padding_type: Padding = padding_type
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.use_global_vector = use_global_vector
        self.use_global_self_attn = use_global_self_attn
        self.separate_global_qkv = separate_global_qkv
        self.reference_global_mask = reference_global_mask
        self.relative_position_bias_table: nn.Parameter | None = None
        if use_relative_pos:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(bias_table_rows(cuboid_size), num_heads))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        if use_global_vector:
            self._build_global_nets(dim, global_dim_ratio * dim, qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)
        self.proj = nn.Linear(dim, dim) if use_final_proj else None
        self.norm = build_norm(norm_layer, dim)
        if use_global_vector:
            self.global_proj = nn.Linear(global_dim_ratio * dim, global_dim_ratio * dim) if use_final_proj else None
            self.global_vec_norm = build_norm(norm_layer, global_dim_ratio * dim)

    def _build_global_nets(self, dim: int, global_dim: int, bias: bool) -> None:
        if not self.separate_global_qkv:
            self.global_qkv = nn.Linear(dim, 3 * dim, bias=bias)
            return
        self.l2g_q_net = nn.Linear(dim, dim, bias=bias)
        self.l2g_global_kv_net = nn.Linear(global_dim, 2 * dim, bias=bias)
        self.g2l_global_q_net = nn.Linear(global_dim, dim, bias=bias)
        self.g2l_k_net = nn.Linear(dim, dim, bias=bias)
        self.g2l_v_net = nn.Linear(dim, global_dim, bias=bias)
        if self.use_global_self_attn:
            self.g2g_global_qkv_net = nn.Linear(global_dim, 3 * global_dim, bias=bias)

    def layout(self, size: Triple) -> CuboidLayout:
        """How a volume of `size` (T, H, W) is cut here."""
        return CuboidLayout.reduced(size, self.cuboid_size, self.shift_size, self.strategy, self.padding_type)

    def forward(self, x: Tensor, global_vectors: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, T, H, W, C), global_vectors (B, N, rC) → their updates, without residual."""
        _, t, h, w, _ = x.shape
        layout = self.layout((t, h, w))
        tokens = layout.split(self.norm(x))  # (B, n, V, C): padding after the norm, padded tokens are exactly 0
        q, k, v = split_heads(self.qkv(tokens), 3, self.num_heads)  # (B, n, h, V, d)
        if global_vectors is None or not self.use_global_vector:
            return layout.join(self._project(self._attend_locally(q, k, v, None, layout))), None
        g = self.global_vec_norm(global_vectors)
        seen, seeing, among = self._global_heads(tokens, g, (q, k, v))
        out = self._attend_locally(q, k, v, seen, layout)
        updated = self._attend_globally(seeing, among, layout)
        return layout.join(self._project(out)), updated

    def _global_heads(self, tokens: Tensor, g: Tensor, local: Heads) -> tuple[Heads, Heads, Heads | None]:
        """Heads of the three paths: token → global (q, k, v), global → token (q, k, v), global → global (q, k, v)."""
        heads = self.num_heads
        if not self.separate_global_qkv:
            own = split_heads(self.global_qkv(g), 3, heads)  # (B, h, N, d)
            return (local[0], *own[1:]), (own[0], *local[1:]), own if self.use_global_self_attn else None
        seen = (*split_heads(self.l2g_q_net(tokens), 1, heads), *split_heads(self.l2g_global_kv_net(g), 2, heads))
        seeing = (
            *split_heads(self.g2l_global_q_net(g), 1, heads),
            *split_heads(self.g2l_k_net(tokens), 1, heads),
            *split_heads(self.g2l_v_net(tokens), 1, heads),  # head width r·d
        )
        among = split_heads(self.g2g_global_qkv_net(g), 3, heads) if self.use_global_self_attn else None
        return seen, seeing, among

    def _attend_locally(self, q: Tensor, k: Tensor, v: Tensor, seen: Heads | None, layout: CuboidLayout) -> Tensor:
        """One softmax over the V tokens of the cuboid and the N global vectors → (B, n, V, C)."""
        scores = (q * self.scale) @ k.transpose(-2, -1)  # (B, n, h, V, V)
        volume = layout.volume
        if self.relative_position_bias_table is not None:
            scores = scores + relative_position_bias(
                self.relative_position_bias_table, self.bias_cuboid, volume, volume
            )
        allowed = attention_mask(layout, layout, q.device)
        allowed = None if allowed is None else allowed[:, None]
        if seen is None:
            return merge_heads(self.attn_drop(masked_softmax(scores, allowed)) @ v)
        q_seen, k_seen, v_seen = seen
        return merge_heads(
            attend_with_globals(
                scores,
                v,
                (q_seen * self.scale) @ k_seen[:, None].transpose(-2, -1),
                v_seen[:, None],
                allowed,
                self.attn_drop,
            )
        )

    def _attend_globally(self, seeing: Heads, among: Heads | None, layout: CuboidLayout) -> Tensor:
        """Each global vector attends to all n·V tokens and optionally to the N global vectors → (B, N, rC)."""
        q, k, v = seeing
        k, v = (part.transpose(1, 2).flatten(2, 3) for part in (k, v))  # (B, h, n·V, ·)
        scores = (q * self.scale) @ k.transpose(-2, -1)  # (B, h, N, n·V)
        allowed = self._global_mask(layout, q.device)
        if among is None:
            out = self.attn_drop(masked_softmax(scores, allowed)) @ v
        else:
            q_among, k_among, v_among = among
            inner = (q_among * self.scale) @ k_among.transpose(-2, -1)
            out = attend_with_globals(scores, v, inner, v_among, allowed, self.attn_drop)
        out = merge_heads(out)
        return out if self.global_proj is None else self.proj_drop(self.global_proj(out))

    def _global_mask(self, layout: CuboidLayout, device: torch.device) -> Tensor | None:
        real = layout.real_volume(device) if self.reference_global_mask else layout.real(device)
        return None if real is None else real.reshape(1, -1)

    def _project(self, tokens: Tensor) -> Tensor:
        return tokens if self.proj is None else self.proj_drop(self.proj(tokens))


def attend_with_globals(
    scores: Tensor, values: Tensor, extra: Tensor, extra_values: Tensor, allowed: Tensor | None, drop: nn.Module
) -> Tensor:
    """One softmax over [scores | extra] (..., L, S + N), the extra keys always allowed; → (..., L, d)."""
    split = scores.shape[-1]
    if allowed is not None:
        always = allowed.new_ones((*allowed.shape[:-1], extra.shape[-1]))
        allowed = torch.cat([allowed, always], dim=-1)
    weights: Tensor = drop(masked_softmax(torch.cat([scores, extra], dim=-1), allowed))
    return weights[..., :split] @ values + weights[..., split:] @ extra_values
