"""Named attention patterns: which cuboids a block cuts, as functions of the level's size (Gao et al. 2022, table 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from models.earthformer.cuboids import Pair, Strategy, Triple

LOCAL: Strategy = ("l", "l", "l")
DILATED: Strategy = ("d", "d", "d")


@dataclass(frozen=True)
class SelfCuboid:
    """One self-attention layer's cuboid."""

    size: Triple
    strategy: Strategy = LOCAL
    shift: Triple = (0, 0, 0)


@dataclass(frozen=True)
class CrossCuboid:
    """One cross-attention layer's cuboid: (h, w), with time cut into `n_temporal` parts."""

    cuboid_hw: Pair
    strategy: Strategy = LOCAL
    shift_hw: Pair = (0, 0)
    n_temporal: int = 1


SelfPattern = Callable[[Triple], tuple[SelfCuboid, ...]]
CrossPattern = Callable[[Triple], tuple[CrossCuboid, ...]]


def full(size: Triple) -> tuple[SelfCuboid, ...]:
    """Every token sees every other."""
    return (SelfCuboid(size),)


def axial(size: Triple) -> tuple[SelfCuboid, ...]:
    """Along time, then along height, then along width."""
    t, h, w = size
    return SelfCuboid((t, 1, 1)), SelfCuboid((1, h, 1)), SelfCuboid((1, 1, w))


def divided_space_time(size: Triple) -> tuple[SelfCuboid, ...]:
    """Along time, then over the whole plane."""
    t, h, w = size
    return SelfCuboid((t, 1, 1)), SelfCuboid((1, h, w))


def video_swin(size: Triple, frames: int, side: int) -> tuple[SelfCuboid, ...]:
    """Windows of frames x side x side, then the same shifted by half (Liu et al. 2022, arXiv:2106.13230)."""
    t, h, w = size
    p, m = min(frames, t), min(side, h, w)
    return SelfCuboid((p, m, m)), SelfCuboid((p, m, m), LOCAL, (p // 2, m // 2, m // 2))


def spatial_local_global(size: Triple, side: int) -> tuple[SelfCuboid, ...]:
    """Along time, then local windows, then dilated ones; the whole plane where it fits one window."""
    t, h, w = size
    if h <= side and w <= side:
        return divided_space_time(size)
    return SelfCuboid((t, 1, 1)), SelfCuboid((1, side, side)), SelfCuboid((1, side, side), DILATED)


def axial_space_dilated(size: Triple, dilation: int) -> tuple[SelfCuboid, ...]:
    """Along time, then along height and along width, each dilated and local."""
    t, h, w = size
    k = min(dilation, h, w)
    tall, wide = (1, h // k, 1), (1, 1, w // k)
    return (
        SelfCuboid((t, 1, 1)),
        SelfCuboid(tall, DILATED),
        SelfCuboid(tall),
        SelfCuboid(wide, DILATED),
        SelfCuboid(wide),
    )


def cross(size: Triple, side: int, *, dilated: bool = False, shifted: bool = False) -> tuple[CrossCuboid, ...]:
    """Windows of side x side over all time; optionally also dilated ones, and local ones shifted by half."""
    k = min(side, size[1], size[2])
    layers = [CrossCuboid((k, k))]
    if dilated:
        layers.append(CrossCuboid((k, k), DILATED))
    if shifted:
        layers.append(CrossCuboid((k, k), LOCAL, (k // 2, k // 2)))
    return tuple(layers)


def _self_patterns() -> dict[str, SelfPattern]:
    patterns: dict[str, SelfPattern] = {"full": full, "axial": axial, "divided_st": divided_space_time}
    patterns["video_swin"] = partial(video_swin, frames=2, side=4)
    for frames in (1, 2, 4, 8, 10):
        for side in (1, 2, 4, 8, 16, 32):
            patterns[f"video_swin_{frames}x{side}"] = partial(video_swin, frames=frames, side=side)
    patterns["spatial_lg_v1"] = partial(spatial_local_global, side=4)
    for side in (1, 2, 4, 8, 16, 32):
        patterns[f"spatial_lg_{side}"] = partial(spatial_local_global, side=side)
    for dilation in (2, 4, 8):
        patterns[f"axial_space_dilate_{dilation}"] = partial(axial_space_dilated, dilation=dilation)
    return patterns


def _cross_patterns() -> dict[str, CrossPattern]:
    patterns: dict[str, CrossPattern] = {}
    for side in (1, 2, 4, 8):
        patterns[f"cross_{side}x{side}"] = partial(cross, side=side)
        patterns[f"cross_{side}x{side}_lg"] = partial(cross, side=side, dilated=True)
        patterns[f"cross_{side}x{side}_heter"] = partial(cross, side=side, dilated=True, shifted=True)
    return patterns


SELF_PATTERNS = _self_patterns()
CROSS_PATTERNS = _cross_patterns()
