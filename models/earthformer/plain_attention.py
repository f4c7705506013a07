"""Cuboid attention in the reference's order of operations (Gao et al. 2022, equations 2–7, arXiv:2207.05833).

One tensor for each step: reorder, project, score, add the bias, mask, softmax, weigh, project, reorder. The fast path
in `attention` and `cross_attention` gives the same numbers.
Shapes: B batch, n cuboids, V tokens a cuboid, h heads, d = C/h, N global vectors, r their width over C.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.earthformer.cuboids import CuboidLayout, Triple, attention_mask, masked_softmax, relative_position_index

if TYPE_CHECKING:
    from models.earthformer.attention import CuboidSelfAttentionLayer
    from models.earthformer.cross_attention import CuboidCrossAttentionLayer

# Query, key and value of one path.
Heads = tuple[Tensor, ...]


def plain_self_attention(
    layer: CuboidSelfAttentionLayer, x: Tensor, global_vectors: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Updates, without residual, of x (B, T, H, W, C) and of global_vectors (B, N, rC)."""
    _, t, h, w, _ = x.shape
    layout = layer.layout((t, h, w))
    tokens = layout.split(layer.norm(x))  # (B, n, V, C): padding after the norm, padded tokens are exactly 0
    q, k, v = _heads(layer.qkv(tokens), 3, layer.num_heads)  # (B, h, n, V, d)
    scores = (q * layer.scale) @ k.transpose(-2, -1)  # (B, h, n, V, V)
    scores = _biased(scores, layer.relative_position_bias_table, layer.bias_cuboid)
    allowed = _mask(layout, layout, x.device)
    if global_vectors is None or not layer.use_global_vector:
        out = layer.attn_drop(masked_softmax(scores, allowed)) @ v
        return layout.join(_project(_merge(out), layer.proj, layer.proj_drop)), None
    g = layer.global_vec_norm(global_vectors)
    seen, seeing, among = _global_heads(layer, tokens, g, (q, k, v))
    out = _with_globals(scores, v, seen, allowed, layer.scale, layer.attn_drop)
    updated = _attend_globally(layer, seeing, among, layout)
    return layout.join(_project(_merge(out), layer.proj, layer.proj_drop)), updated


def plain_cross_attention(
    layer: CuboidCrossAttentionLayer, x: Tensor, mem: Tensor, mem_global_vectors: Tensor | None
) -> Tensor:
    """Update of x (B, T_x, H, W, C) from mem (B, T_m, H, W, C), without residual."""
    (_, t_x, h, w, _), t_m = x.shape, mem.shape[1]
    query, memory = layer.layouts((t_x, h, w), (t_m, h, w))
    tokens = query.split(layer.norm(x))
    (q,) = _heads(layer.q_proj(tokens), 1, layer.num_heads)
    k, v = _heads(layer.kv_proj(memory.split(mem)), 2, layer.num_heads)
    scores = (q * layer.scale) @ k.transpose(-2, -1)  # (B, h, n, V_x, V_m)
    scores = _biased(scores, layer.relative_position_bias_table, layer.bias_cuboid)
    allowed = _mask(query, memory, x.device)
    if mem_global_vectors is None or not layer.use_global_vector:
        out = layer.attn_drop(masked_softmax(scores, allowed)) @ v
    else:
        if layer.separate_global_qkv:
            (q,) = _heads(layer.l2g_q_net(tokens), 1, layer.num_heads)
            seen = (q, *_heads(layer.l2g_global_kv_net(mem_global_vectors), 2, layer.num_heads))
        else:
            seen = (q, *_heads(layer.kv_proj(mem_global_vectors), 2, layer.num_heads))
        out = _with_globals(scores, v, seen, allowed, layer.scale, layer.attn_drop)
    return query.join(_project(_merge(out), layer.proj, layer.proj_drop))


def _heads(x: Tensor, parts: int, heads: int) -> Heads:
    """x (B, ..., L, parts·h·d) → `parts` tensors (B, h, ..., L, d)."""
    split = x.reshape(*x.shape[:-1], parts, heads, -1).movedim((-3, -2), (0, 2))
    return tuple(split.contiguous().unbind(0))


def _merge(x: Tensor) -> Tensor:
    """(B, h, ..., L, d) → (B, ..., L, h·d)."""
    return x.movedim(1, -2).flatten(-2)


def _project(tokens: Tensor, projection: nn.Linear | None, drop: nn.Dropout) -> Tensor:
    if projection is None:
        return tokens
    projected: Tensor = drop(projection(tokens))
    return projected


def _biased(scores: Tensor, table: Tensor | None, cuboid: Triple) -> Tensor:
    """scores (B, h, n, V, V') plus the bias gathered from `table`, the same for all cuboids."""
    if table is None:
        return scores
    queries, keys = scores.shape[-2:]
    gathered = table[_index(cuboid, queries, keys, table.device).flatten()]
    bias = gathered.reshape(queries, keys, -1).permute(2, 0, 1).contiguous()
    return scores + bias[:, None]


def _with_globals(
    scores: Tensor, values: Tensor, others: Heads, allowed: Tensor, scale: float, drop: nn.Dropout
) -> Tensor:
    """One softmax over the keys of `scores` and over those of `others`, which are always allowed."""
    q, k, v = others
    if k.dim() < q.dim():  # (B, h, N, d) of the global vectors, the same for all cuboids
        k, v = k[:, :, None], v[:, :, None].expand(-1, -1, values.shape[2], -1, -1)
    extra = (q * scale) @ k.transpose(-2, -1)
    allowed = F.pad(allowed, (0, extra.shape[-1]), value=True)
    weights: Tensor = drop(masked_softmax(torch.cat([scores, extra], dim=-1), allowed))
    return weights @ torch.cat([values, v], dim=-2)


def _global_heads(
    layer: CuboidSelfAttentionLayer, tokens: Tensor, g: Tensor, local: Heads
) -> tuple[Heads, Heads, Heads | None]:
    """Heads of the three paths: token → global (q, k, v), global → token (q, k, v), global → global (q, k, v)."""
    heads = layer.num_heads
    if not layer.separate_global_qkv:
        own = _heads(layer.global_qkv(g), 3, heads)  # (B, h, N, d)
        return (local[0], *own[1:]), (own[0], *local[1:]), own if layer.use_global_self_attn else None
    seen = (*_heads(layer.l2g_q_net(tokens), 1, heads), *_heads(layer.l2g_global_kv_net(g), 2, heads))
    seeing = (
        *_heads(layer.g2l_global_q_net(g), 1, heads),
        *_heads(layer.g2l_k_net(tokens), 1, heads),
        *_heads(layer.g2l_v_net(tokens), 1, heads),  # head width r·d
    )
    among = _heads(layer.g2g_global_qkv_net(g), 3, heads) if layer.use_global_self_attn else None
    return seen, seeing, among


def _attend_globally(
    layer: CuboidSelfAttentionLayer, seeing: Heads, among: Heads | None, layout: CuboidLayout
) -> Tensor:
    """Each global vector attends to all n·V tokens and optionally to the N global vectors → (B, N, rC)."""
    q, k, v = seeing
    k, v = k.flatten(2, 3), v.flatten(2, 3)  # (B, h, n·V, ·)
    scores = (q * layer.scale) @ k.transpose(-2, -1)  # (B, h, N, n·V)
    real = layer.global_mask(layout, q.device)
    allowed = scores.new_ones(1, scores.shape[-1], dtype=torch.bool) if real is None else real
    if among is None:
        out = layer.attn_drop(masked_softmax(scores, allowed)) @ v
    else:
        out = _with_globals(scores, v, among, allowed, layer.scale, layer.attn_drop)
    return _project(_merge(out), layer.global_proj, layer.proj_drop)


@lru_cache(maxsize=16)
def _mask(query: CuboidLayout, key: CuboidLayout, device: torch.device) -> Tensor:
    """Which key a query may see, (cuboids, query volume, key volume); all true where nothing is padded or rolled."""
    with torch.inference_mode(False):  # an inference tensor could serve no later training
        allowed = attention_mask(query, key, device)
        if allowed is not None:
            return allowed
        return torch.ones(query.cuboids, query.volume, key.volume, dtype=torch.bool, device=device)


@lru_cache(maxsize=128)
def _index(cuboid: Triple, queries: int, keys: int, device: torch.device) -> Tensor:
    """The reference keeps this as a buffer of the layer."""
    with torch.inference_mode(False):
        return relative_position_index(cuboid, queries, keys, device)
