"""Softmax attention inside many small cuboids, with a bias shared by all and with extra keys of given scores.

Shapes: G = B·h·n independent problems of V queries and V' keys of width d; N extra keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.earthformer.products import keep_mask, keep_scale, masked_scale, on_plain_cpu

_VECTOR = 16  # torch's softmax of a last axis shorter than a vector register is five times slower than its parts
_SMALL = 512  # keys: above, an inference never writes the scores out; torch's kernel gives a bias no gradient


class Extra(NamedTuple):
    """Keys that every query sees beside those of its cuboid: scores (B, h, n, V, N) and values (B, h, N, d)."""

    scores: Tensor
    values: Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    *,
    scale: float,
    extra: Extra | None = None,
    allowed: Tensor | None = None,
    drop: float = 0.0,
) -> Tensor:
    """One softmax over the keys of the cuboid and the extra ones → (B, h, n, V, d).

    Args:
        q: (B, h, n, V, d); k, v: (B, h, n, V', d).
        bias: (h, V, V'), added to the scores.
        scale: of the scores of k; those of `extra` are final.
        extra: further keys, always allowed.
        allowed: (n, V, V') bool, which key a query may see; a query that sees none gets 0.
        drop: rate of dropout of the weights.
    """
    if on_plain_cpu(q) and (k.shape[-2] <= _SMALL or torch.is_grad_enabled()):
        scores, values = (None, None) if extra is None else extra
        groups = q.shape[:3]
        flat = (part.flatten(0, 2) for part in (q, k, v))
        out: Tensor = _SmallAttention.apply(*flat, bias, scores, values, allowed, groups, scale, drop)  # type: ignore[no-untyped-call]
        return out.view(*groups, *out.shape[1:])
    return _attend_fused(q, k, v, bias, scale, extra, allowed, drop)


class _SmallAttention(torch.autograd.Function):
    """Batched products with the weights in between; keeps one copy of the weights and a byte of dropout for each."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        extra: Tensor | None,
        values: Tensor | None,
        allowed: Tensor | None,
        groups: tuple[int, int, int],
        scale: float,
        drop: float,
    ) -> Tensor:
        batch, heads, n = groups
        length, dim = q.shape[1:]
        weights = _scores(q, k, bias, scale, groups).view(*groups, length, -1)
        if allowed is not None:
            weights.masked_fill_(~allowed, -1e18)
        weights, extra = _softmax_(weights, extra, allowed)
        keep = keep_extra = None
        dropped, dropped_extra = weights, extra
        if drop > 0:
            keep = keep_mask(weights, drop)
            dropped = masked_scale(weights, keep, keep_scale(drop))
            if extra is not None:
                keep_extra = keep_mask(extra, drop)
                dropped_extra = masked_scale(extra, keep_extra, keep_scale(drop))
        out = dropped.view(-1, length, k.shape[1]) @ v
        if dropped_extra is not None and values is not None:
            flat = dropped_extra.reshape(batch * heads, n * length, -1)
            out.view(batch * heads, n * length, dim).baddbmm_(flat, values.reshape(batch * heads, -1, dim))
        ctx.save_for_backward(q, k, v, weights, extra, values, keep, keep_extra)
        ctx.groups, ctx.scale, ctx.drop, ctx.biased = groups, scale, drop, bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, extra, values, keep, keep_extra = ctx.saved_tensors
        (batch, heads, n), (length, dim) = ctx.groups, grad.shape[1:]
        flat = grad.contiguous()
        rescale = keep_scale(ctx.drop)
        used = weights if keep is None else masked_scale(weights, keep, rescale)
        grad_v = used.view(-1, length, k.shape[1]).transpose(1, 2) @ flat
        d_weights = (flat @ v.transpose(1, 2)).view_as(weights)
        if keep is not None:
            d_weights = masked_scale(d_weights, keep, rescale)
        d_scores = d_weights.mul_(weights)
        total = d_scores.sum(-1, keepdim=True)
        d_extra = grad_values = None
        if extra is not None:
            rows = flat.view(batch * heads, n * length, dim)
            used = extra if keep_extra is None else masked_scale(extra, keep_extra, rescale)
            grad_values = (used.reshape(batch * heads, n * length, -1).transpose(1, 2) @ rows).view_as(values)
            d_extra = (rows @ values.reshape(batch * heads, -1, dim).transpose(1, 2)).view_as(extra)
            if keep_extra is not None:
                d_extra = masked_scale(d_extra, keep_extra, rescale)
            d_extra.mul_(extra)
            total = total + d_extra.sum(-1, keepdim=True)
            d_extra.addcmul_(extra, total, value=-1)
        d_scores.addcmul_(weights, total, value=-1)
        d_bias = d_scores.sum((0, 2)) if ctx.biased else None
        small = d_scores.view(-1, length, k.shape[1])
        grad_q = (small @ k).mul_(ctx.scale)
        grad_k = (small.transpose(1, 2) @ q).mul_(ctx.scale)
        return grad_q, grad_k, grad_v, d_bias, d_extra, grad_values, None, None, None, None


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float, groups: tuple[int, int, int]) -> Tensor:
    """scale · q kᵀ + bias, (B·h·n, V, V')."""
    if bias is None:
        return (q @ k.transpose(1, 2)).mul_(scale)
    scores = bias.new_empty(*groups, *bias.shape[1:]).copy_(bias[:, None])
    return scores.flatten(0, 2).baddbmm_(q, k.transpose(1, 2), alpha=scale)


def _softmax_(scores: Tensor, extra: Tensor | None, allowed: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights of one softmax over the last axes of `scores` and `extra`; overwrites `scores`."""
    if extra is None and allowed is None and scores.shape[-1] >= _VECTOR:
        return scores.softmax(-1), None
    top = scores.amax(-1, keepdim=True)
    if extra is not None:
        top = torch.maximum(top, extra.amax(-1, keepdim=True))
        extra = (extra - top).exp_()
    scores.sub_(top).exp_()
    if allowed is not None:
        scores.mul_(allowed)
    total = scores.sum(-1, keepdim=True)
    if extra is not None:
        total.add_(extra.sum(-1, keepdim=True))
    if allowed is not None:
        total.masked_fill_(total == 0, 1)
    total.reciprocal_()
    return scores.mul_(total), None if extra is None else extra.mul_(total)


def _attend_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    extra: Extra | None,
    allowed: Tensor | None,
    drop: float,
) -> Tensor:
    """By torch's scaled-dot-product kernel of the device.

    The scores of the extra keys travel as N more features of the query, against a unit matrix in the keys.
    """
    batch, heads, n, length, _ = q.shape
    additive = None if bias is None else bias[:, None].expand(-1, n, -1, -1)  # (h, n, V, V')
    if allowed is not None:
        barred = torch.zeros_like(allowed, dtype=q.dtype).masked_fill_(~allowed, -1e18)
        additive = barred.expand(heads, -1, -1, -1) if additive is None else additive + barred
    if extra is not None:
        q, k, v = _with_extra(q, k, v, extra, scale)
        additive = None if additive is None else F.pad(additive, (0, extra.values.shape[-2]))
    q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in (q, k, v))  # (B·n, h, ·, ·)
    mask = None if additive is None else _rows(additive, batch).to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, mask, drop, scale=scale)
    out = out.view(batch, n, heads, length, -1).transpose(1, 2)
    if allowed is not None and extra is None:
        out = out * allowed.any(-1)[..., None]
    return out


def _rows(additive: Tensor, batch: int) -> Tensor:
    """(h, n, V, V') → (1 or B·n, h, V, V'); one row where it is the same for all cuboids."""
    if additive.stride(1) == 0:
        return additive[:, :1].transpose(0, 1)
    return additive.transpose(0, 1).repeat(batch, 1, 1, 1)


def _with_extra(q: Tensor, k: Tensor, v: Tensor, extra: Extra, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    count, n = extra.values.shape[-2], q.shape[2]
    unit = torch.eye(count, dtype=k.dtype, device=k.device) / scale
    keys = F.pad(unit, (k.shape[-1], 0)).expand(*k.shape[:3], -1, -1)
    values = extra.values[:, :, None].expand(-1, -1, n, -1, -1)
    return (
        torch.cat([q, extra.scores.to(q.dtype)], dim=-1),
        torch.cat([F.pad(k, (0, count)), keys], dim=-2),
        torch.cat([v, values.to(v.dtype)], dim=-2),
    )
