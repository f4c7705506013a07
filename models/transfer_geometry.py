"""Where the places of one Earthformer's position tables lie in those of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from models.configuration import ForecasterConfig, build_network
from models.earthformer.config import EarthformerConfig
from models.earthformer.cuboids import Triple
from models.earthformer.layers import PosEmbed

# Lengths of the consecutive parts of an axis: (context,) or (context, frames of an extrapolation) along time.
Axis = tuple[int, ...]


class BiasGeometry(NamedTuple):
    """What a table of relative position bias is for.

    Attributes:
        cuboid: (T, H, W) it was constructed for: 2·b − 1 offsets along each axis.
        back: Farthest offset that occurs where a key lies behind its query.
        ahead: The same where it lies ahead.
    """

    cuboid: Triple
    back: Triple
    ahead: Triple


class Geometry(NamedTuple):
    """The position tables of one network by their names: axes of embeddings, and bias tables."""

    axes: dict[str, tuple[Axis, ...]]
    tables: dict[str, BiasGeometry]


def geometry_of(config: ForecasterConfig) -> Geometry:
    """The position tables of the network of `config`, named without an anchor's prefix."""
    with torch.device("meta"):
        network = build_network(config.architecture)
    axes: dict[str, tuple[Axis, ...]] = {}
    tables: dict[str, BiasGeometry] = {}
    for name, module in network.named_modules():
        if isinstance(module, PosEmbed):
            axes |= _embedding_axes(name, module, config)
        elif getattr(module, "relative_position_bias_table", None) is not None:
            tables[f"{name}.relative_position_bias_table"] = _bias_geometry(name, module, config.architecture)
    return Geometry(axes, tables)


def _embedding_axes(name: str, embedding: PosEmbed, config: ForecasterConfig) -> dict[str, tuple[Axis, ...]]:
    frames = embedding.T_embed.num_embeddings
    split = name == "enc_pos_embed" and config.anchor == "extrapolation" and frames == config.t_in + config.t_out
    axes: dict[str, tuple[Axis, ...]] = {
        f"{name}.T_embed.weight": ((config.t_in, config.t_out) if split else (frames,),)
    }
    if embedding.typ == "t+h+w":
        axes[f"{name}.H_embed.weight"] = ((embedding.H_embed.num_embeddings,),)
        axes[f"{name}.W_embed.weight"] = ((embedding.W_embed.num_embeddings,),)
    else:
        width = embedding.maxW
        axes[f"{name}.HW_embed.weight"] = ((embedding.HW_embed.num_embeddings // width,), (width,))
    return axes


def _bias_geometry(name: str, layer: nn.Module, config: EarthformerConfig) -> BiasGeometry:
    t, h, w = cuboid = cast(Triple, layer.bias_cuboid)
    if "cross_blocks" in name:
        parts, frames = cast(int, layer.n_temporal), config.level_sizes[0][0]
        seen = min(frames, config.dec_cross_last_n_frames or frames)
        queries, keys = -(-config.frames_out // parts), -(-seen // parts)
        return BiasGeometry(cuboid, (keys - 1, h - 1, w - 1), (queries - 1, h - 1, w - 1))
    reach = (min(t, config.frames_out) if name.startswith("decoder") else t) - 1
    return BiasGeometry(cuboid, (reach, h - 1, w - 1), (reach, h - 1, w - 1))


def stretch(embedding: Tensor, old: Sequence[Axis], new: Sequence[Axis]) -> Tensor:
    """embedding (places, C) of the axes `old` → (places, C) of `new`, linear along each, ends on ends."""
    values = embedding.reshape(*(sum(axis) for axis in old), -1)
    for number, (before, now) in enumerate(zip(old, new, strict=True)):
        values = _sample(values, number, _places(before, now))
    return values.reshape(-1, embedding.shape[-1])


def stretch_bias(table: Tensor, old: BiasGeometry, new: BiasGeometry) -> Tensor:
    """table (offsets, heads) of `old` → the same of `new`, linear along each axis, 0 on 0 and farthest on farthest."""
    values = table.reshape(*(2 * side - 1 for side in old.cuboid), -1)
    for axis in range(3):
        offset = torch.arange(1 - new.cuboid[axis], new.cuboid[axis], dtype=torch.float64)
        back = old.back[axis] / max(new.back[axis], 1)
        ahead = old.ahead[axis] / max(new.ahead[axis], 1)
        there = torch.where(offset < 0, offset * back, offset * ahead).clamp(-old.back[axis], old.ahead[axis])
        values = _sample(values, axis, there + (old.cuboid[axis] - 1))
    return values.reshape(-1, table.shape[-1])


def _places(old: Axis, new: Axis) -> Tensor:
    """Where each place of `new` lies in `old`; a part that `old` lacks lies at its end."""
    places, start = [], 0
    for number, count in enumerate(new):
        if number < len(old):
            places.append(torch.linspace(start, start + old[number] - 1, count, dtype=torch.float64))
            start += old[number]
        else:
            places.append(torch.full((count,), start - 1.0, dtype=torch.float64))
    return torch.cat(places)


def _sample(values: Tensor, axis: int, places: Tensor) -> Tensor:
    """Values between the entries of `axis`, linear; at an entry exactly its value."""
    places = places.clamp(0, values.shape[axis] - 1)
    low = places.floor().long()
    high = torch.clamp(low + 1, max=values.shape[axis] - 1)
    shape = [-1 if number == axis else 1 for number in range(values.ndim)]
    share = (places - low).to(values).view(shape)
    return torch.lerp(values.index_select(axis, low), values.index_select(axis, high), share)
