"""PreDiff's three networks under the published argument names; validates before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.earthformer.cuboids import Padding, Triple
from models.earthformer.layers import Activation, Norm, PositionEmbeddingKind, merged_size
from models.earthformer.patterns import SELF_PATTERNS, SelfCuboid

Shape = tuple[int, int, int, int]


class AutoencoderConfig(BaseModel):
    """The frame autoencoder, field names as diffusers' AutoencoderKL; each level after the first halves H and W."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["prediff-autoencoder"] = "prediff-autoencoder"
    in_channels: int = Field(default=1, ge=1)
    out_channels: int = Field(default=1, ge=1)
    block_out_channels: tuple[int, ...] = Field(default=(128, 256, 512, 512), min_length=1)
    layers_per_block: int = Field(default=2, ge=1)
    latent_channels: int = Field(default=64, ge=1)
    norm_num_groups: int = Field(default=32, ge=1)
    act_fn: Literal["silu", "gelu", "relu", "mish"] = "silu"
    # Pixels along each axis that enter as channels of one: no layer then works at full resolution (our addition).
    patch_size: int = Field(default=1, ge=1)
    # A shortcut without weights around encoder and decoder (Chen et al. 2024, DC-AE, arXiv:2410.10733; our addition):
    # cosine coefficients of each latent cell's pixels, lowest first. Training starts from them instead of from noise.
    cosine_shortcut: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if wrong := [width for width in self.block_out_channels if width % self.norm_num_groups]:
            raise ValueError(f"expected widths divisible by {self.norm_num_groups} groups; got {wrong}")
        if self.cosine_shortcut and self.latent_channels > self.downscale**2 * self.in_channels:
            raise ValueError(f"expected at most {self.downscale**2 * self.in_channels} latent channels with a shortcut")
        return self

    @property
    def downscale(self) -> int:
        """Pixels per latent cell, along H and along W."""
        return int(2 ** (len(self.block_out_channels) - 1)) * self.patch_size

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the latent of a frame of (height, width) pixels: the decoder gives the frame's size back.

        Raises:
            ValueError: the frame is no multiple of `downscale`.
        """
        if height % self.downscale or width % self.downscale:
            raise ValueError(f"expected frames that are a multiple of {self.downscale}; got {height} x {width}")
        return height // self.downscale, width // self.downscale


class BackboneConfig(BaseModel):
    """What the denoiser and the alignment network share: axial Earthformer levels conditioned on the diffusion step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_shape: Shape  # (T, h, w, C): the denoiser's context, the alignment network's latent
    base_units: int = Field(default=256, ge=2)
    scale_alpha: float = 1.0
    num_heads: int = Field(default=4, ge=1)
    depth: tuple[int, ...] = Field(default=(4, 4), min_length=1)
    downsample: int | Triple = 2
    attn_drop: float = Field(default=0.1, ge=0, lt=1)
    proj_drop: float = Field(default=0.1, ge=0, lt=1)
    ffn_drop: float = Field(default=0.1, ge=0, lt=1)
    ffn_activation: Activation = "gelu"
    gated_ffn: bool = False
    norm_layer: Norm = "layer_norm"
    padding_type: Padding = "zeros"
    pos_embed_type: PositionEmbeddingKind = "t+h+w"
    use_relative_pos: bool = True
    self_attn_use_final_proj: bool = True
    time_embed_channels_mult: int = Field(default=4, ge=1)
    time_embed_use_scale_shift_norm: bool = False
    time_embed_dropout: float = Field(default=0.0, ge=0, lt=1)
    # Not in the published arguments. Groups of one channel would cancel a step that is only added: widths that
    # `norm_groups` does not divide, or equals, need the scale and shift above.
    norm_groups: int = Field(default=32, ge=1)
    checkpoint_level: int = Field(default=0, ge=0, le=2)
    # Channels that say more about each noisy frame, behind its own (our addition: the latent of the anchor's forecast).
    condition_channels: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if wrong := [units for units in self.units if units % self.num_heads]:
            raise ValueError(f"expected widths divisible by {self.num_heads} heads; got {wrong}")
        if self.base_units % 2:
            raise ValueError(f"expected an even base_units, half cosines and half sines of the step; got {self}")
        if self.pattern not in SELF_PATTERNS:
            raise ValueError(f"expected a pattern of {', '.join(SELF_PATTERNS)}; got {self.pattern!r}")
        return self

    @property
    def pattern(self) -> str:
        """Name of the self-attention pattern of every stack."""
        return "axial"

    @property
    def frames(self) -> int:
        """Frames inside the network."""
        return self.input_shape[0]

    @property
    def levels(self) -> int:
        """Levels of the hierarchy; 0 is the finest."""
        return len(self.depth)

    @property
    def time_units(self) -> int:
        """Width of the embedding of the diffusion step."""
        return self.base_units * self.time_embed_channels_mult

    @property
    def downsample_thw(self) -> Triple:
        """Patch merging between levels."""
        return (1, self.downsample, self.downsample) if isinstance(self.downsample, int) else self.downsample

    @cached_property
    def units(self) -> tuple[int, ...]:
        """Width of each level."""
        growth = max(self.downsample_thw) ** self.scale_alpha
        return tuple(self.base_units * int(growth**level) for level in range(self.levels))

    @cached_property
    def level_sizes(self) -> tuple[Triple, ...]:
        """(T, h, w) of each level."""
        sizes: list[Triple] = [(self.frames, *self.input_shape[1:3])]
        for _ in range(self.levels - 1):
            sizes.append(merged_size(sizes[-1], self.downsample_thw))
        return tuple(sizes)

    def cuboids(self, level: int) -> tuple[SelfCuboid, ...]:
        """The attention layers of a stack at `level`."""
        return SELF_PATTERNS[self.pattern](self.level_sizes[level])


class DenoiserConfig(BackboneConfig):
    """The latent Earthformer-UNet: context (T_in, h, w, C) and noisy latent (T_out, h, w, C)."""

    family: Literal["prediff-denoiser"] = "prediff-denoiser"
    target_shape: Shape
    self_pattern: str = "axial"
    upsample_kernel_size: int = Field(default=3, ge=1)
    unet_res_connect: bool = True
    # The noisy latent reaches the output through a gate set by the step (our addition; compare the skip connection of
    # Karras et al. 2022, arXiv:2206.00364): a network narrower than the latent need not carry its noise.
    input_skip: bool = False

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        if self.input_shape[1:] != self.target_shape[1:]:
            raise ValueError(f"expected equal h, w, C in and out; got {self.input_shape} and {self.target_shape}")
        if self.downsample_thw[0] != 1:
            raise ValueError(f"expected no merging of frames between levels; got {self.downsample_thw}")
        return self

    @property
    def pattern(self) -> str:
        """Name of the self-attention pattern of every stack."""
        return self.self_pattern

    @property
    def frames(self) -> int:
        """Context and target frames, concatenated."""
        return self.input_shape[0] + self.target_shape[0]


class AlignmentConfig(BackboneConfig):
    """The alignment network: noisy latent `input_shape` (T_out, h, w, C) → (T_out, out_channels)."""

    family: Literal["prediff-alignment"] = "prediff-alignment"
    base_units: int = Field(default=128, ge=2)
    depth: tuple[int, ...] = Field(default=(1, 1), min_length=1)
    out_channels: int = Field(default=1, ge=1)
    block_attn_patterns: str = "axial"

    @model_validator(mode="after")
    def _check_shapes(self) -> Self:
        if self.downsample_thw[0] != 1:
            raise ValueError(f"expected no merging of frames between levels; got {self.downsample_thw}")
        return self

    @property
    def pattern(self) -> str:
        """Name of the self-attention pattern of every stack."""
        return self.block_attn_patterns


class PreDiffArchitecture(BaseModel):
    """The three networks of one PreDiff, whose latents fit each other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["prediff"] = "prediff"
    autoencoder: AutoencoderConfig
    denoiser: DenoiserConfig
    alignment: AlignmentConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        shape, channels = self.denoiser.target_shape, self.autoencoder.latent_channels
        if shape[-1] != channels:
            raise ValueError(f"expected a denoiser of {channels} latent channels, the autoencoder's; got {shape[-1]}")
        if self.alignment.input_shape != shape:
            raise ValueError(f"expected an alignment network of {shape}; got {self.alignment.input_shape}")
        return self

    @classmethod
    def sized(
        cls,
        t_in: int,
        t_out: int,
        patch: tuple[int, int],
        autoencoder: AutoencoderConfig,
        denoiser: Mapping[str, Any],
        alignment: Mapping[str, Any],
    ) -> Self:
        """Networks for t_in → t_out frames of `patch` (H, W) pixels; of the latent networks the further fields.

        Raises:
            ValueError: the patch is no multiple of the autoencoder's downscale.
        """
        latent = (*autoencoder.latent_size(*patch), autoencoder.latent_channels)
        return cls(
            autoencoder=autoencoder,
            denoiser=DenoiserConfig(**{**denoiser, "input_shape": (t_in, *latent), "target_shape": (t_out, *latent)}),
            alignment=AlignmentConfig(**{**alignment, "input_shape": (t_out, *latent)}),
        )

    def resized(self, *, t_in: int, t_out: int, patch: tuple[int, int]) -> Self:
        """The same networks for other frame counts and another grid (H, W).

        Raises:
            ValueError: the patch is no multiple of the autoencoder's downscale.
        """
        parts = (self.denoiser.model_dump(), self.alignment.model_dump())
        return self.sized(t_in, t_out, patch, self.autoencoder, *parts)

    @property
    def t_in(self) -> int:
        """Context frames."""
        return self.denoiser.input_shape[0]

    @property
    def t_out(self) -> int:
        """Forecast frames."""
        return self.denoiser.target_shape[0]

    @property
    def patch(self) -> tuple[int, int]:
        """(H, W) of a frame, pixels."""
        _, h, w, _ = self.denoiser.target_shape
        return h * self.autoencoder.downscale, w * self.autoencoder.downscale

    @property
    def latent_shape(self) -> Shape:
        """(T_out, h, w, C) of what is sampled."""
        return self.denoiser.target_shape
