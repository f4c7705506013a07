"""Golden `kind` and `kwargs` → our module: the constructor arguments are the published names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from models.earthformer.attention import CuboidSelfAttentionLayer
from models.earthformer.auxiliary import AuxiliaryEarthformer
from models.earthformer.blocks import BlockSettings, StackCuboidCrossAttentionBlock, StackCuboidSelfAttentionBlock
from models.earthformer.config import EarthformerConfig
from models.earthformer.cross_attention import CuboidCrossAttentionLayer
from models.earthformer.feed_forward import PositionwiseFFN
from models.earthformer.layers import PatchMerging3D, PosEmbed, Upsample3DLayer
from models.earthformer.network import Earthformer
from models.earthformer.patterns import CrossCuboid, SelfCuboid
from models.earthformer.stems import (
    FinalDecoder,
    FinalStackUpsamplingDecoder,
    InitialEncoder,
    InitialStackPatchMergingEncoder,
)

Arguments = dict[str, Any]
# Arguments of single layers that concern training only: how weights start and what is recomputed.
_TRAINING = frozenset(
    {"checkpoint_level", "attn_linear_init_mode", "ffn_linear_init_mode", "linear_init_mode", "conv_init_mode"}
    | {"norm_init_mode", "down_up_linear_init_mode"}
)


def _self_block(arguments: Arguments) -> nn.Module:
    columns = (arguments.pop(f"block_{name}") for name in ("cuboid_size", "strategy", "shift_size"))
    cuboids = [SelfCuboid(*layer) for layer in zip(*columns, strict=True)]
    return StackCuboidSelfAttentionBlock(arguments.pop("dim"), cuboids, _settings(arguments))


def _cross_block(arguments: Arguments) -> nn.Module:
    columns = (arguments.pop(f"block_{name}") for name in ("cuboid_hw", "strategy", "shift_hw", "n_temporal"))
    cuboids = [CrossCuboid(*layer) for layer in zip(*columns, strict=True)]
    dim, frames = arguments.pop("dim"), arguments.pop("max_temporal_relative")
    last = arguments.pop("cross_last_n_frames", None)
    settings = _settings(arguments)
    return StackCuboidCrossAttentionBlock(
        dim, cuboids, settings, max_temporal_relative=frames, cross_last_n_frames=last
    )


def _settings(arguments: Arguments) -> BlockSettings:
    renamed = {"use_inter_ffn": "inter_ffn"}
    known = {field.name for field in fields(BlockSettings)}
    named = {renamed.get(key, key): value for key, value in arguments.items()}
    if unknown := set(named) - known:
        raise TypeError(f"expected block arguments of {sorted(known)}; got {sorted(unknown)}")
    return BlockSettings(**{"inter_ffn": False, **named})


_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "self_attention_layer": CuboidSelfAttentionLayer,
    "cross_attention_layer": CuboidCrossAttentionLayer,
    "ffn": PositionwiseFFN,
    "patch_merge": PatchMerging3D,
    "upsample": Upsample3DLayer,
    "pos_embed": PosEmbed,
    "initial_encoder_conv": InitialEncoder,
    "final_decoder_conv": FinalDecoder,
    "initial_encoder_stack": InitialStackPatchMergingEncoder,
    "final_decoder_stack": FinalStackUpsamplingDecoder,
}
_BLOCKS: dict[str, Callable[[Arguments], nn.Module]] = {
    "self_attention_block": _self_block,
    "cross_attention_block": _cross_block,
}
KINDS = frozenset({*_LAYERS, *_BLOCKS, "earthformer", "earthformer_aux"})


def build_module(kind: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """The module of a golden case.

    Raises:
        ValueError, TypeError: an unknown kind or argument.
    """
    if kind in ("earthformer", "earthformer_aux"):
        config = EarthformerConfig.model_validate(kwargs)
        return AuxiliaryEarthformer(config) if kind == "earthformer_aux" else Earthformer(config)
    arguments = {key: _frozen(value) for key, value in kwargs.items() if key not in _TRAINING}
    if kind in _BLOCKS:
        return _BLOCKS[kind](arguments)
    if kind not in _LAYERS:
        raise ValueError(f"expected a kind of {', '.join(sorted(KINDS))}; got {kind!r}")
    return _LAYERS[kind](**arguments)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
