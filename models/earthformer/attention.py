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
    relative_position_bias,
)
from models.earthformer.execution import TwoPathModule
from models.earthformer.global_attention import (
    Affine,
    AmongGlobals,
    attend_globally,
    global_scores,
    split_global_heads,
)
from models.earthformer.layers import Norm, build_norm
from models.earthformer.plain_attention import plain_self_attention
from models.earthformer.products import dropout, linear
from models.earthformer.softmax_attention import Extra, attend


class CuboidSelfAttentionLayer(TwoPathModule):
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
        if self.is_plain:
            return plain_self_attention(self, x, global_vectors)
        _, t, h, w, _ = x.shape
        layout = self.layout((t, h, w))
        x = self.norm(x)
        cut = layout
        if self.qkv.bias is not None:  # padded tokens are 0 before the projection, not after
            x, cut = layout.pad(x), layout.without_padding()
        extra = updated = None
        if global_vectors is not None and self.use_global_vector:
            g = self.global_vec_norm(global_vectors)
            extra = self._seen(x, g, cut)
            updated = self._updated(cut.enlarge(x) if any(layout.pads) else x, g, layout)
        out = self._attend(x, extra, cut, layout)
        return out if self.qkv.bias is None else layout.crop(out), updated

    def _attend(self, x: Tensor, extra: Extra | None, cut: CuboidLayout, layout: CuboidLayout) -> Tensor:
        """Every token sees its cuboid and the extra keys: x (B, T, H, W, C), normalised, → (B, T, H, W, C)."""
        projected = linear(x, self.qkv.weight, self.qkv.bias)  # one copy brings it to cuboids and heads
        q, kv = torch.split(cut.split_heads(projected, 3, self.num_heads), [1, 2])
        k, v = kv.unbind(0)
        drop = self.attn_drop.p if self.training else 0.0
        out = cut.join_heads(
            attend(
                q[0],
                k,
                v,
                self._bias(layout.volume),
                scale=self.scale,
                extra=extra,
                allowed=self._allowed(layout),
                drop=drop,
            )
        )
        if self.proj is None:
            return out
        return dropout(linear(out, self.proj.weight, self.proj.bias), self.proj_drop.p, self.training)

    def _seen(self, x: Tensor, g: Tensor, cut: CuboidLayout) -> Extra:
        """Scores and values of the global vectors g (B, N, rC), normalised, as every token of x sees them."""
        if self.separate_global_qkv:
            query, (k, v) = (
                Affine.of(self.l2g_q_net),
                split_global_heads(self.l2g_global_kv_net(g), 2, self.num_heads),
            )
        else:
            query, (_, k, v) = Affine.of(self.qkv, 0), split_global_heads(self.global_qkv(g), 3, self.num_heads)
        return Extra(cut.split_heads(global_scores(x, query, k, self.scale), 1, self.num_heads)[0], v)

    def _updated(self, x: Tensor, g: Tensor, layout: CuboidLayout) -> Tensor:
        """Update of the global vectors g (B, N, rC) from the padded and rolled x (B, T, H, W, C), both normalised."""
        among: AmongGlobals | None = None
        if not self.separate_global_qkv:
            own = AmongGlobals(*split_global_heads(self.global_qkv(g), 3, self.num_heads))
            q, k, v = own.query, Affine.of(self.qkv, 1), Affine.of(self.qkv, 2)
            among = own if self.use_global_self_attn else None
        else:
            (q,) = split_global_heads(self.g2l_global_q_net(g), 1, self.num_heads)
            k, v = Affine.of(self.g2l_k_net), Affine.of(self.g2l_v_net)
            if self.use_global_self_attn:
                among = AmongGlobals(*split_global_heads(self.g2g_global_qkv_net(g), 3, self.num_heads))
        mask = self.global_mask(layout, x.device)
        if mask is not None:
            mask = layout.restore(mask.view(1, layout.cuboids, layout.volume, 1))[0, ..., 0]
        out = attend_globally(
            x, q, k, v, scale=self.scale, among=among, allowed=mask, drop=self.attn_drop.p, training=self.training
        )
        if self.global_proj is None:
            return out
        projected: Tensor = self.proj_drop(self.global_proj(out))
        return projected

    def _bias(self, volume: int) -> Tensor | None:
        table = self.relative_position_bias_table
        if table is None:
            return None
        return self.derived(
            ("bias", volume), (table,), lambda: relative_position_bias(table, self.bias_cuboid, volume, volume)
        )

    def _allowed(self, layout: CuboidLayout) -> Tensor | None:
        weight = self.qkv.weight
        return self.derived(("allowed", layout), (weight,), lambda: attention_mask(layout, layout, weight.device))

    def global_mask(self, layout: CuboidLayout, device: torch.device) -> Tensor | None:
        """Which tokens the global vectors see, in the order of cuboids, (n·V) bool; None: all."""
        real = layout.real_volume(device) if self.reference_global_mask else layout.real(device)
        return None if real is None else real.flatten()
