"""The frame autoencoder (Rombach et al. 2022, arXiv:2112.10752): each frame on its own to a latent and back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.earthformer.layers import from_frames, to_frames
from models.prediff.architecture import AutoencoderConfig
from models.prediff.blocks import safe_for_group_norm

_LOGVAR_RANGE = (-30.0, 20.0)


class FrameAutoencoder(nn.Module):
    """diffusers' AutoencoderKL (measured identical to the published one) behind tensors only; no scaling factor.

    `plain_attention` forms attention scores explicitly instead of by scaled_dot_product_attention.
    """

    def __init__(self, config: AutoencoderConfig, *, plain_attention: bool = False) -> None:
        super().__init__()
        self.config = config
        self.network = _build(config)
        if config.cosine_shortcut:
            self.register_buffer("basis", _cosine_basis(config), persistent=False)
            _begin_silent(self.network, config.latent_channels)
        if plain_attention:
            from diffusers.models.attention_processor import AttnProcessor

            self.network.set_attn_processor(AttnProcessor())

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (N, C, H, W) → mean and log-variance of the posterior, each (N, c, h, w)."""
        patches = F.pixel_unshuffle(frames, self.config.patch_size)
        moments = self.network.quant_conv(self.network.encoder(patches))
        mean, logvar = moments.chunk(2, dim=1)
        if self.config.cosine_shortcut:
            mean = mean + self._coefficients(frames)
        return mean, logvar.clamp(*_LOGVAR_RANGE)

    def decode(self, latent: Tensor) -> Tensor:
        """Latent (N, c, h, w) → frames (N, C, H, W), not clamped."""
        patches = self.network.decoder(self.network.post_quant_conv(latent))
        frames = F.pixel_shuffle(patches, self.config.patch_size)
        return frames + self._from_coefficients(latent) if self.config.cosine_shortcut else frames

    def _coefficients(self, frames: Tensor) -> Tensor:
        """Frames (N, C, H, W) → lowest cosine coefficients (N, c, h, w) of each latent cell's pixels."""
        pixels = F.pixel_unshuffle(frames, self.config.downscale)
        return torch.einsum("nphw,cp->nchw", pixels, self.basis.to(pixels))

    def _from_coefficients(self, latent: Tensor) -> Tensor:
        pixels = torch.einsum("nchw,cp->nphw", latent, self.basis.to(latent))
        return F.pixel_shuffle(pixels, self.config.downscale)

    def encode_sequence(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, T, H, W, C) → mean and log-variance, each (B, T, h, w, c)."""
        mean, logvar = self.encode(to_frames(frames))
        return from_frames(mean, len(frames)), from_frames(logvar, len(frames))

    def decode_sequence(self, latents: Tensor) -> Tensor:
        """Latents (B, T, h, w, c) → frames (B, T, H, W, C), not clamped."""
        return from_frames(self.decode(to_frames(latents)), len(latents))

    @property
    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution: the adversarial loss is balanced by its gradient."""
        weight: nn.Parameter = self.network.decoder.conv_out.weight
        return weight

    def forward(self, frames: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Frames (N, C, H, W) → decoded mean + exp(logvar/2)·noise (without noise the mean), mean, log-variance."""
        mean, logvar = self.encode(frames)
        latent = mean if noise is None else mean + torch.exp(0.5 * logvar) * noise
        return self.decode(latent), mean, logvar


def _build(config: AutoencoderConfig) -> Any:
    with torch.device("cpu"):  # importing makes tensors, also while a network is being built on "meta"
        from diffusers import AutoencoderKL
    levels = len(config.block_out_channels)
    network = AutoencoderKL(
        **config.model_dump(exclude={"family", "patch_size", "cosine_shortcut", "in_channels", "out_channels"}),
        in_channels=config.in_channels * config.patch_size**2,
        out_channels=config.out_channels * config.patch_size**2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=1.0,
    )
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_pre_hook(_make_safe)
    return network


def _make_safe(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(safe_for_group_norm(x) for x in inputs)


def _cosine_basis(config: AutoencoderConfig) -> Tensor:
    """Orthonormal cosines (c, C · pixels) of a latent cell, those of the longest waves first (Ahmed et al. 1974)."""
    side = config.downscale
    with torch.device("cpu"):
        place, wave = (torch.arange(side, dtype=torch.float64) for _ in range(2))
        one = torch.cos(math.pi / side * (place[None] + 0.5) * wave[:, None]) * math.sqrt(2.0 / side)  # (wave, place)
        one[0] /= math.sqrt(2.0)
        both = torch.einsum("ay,bx->abyx", one, one).reshape(side**2, side**2)
        order = torch.argsort(wave.square()[:, None].add(wave.square()[None]).flatten(), stable=True)
        channels = torch.eye(config.in_channels, dtype=torch.float64)
        whole = torch.einsum("wp,cd->wcdp", both[order], channels).flatten(2).flatten(0, 1)
        return whole[: config.latent_channels].float()


def _begin_silent(network: Any, channels: int) -> None:
    """Encoder and decoder add nothing at first, and the posterior is narrow."""
    for layer in (network.quant_conv, network.decoder.conv_out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        network.quant_conv.bias[channels:] = -6.0
