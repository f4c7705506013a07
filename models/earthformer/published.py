"""Earthformer's published weights: their names are ours; what they hold beside the parameters are index buffers.

Every attention layer's `relative_position_index` is a function of its geometry. It is recomputed here, compared with
what a file holds, and never kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from models.earthformer.auxiliary import AuxiliaryEarthformer
from models.earthformer.config import EarthformerConfig
from models.earthformer.cuboids import Triple, relative_position_index
from models.earthformer.network import Earthformer

INDEX = "relative_position_index"
Shape = tuple[int, ...]


def build(config: EarthformerConfig) -> nn.Module:
    """The network of `config` with fresh weights, without an anchor, as published."""
    return Earthformer(config) if config.auxiliary_channels is None else AuxiliaryEarthformer(config)


def published_shapes(config: EarthformerConfig) -> dict[str, Shape]:
    """Every published name with its shape: the parameters, then the index buffers."""
    network = _skeleton(config)
    shapes: dict[str, Shape] = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    return shapes | {name: (_volume(cuboid), _volume(cuboid)) for name, cuboid in _indexed(network)}


def index_buffers(config: EarthformerConfig) -> dict[str, Tensor]:
    """The published index buffers (tokens, tokens) int64, recomputed from the geometry."""
    cpu = torch.device("cpu")
    return {
        name: relative_position_index(cuboid, _volume(cuboid), _volume(cuboid), cpu)
        for name, cuboid in _indexed(_skeleton(config))
    }


def from_published(state: Mapping[str, Tensor], config: EarthformerConfig) -> dict[str, Tensor]:
    """A published state as ours: the same names, without the index buffers.

    Raises:
        ValueError: an index buffer is not that of the geometry: biases would belong to other offsets.
    """
    for key, index in index_buffers(config).items():
        if not torch.equal(state[key].long(), index):
            raise ValueError(f"{key}: expected the positions of row-major tokens; got others")
    return {key: value for key, value in state.items() if not key.endswith(INDEX)}


def to_published(state: Mapping[str, Tensor], config: EarthformerConfig) -> dict[str, Tensor]:
    """Our state as published: with the index buffers."""
    return {**state, **index_buffers(config)}


def _skeleton(config: EarthformerConfig) -> nn.Module:
    with torch.device("meta"):
        return build(config)


def _indexed(network: nn.Module) -> Iterator[tuple[str, Triple]]:
    """Name of each index buffer and the cuboid its layer was constructed for."""
    for name, layer in network.named_modules():
        if getattr(layer, "relative_position_bias_table", None) is not None:
            yield f"{name}.{INDEX}", cast(Triple, layer.bias_cuboid)


def _volume(cuboid: Triple) -> int:
    return cuboid[0] * cuboid[1] * cuboid[2]
