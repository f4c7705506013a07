"""Global vectors and tokens see each other (Gao et al. 2022, equations 4–7, arXiv:2207.05833).

The N global vectors are few: a token's query against their keys, q·k_g = x·(W_qᵀ k_g), and their queries against a
token's key take one product of x with h·N columns instead of a projection of x to C, and the values of tokens are
projected after the weighted sum instead of before.
Shapes: B batch, L tokens, h heads, d = C/h, N global vectors, r their width over C.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.earthformer.products import dropout


class Affine(NamedTuple):
    """A projection of tokens: weight (h·d, C), bias (h·d) or None."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, layer: nn.Linear, part: int | None = None, parts: int = 3) -> Affine:
        """The projection `layer`, or one of the `parts` equal parts of its outputs."""
        if part is None:
            return cls(layer.weight, layer.bias)
        rows = slice(part * layer.out_features // parts, (part + 1) * layer.out_features // parts)
        return cls(layer.weight[rows], None if layer.bias is None else layer.bias[rows])

    def pulled_back(self, heads: Tensor) -> tuple[Tensor, Tensor | None]:
        """heads (B, h, N, d) as vectors (B, h·N, C) with heads·(W x + b) = vectors·x + offset (B, h·N)."""
        weight = self.weight.view(heads.shape[1], heads.shape[-1], -1)  # (h, d, C)
        vectors = (heads @ weight).flatten(1, 2)
        if self.bias is None:
            return vectors, None
        return vectors, (heads @ self.bias.view(heads.shape[1], -1, 1)).flatten(1)


class AmongGlobals(NamedTuple):
    """Heads (B, h, N, ·) by which global vectors see one another."""

    query: Tensor
    key: Tensor
    value: Tensor


def split_global_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """x (B, N, parts·h·d) → `parts` tensors (B, h, N, d)."""
    return x.reshape(*x.shape[:2], parts, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def global_scores(x: Tensor, query: Affine, key: Tensor, scale: float) -> Tensor:
    """Scores of the tokens' queries against key (B, h, N, d): x (B, T, H, W, C) → (B, T, H, W, h·N)."""
    vectors, offset = query.pulled_back(key * scale)
    scores = x.flatten(1, 3) @ vectors.transpose(1, 2)
    if offset is not None:
        scores = scores + offset[:, None]
    return scores.view(*x.shape[:4], -1)


def attend_globally(
    x: Tensor,
    query: Tensor,
    key: Affine,
    value: Affine,
    *,
    scale: float,
    among: AmongGlobals | None = None,
    allowed: Tensor | None = None,
    drop: float = 0.0,
    training: bool = False,
) -> Tensor:
    """Each global vector sees all tokens x (B, T, H, W, C), and the global vectors if `among`, → (B, N, h·r·d).

    `query` (B, h, N, d); `allowed` (T, H, W) bool: which tokens are seen; None: all.
    """
    (batch, heads, count, _), tokens = query.shape, x.flatten(1, 3)
    vectors, offset = key.pulled_back(query * scale)
    scores = vectors @ tokens.transpose(1, 2)  # (B, h·N, L)
    if offset is not None:
        scores = scores + offset[..., None]
    if allowed is not None:
        scores = scores.masked_fill(~allowed.flatten(), -1e18)
    if among is not None:
        inner = (among.query * scale) @ among.key.transpose(-2, -1)
        scores = torch.cat([scores, inner.flatten(1, 2)], dim=-1)
    weights = dropout(scores.softmax(-1), drop, training)
    of_tokens = weights[..., : tokens.shape[1]]
    pooled = (of_tokens @ tokens).view(batch, heads, count, -1)
    out = pooled @ value.weight.view(heads, -1, tokens.shape[-1]).transpose(1, 2)  # (B, h, N, r·d)
    if value.bias is not None:
        out = out + of_tokens.sum(-1).view(batch, heads, count, 1) * value.bias.view(heads, 1, -1)
    if among is not None:
        out = out + weights[..., tokens.shape[1] :].view(batch, heads, count, count) @ among.value
    return out.transpose(1, 2).flatten(2)
