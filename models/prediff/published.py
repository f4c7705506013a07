"""PreDiff's published weights: their names and shapes beside ours, and the state of one as the state of the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from models.earthformer.attention import CuboidSelfAttentionLayer
from models.earthformer.cuboids import relative_position_index
from models.prediff.alignment import AlignmentNetwork
from models.prediff.architecture import AlignmentConfig, AutoencoderConfig, DenoiserConfig
from models.prediff.autoencoder import FrameAutoencoder
from models.prediff.denoiser import LatentDenoiser

PublishedName = Literal["vae", "denoiser", "alignment"]
NetworkConfig = AutoencoderConfig | DenoiserConfig | AlignmentConfig
Shape = tuple[int, ...]
_INDEX = "relative_position_index"
# (published, ours), tried in this order at the start of a name or of one of its parts.
_ATTENTION = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
_NETWORK = (
    ("first_proj", "stem"),
    ("pos_embed", "position"),
    ("time_embed.layer.0", "step_embedding.hidden"),
    ("time_embed.layer.2", "step_embedding.out"),
    ("time_embed", "step_embedding"),
    ("downsample_layers", "merges"),
    ("upsample_layers", "upsamples"),
    ("out.0", "readout.norm"),
    ("out.2.positional_embedding", "readout.pool.position"),
    ("out.2.qkv_proj", "readout.pool.qkv"),
    ("out.2.c_proj", "readout.pool.proj"),
    ("out.2", "readout.pool"),
)
_RESIDUAL = (
    ("in_layers.0", "norm_in"),
    ("in_layers.2", "conv_in"),
    ("emb_layers.1", "step_proj"),
    ("out_layers.0", "norm_out"),
    ("out_layers.3", "conv_out"),
    ("skip_connection", "skip"),
)


def build(config: NetworkConfig) -> nn.Module:
    """The network of `config` with fresh weights."""
    if isinstance(config, AutoencoderConfig):
        return FrameAutoencoder(config)
    return LatentDenoiser(config) if isinstance(config, DenoiserConfig) else AlignmentNetwork(config)


def our_name(name: str, config: NetworkConfig) -> str:
    """Our name of a published parameter or module."""
    if isinstance(config, AutoencoderConfig):
        mid, dot, part = name.partition(".mid_block.attentions.0.")
        return f"network.{mid}{dot}{_renamed(part, _ATTENTION)}"
    name = re.sub(r"^(down|up)_self_blocks\.(\d+)\.(\d+)", r"\1.\2.stacks.\3", name)
    name = re.sub(r"^(down|up)_time_embed_blocks\.(\d+)", r"\1.\2.time_block", name)
    name = _renamed(name, _NETWORK)
    block, dot, part = _split_residual(name)
    return f"{block}{dot}{_renamed(part, _RESIDUAL)}"


def published_name(name: str, config: NetworkConfig) -> str:
    """The published name of our parameter."""
    if isinstance(config, AutoencoderConfig):
        mid, dot, part = name.removeprefix("network.").partition(".mid_block.attentions.0.")
        return f"{mid}{dot}{_renamed(part, _reverse(_ATTENTION))}"
    block, dot, part = _split_residual(name)
    name = f"{block}{dot}{_renamed(part, _reverse(_RESIDUAL))}"
    name = _renamed(name, _reverse(_NETWORK))
    name = re.sub(r"^(down|up)\.(\d+)\.stacks\.(\d+)", r"\1_self_blocks.\2.\3", name)
    return re.sub(r"^(down|up)\.(\d+)\.time_block", r"\1_time_embed_blocks.\2", name)


def published_shapes(config: NetworkConfig) -> dict[str, Shape]:
    """Every published name with its shape, index buffers included: exactly what a published file must hold."""
    with torch.device("meta"):
        network = build(config)
    shapes = {published_name(key, config): tuple(value.shape) for key, value in network.state_dict().items()}
    indices = {f"{published_name(name, config)}.{_INDEX}": (volume, volume) for name, _, volume in _indexed(network)}
    return shapes | indices


def from_published(state: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """A published state under our names; index buffers are compared with what we compute and left out.

    Raises:
        ValueError: naming the first wrong key and both shapes, or the index buffer that differs.
    """
    expected = published_shapes(config)
    for key in [*expected, *(key for key in state if key not in expected)]:
        wanted = expected.get(key, "no such key")
        got = tuple(state[key].shape) if key in state else "no such key"
        if wanted != got:
            raise ValueError(f"{key}: expected {wanted}; got {got}")
    for key, index in index_buffers(config).items():
        if not torch.equal(state[key].long(), index):
            raise ValueError(f"{key}: expected the positions of row-major tokens; got others")
    return {our_name(key, config): value for key, value in state.items() if not key.endswith(_INDEX)}


def to_published(state: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """Our state under the published names, with the index buffers."""
    return {published_name(key, config): value for key, value in state.items()} | index_buffers(config)


def index_buffers(config: NetworkConfig) -> dict[str, Tensor]:
    """The published index buffers (tokens, tokens) int64, recomputed from the geometry."""
    with torch.device("meta"):
        network = build(config)
    return {
        f"{published_name(name, config)}.{_INDEX}": relative_position_index(
            layer.bias_cuboid, volume, volume, torch.device("cpu")
        )
        for name, layer, volume in _indexed(network)
    }


def _indexed(network: nn.Module) -> Iterator[tuple[str, CuboidSelfAttentionLayer, int]]:
    for name, layer in network.named_modules():
        if isinstance(layer, CuboidSelfAttentionLayer) and layer.relative_position_bias_table is not None:
            t, h, w = layer.bias_cuboid
            yield name, layer, t * h * w


def _split_residual(name: str) -> tuple[str, str, str]:
    block, dot, part = name.partition(".time_block.")
    return (block, dot, part) if dot else name.partition("stem.")


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _reverse(pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((new, old) for old, new in pairs)
