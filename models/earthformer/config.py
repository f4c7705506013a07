"""Earthformer's configuration under the published argument names; validates before anything is built."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.earthformer.cuboids import Padding, Pair, Strategy, Triple
from models.earthformer.layers import Activation, Norm, PositionEmbeddingKind, merged_size
from models.earthformer.patterns import CROSS_PATTERNS, SELF_PATTERNS, CrossCuboid, SelfCuboid

Shape = tuple[int, int, int, int]
Triples = tuple[Triple, ...]
Pairs = tuple[Pair, ...]
Strategies = tuple[Strategy, ...]
Patterns = str | tuple[str, ...] | None
InitMode = Literal["0", "1"]


class EarthformerConfig(BaseModel):
    """Architecture of one Earthformer; names as in the published configurations, shapes (T, H, W, C)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["earthformer"] = "earthformer"
    input_shape: Shape
    target_shape: Shape
    base_units: int = Field(default=128, ge=1)
    block_units: tuple[int, ...] | None = None
    scale_alpha: float = 1.0
    num_heads: int = Field(default=4, ge=1)
    enc_depth: tuple[int, ...] = (1, 1)
    dec_depth: tuple[int, ...] = (1, 1)
    enc_use_inter_ffn: bool = True
    dec_use_inter_ffn: bool = True
    downsample: int | Triple = 2
    downsample_type: Literal["patch_merge"] = "patch_merge"
    upsample_type: Literal["upsample"] = "upsample"
    upsample_kernel_size: int = 3
    # Attention: a pattern's name (for all levels or a list per level), or explicit cuboids where the pattern is None.
    enc_attn_patterns: Patterns = "axial"
    enc_cuboid_size: Triples | tuple[Triples, ...] = ((4, 4, 4), (4, 4, 4))
    enc_cuboid_strategy: Strategies | tuple[Strategies, ...] = (("l", "l", "l"), ("d", "d", "d"))
    enc_shift_size: Triples | tuple[Triples, ...] = ((0, 0, 0), (0, 0, 0))
    dec_self_attn_patterns: Patterns = "axial"
    dec_self_cuboid_size: Triples | tuple[Triples, ...] = ((4, 4, 4), (4, 4, 4))
    dec_self_cuboid_strategy: Strategies | tuple[Strategies, ...] = (("l", "l", "l"), ("d", "d", "d"))
    dec_self_shift_size: Triples | tuple[Triples, ...] = ((1, 1, 1), (0, 0, 0))
    dec_cross_attn_patterns: Patterns = "cross_1x1"
    dec_cross_cuboid_hw: Pairs | tuple[Pairs, ...] = ((4, 4), (4, 4))
    dec_cross_cuboid_strategy: Strategies | tuple[Strategies, ...] = (("l", "l", "l"), ("d", "l", "l"))
    dec_cross_shift_hw: Pairs | tuple[Pairs, ...] = ((0, 0), (0, 0))
    dec_cross_n_temporal: tuple[int, ...] | tuple[tuple[int, ...], ...] = (1, 2)
    dec_cross_last_n_frames: int | None = None
    dec_cross_start: int = Field(default=0, ge=0)
    dec_use_first_self_attn: bool = False
    dec_hierarchical_pos_embed: bool = False
    # Global vectors.
    num_global_vectors: int = Field(default=0, ge=0)
    use_dec_self_global: bool = False
    dec_self_update_global: bool = True
    use_dec_cross_global: bool = False
    use_global_vector_ffn: bool = True
    use_global_self_attn: bool = False
    separate_global_qkv: bool = False
    global_dim_ratio: int = Field(default=1, ge=1)
    reference_global_mask: bool = True
    # Inside the layers.
    attn_drop: float = Field(default=0.0, ge=0, lt=1)
    proj_drop: float = Field(default=0.0, ge=0, lt=1)
    ffn_drop: float = Field(default=0.0, ge=0, lt=1)
    ffn_activation: Activation = "gelu"
    gated_ffn: bool = False
    norm_layer: Norm = "layer_norm"
    padding_type: Padding = "zeros"
    pos_embed_type: PositionEmbeddingKind = "t+h+w"
    use_relative_pos: bool = True
    self_attn_use_final_proj: bool = True
    z_init_method: Literal["zeros", "nearest_interp", "last", "mean"] = "zeros"
    # Stems.
    initial_downsample_type: Literal["conv", "stack_conv"] = "conv"
    initial_downsample_activation: Activation = "leaky"
    initial_downsample_scale: int | Pair | Triple = 1
    initial_downsample_conv_layers: int = Field(default=2, ge=0)
    final_upsample_conv_layers: int = Field(default=2, ge=0)
    initial_downsample_stack_conv_num_layers: int = Field(default=1, ge=1)
    initial_downsample_stack_conv_dim_list: tuple[int, ...] | None = None
    initial_downsample_stack_conv_downscale_list: tuple[int, ...] = (1,)
    initial_downsample_stack_conv_num_conv_list: tuple[int, ...] = (2,)
    # Auxiliary inputs (EarthNet): None for the plain model.
    auxiliary_channels: int | None = None
    unet_dec_cross_mode: Literal["up", "down", "both"] = "up"
    # Training.
    checkpoint_level: int = Field(default=0, ge=0, le=2)
    attn_linear_init_mode: InitMode = "0"
    ffn_linear_init_mode: InitMode = "0"
    conv_init_mode: Literal["0"] = "0"
    down_up_linear_init_mode: InitMode = "0"
    norm_init_mode: Literal["0"] = "0"

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_shapes()
        self._check_levels()
        self._check_globals()
        self._check_stems()
        self._check_patterns("enc_attn_patterns", SELF_PATTERNS)
        self._check_patterns("dec_self_attn_patterns", SELF_PATTERNS)
        self._check_patterns("dec_cross_attn_patterns", CROSS_PATTERNS)
        return self

    def _check_patterns(self, field: str, known: Collection[str]) -> None:
        patterns: Patterns = getattr(self, field)
        if patterns is None:
            return
        names = _each_level(patterns, self.levels)
        if len(names) != self.levels:
            raise ValueError(f"expected {self.levels} names in {field}; got {names}")
        for name in names:
            if name not in known:
                raise ValueError(f"expected {field} of {', '.join(known)}; got {name!r}")

    def _check_shapes(self) -> None:
        if self.input_shape[1:3] != self.target_shape[1:3]:
            raise ValueError(
                f"expected equal H, W in and out; got {self.input_shape[1:3]} and {self.target_shape[1:3]}"
            )

    def _check_levels(self) -> None:
        if len(self.enc_depth) != len(self.dec_depth):
            raise ValueError(f"expected as many decoder as encoder levels; got {self.enc_depth} and {self.dec_depth}")
        if self.block_units is not None and (
            self.block_units[0] != self.base_units or len(self.block_units) != self.levels
        ):
            raise ValueError(
                f"expected {self.levels} block_units beginning with {self.base_units}; got {self.block_units}"
            )
        for units in self.units:
            if units % self.num_heads:
                raise ValueError(f"expected widths divisible by {self.num_heads} heads; got {self.units}")

    def _check_globals(self) -> None:
        if self.global_dim_ratio != 1 and not self.separate_global_qkv:
            raise ValueError("global_dim_ratio other than 1 needs separate_global_qkv")
        if self.num_global_vectors == 0 and (self.use_dec_self_global or self.use_dec_cross_global):
            raise ValueError("global vectors in the decoder need num_global_vectors > 0")

    def _check_stems(self) -> None:
        if self.initial_downsample_type == "conv":
            if self.base_units % 16:
                raise ValueError(
                    f"the conv stem normalises in 16 groups: base_units must divide by 16; got {self.base_units}"
                )
            return
        stages = self.initial_downsample_stack_conv_num_layers
        lists = (
            self.stem_units,
            self.initial_downsample_stack_conv_downscale_list,
            self.initial_downsample_stack_conv_num_conv_list,
        )
        if any(len(values) != stages for values in lists):
            raise ValueError(f"expected {stages} entries in every initial_downsample_stack_conv list; got {lists}")
        if self.stem_units[-1] != self.base_units:
            raise ValueError(f"expected the stem to end with base_units {self.base_units}; got {self.stem_units}")

    @property
    def levels(self) -> int:
        """Levels of the hierarchy; 0 is the finest."""
        return len(self.enc_depth)

    @property
    def downsample_thw(self) -> Triple:
        """Patch merging between levels."""
        return (1, self.downsample, self.downsample) if isinstance(self.downsample, int) else self.downsample

    @cached_property
    def units(self) -> tuple[int, ...]:
        """Width of each level."""
        if self.block_units is not None:
            return self.block_units
        growth = max(self.downsample_thw) ** self.scale_alpha
        return tuple(self.base_units * int(growth**level) for level in range(self.levels))

    @property
    def stem_units(self) -> tuple[int, ...]:
        """Widths of the stacked stem's stages."""
        stages = self.initial_downsample_stack_conv_num_layers
        return self.initial_downsample_stack_conv_dim_list or (self.base_units,) * stages

    @property
    def stem_scale(self) -> Triple:
        """Patch merging of the plain stem."""
        scale = self.initial_downsample_scale
        if isinstance(scale, int):
            return 1, scale, scale
        return scale if len(scale) == 3 else (1, scale[0], scale[1])

    @cached_property
    def stem_sizes(self) -> tuple[Triple, ...]:
        """(T, H, W) before each stage of the stem and after the last."""
        sizes = [self.input_shape[:3]]
        stacked = self.initial_downsample_type == "stack_conv"
        scales = (
            [(1, s, s) for s in self.initial_downsample_stack_conv_downscale_list] if stacked else [self.stem_scale]
        )
        for scale in scales:
            sizes.append(merged_size(sizes[-1], scale))
        return tuple(sizes)

    @cached_property
    def level_sizes(self) -> tuple[Triple, ...]:
        """(T, H, W) of the encoder's memory at each level."""
        sizes = [self.stem_sizes[-1]]
        for _ in range(self.levels - 1):
            sizes.append(merged_size(sizes[-1], self.downsample_thw))
        return tuple(sizes)

    @property
    def frames_out(self) -> int:
        """T_out."""
        return self.target_shape[0]

    def encoder_cuboids(self) -> list[tuple[SelfCuboid, ...]]:
        """Self-attention layers of an encoder block at each level."""
        explicit = (self.enc_cuboid_size, self.enc_cuboid_strategy, self.enc_shift_size)
        return self._self_cuboids(self.enc_attn_patterns, explicit)

    def decoder_cuboids(self) -> list[tuple[SelfCuboid, ...]]:
        """Self-attention layers of a decoder block at each level, sized by the encoder's memory as published."""
        explicit = (self.dec_self_cuboid_size, self.dec_self_cuboid_strategy, self.dec_self_shift_size)
        return self._self_cuboids(self.dec_self_attn_patterns, explicit)

    def cross_cuboids(self) -> list[tuple[CrossCuboid, ...]]:
        """Cross-attention layers of a decoder block at each level."""
        if self.dec_cross_attn_patterns is not None:
            names = _each_level(self.dec_cross_attn_patterns, self.levels)
            return [CROSS_PATTERNS[name](size) for name, size in zip(names, self.level_sizes, strict=True)]
        explicit = (self.dec_cross_cuboid_hw, self.dec_cross_cuboid_strategy, self.dec_cross_shift_hw)
        return [
            tuple(
                CrossCuboid(*layer)
                for layer in zip(
                    *(_of_level(values, level, 2) for values in explicit),
                    _of_level(self.dec_cross_n_temporal, level, 1),
                    strict=True,
                )
            )
            for level in range(self.levels)
        ]

    def _self_cuboids(self, patterns: Patterns, explicit: tuple[Any, Any, Any]) -> list[tuple[SelfCuboid, ...]]:
        if patterns is not None:
            names = _each_level(patterns, self.levels)
            return [SELF_PATTERNS[name](size) for name, size in zip(names, self.level_sizes, strict=True)]
        return [
            tuple(SelfCuboid(*layer) for layer in zip(*(_of_level(v, level, 2) for v in explicit), strict=True))
            for level in range(self.levels)
        ]


def _each_level(patterns: str | tuple[str, ...], levels: int) -> tuple[str, ...]:
    return (patterns,) * levels if isinstance(patterns, str) else patterns


def _of_level(values: Any, level: int, depth: int) -> tuple[Any, ...]:
    """The layers' values at `level`; `values` is one list of layers nested `depth` deep, or such a list by level."""
    nesting, inner = 0, values
    while isinstance(inner, tuple):
        nesting, inner = nesting + 1, inner[0]
    chosen: tuple[Any, ...] = values[level] if nesting > depth else values
    return chosen
