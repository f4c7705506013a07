"""Weights and inputs of the golden files: an integer hash of name and position, equal on every machine."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
_EMBEDDINGS = ("T_embed.weight", "H_embed.weight", "W_embed.weight", "HW_embed.weight")


def uniform(key: str, shape: Sequence[int]) -> npt.NDArray[np.float64]:
    """Values in [-1, 1): splitmix64 of crc32(key)·2³² + position, its upper 24 bits."""
    count = math.prod(shape)
    with np.errstate(over="ignore"):
        z = np.arange(count, dtype=np.uint64) + np.uint64((zlib.crc32(key.encode()) << 32) + 0)
        z += np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (2.0 * ((z >> np.uint64(40)).astype(np.float64) / 2**24) - 1.0).reshape(tuple(shape))


def unit(key: str, shape: Sequence[int]) -> Float32:
    """Values in [0, 1): recipe "r01"."""
    return ((uniform(key, shape) + 1.0) / 2.0).astype(np.float32)


def normal(key: str, shape: Sequence[int]) -> Float32:
    """Values of unit variance, bounded by √3: recipe "rn"."""
    return (math.sqrt(3.0) * uniform(key, shape)).astype(np.float32)


RECIPES: dict[str, Callable[[str, Sequence[int]], Float32]] = {"r01": unit, "rn": normal}


def weight(key: str, shape: Sequence[int]) -> Float32:
    """The golden value of parameter `key`: offset + gain·uniform, by what kind of parameter its name and shape tell."""
    offset, gain = _offset_gain(key, shape)
    return (offset + gain * uniform(key, shape)).astype(np.float32)


def _offset_gain(key: str, shape: Sequence[int]) -> tuple[float, float]:
    if key.endswith(("relative_position_bias_table", *_EMBEDDINGS)):
        return 0.0, 0.5
    if key.endswith("init_global_vectors"):
        return 0.0, 1.0
    if len(shape) >= 2:
        return 0.0, math.sqrt(3.0 * shape[0] / math.prod(shape))
    if key.endswith(("weight", "scale")):
        return 1.0, 0.25
    return 0.0, 0.1


def sample_positions(count: int, samples: int = 64) -> npt.NDArray[np.int64]:
    """Flat positions of the sampled values: floor(j·count/samples)."""
    return np.arange(samples, dtype=np.int64) * count // samples
