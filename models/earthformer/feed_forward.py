"""The position-wise feed-forward network between the attentions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.earthformer.execution import TwoPathModule
from models.earthformer.layers import Activation, Norm, build_activation, build_norm
from models.earthformer.products import (
    dropout,
    keep_mask,
    keep_scale,
    linear,
    linear_gradients,
    masked_scale,
    on_plain_cpu,
)


class PositionwiseFFN(TwoPathModule):
    """x + W2 act(W1 norm(x)), optionally gated; with `pre_norm` false norm(x + W2 act(W1 x))."""

    def __init__(
        self,
        units: int,
        hidden_size: int,
        *,
        activation: Activation = "gelu",
        gated_proj: bool = False,
        normalization: Norm = "layer_norm",
        pre_norm: bool = True,
        dropout: float = 0.0,
        activation_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.ffn_1 = nn.Linear(units, hidden_size)
        self.ffn_1_gate = nn.Linear(units, hidden_size) if gated_proj else None
        self.ffn_2 = nn.Linear(hidden_size, units)
        self.layer_norm = build_norm(normalization, units)
        self.activation = build_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.activation_dropout = nn.Dropout(activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.layer_norm(x) if self.pre_norm else x
        y = self._plain(x, inner) if self.is_plain else self._fast(x, inner)
        return y if self.pre_norm else self.layer_norm(y)

    def _plain(self, x: Tensor, inner: Tensor) -> Tensor:
        if self.ffn_1_gate is None:
            hidden = self.activation(self.ffn_1(inner))
        else:
            hidden = self.activation(self.ffn_1_gate(inner)) * self.ffn_1(inner)
        y: Tensor = x + self.dropout(self.ffn_2(self.activation_dropout(hidden)))
        return y

    def _fast(self, x: Tensor, inner: Tensor) -> Tensor:
        hidden = linear(inner, self.ffn_1.weight, self.ffn_1.bias)
        gate = None if self.ffn_1_gate is None else linear(inner, self.ffn_1_gate.weight, self.ffn_1_gate.bias)
        rate = self.activation_dropout.p if self.training else 0.0
        weight, bias = self.ffn_2.weight, self.ffn_2.bias
        if torch.is_grad_enabled() and on_plain_cpu(x):
            out = _ActivatedLinear.apply(hidden, gate, weight, bias, self.activation, rate)  # type: ignore[no-untyped-call]
        else:
            out = linear(dropout(_activated(hidden, gate, self.activation), rate, self.training), weight, bias)
        return x + dropout(out, self.dropout.p, self.training)


def _activated(hidden: Tensor, gate: Tensor | None, activation: Callable[[Tensor], Tensor]) -> Tensor:
    return activation(hidden) if gate is None else activation(gate) * hidden


class _ActivatedLinear(torch.autograd.Function):
    """W (drop(act(hidden))) + b; keeps the products before the activation only, which the backward pass repeats."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        gate: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        activation: nn.Module,
        rate: float,
    ) -> Tensor:
        inner = _activated(hidden, gate, activation)
        keep = keep_mask(inner, rate) if rate > 0 else None
        if keep is not None:
            inner = masked_scale(inner, keep, keep_scale(rate))
        ctx.save_for_backward(hidden, gate, weight, keep)
        ctx.activation, ctx.rate = activation, rate
        return linear(inner, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, gate, weight, keep = ctx.saved_tensors
        sources = [part.detach().requires_grad_() for part in (hidden, gate) if part is not None]
        with torch.enable_grad():
            inner = _activated(sources[0], sources[1] if gate is not None else None, ctx.activation)
        used = inner.detach() if keep is None else masked_scale(inner.detach(), keep, keep_scale(ctx.rate))
        d_inner, d_weight, d_bias = linear_gradients(grad, used, weight)
        del used
        if keep is not None:
            d_inner = masked_scale(d_inner, keep, keep_scale(ctx.rate))
        d_sources = torch.autograd.grad(inner, sources, d_inner)
        d_gate = d_sources[1] if gate is not None else None
        return d_sources[0], d_gate, d_weight, d_bias, None, None
