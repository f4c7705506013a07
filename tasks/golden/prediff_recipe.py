"""Weights and inputs of PreDiff's golden files: an integer hash of name and position, equal on every machine."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_TABLES = re.compile(r"pos_embed\.[THW]+_embed\.weight|.*(relative_position_bias_table|positional_embedding)")


def uniform(name: str, shape: Sequence[int]) -> npt.NDArray[np.float64]:
    """Values strictly inside (-1, 1): murmur3's finaliser of position + crc32(name)."""
    h = np.arange(math.prod(shape), dtype=np.uint32) + np.uint32(zlib.crc32(name.encode()))
    with np.errstate(over="ignore"):
        h ^= h >> np.uint32(16)
        h *= np.uint32(0x85EBCA6B)
        h ^= h >> np.uint32(13)
        h *= np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(16)
    return ((h + 0.5) / 2**31 - 1.0).reshape(tuple(shape))


def latent(name: str, shape: Sequence[int]) -> Tensor:
    """Zero mean, unit variance, float32."""
    return torch.from_numpy((uniform(name, shape) * math.sqrt(3.0)).astype(np.float32))


def image(name: str, shape: Sequence[int]) -> Tensor:
    """Inside (0, 1), float32."""
    return torch.from_numpy((0.5 * uniform(name, shape) + 0.5).astype(np.float32))


def weight(key: str, shape: Sequence[int]) -> Tensor:
    """The golden value of the parameter or running statistic published as `key`, float32."""
    if key.endswith(("running_mean", "running_var")):
        return torch.full(tuple(shape), float(key.endswith("var")))
    offset, gain = _offset_gain(key, shape)
    return torch.from_numpy((offset + gain * uniform(key, shape)).astype(np.float32))


def _offset_gain(key: str, shape: Sequence[int]) -> tuple[float, float]:
    if _TABLES.fullmatch(key):
        return 0.0, 0.2
    if len(shape) >= 2:
        return 0.0, math.sqrt(3.0 * shape[0] / math.prod(shape))
    return float(key.endswith("weight")), 0.1


def sample_positions(count: int, samples: int = 64) -> Tensor:
    """Flat positions of the sampled values of a summary: floor((k + 0.5)·count/samples)."""
    return (2 * torch.arange(samples) + 1) * count // (2 * samples)
