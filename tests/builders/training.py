"""Training data small enough to compute with by hand, and a network small enough to train in a second."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.configuration import ForecasterConfig
from models.earthformer.config import EarthformerConfig
from models.transform import Transform
from tasks.feeds import Packing
from tasks.training.data import FrameBatch, TrainingData, TrainingDataInfo, write_training_data
from tasks.training.samples import SampleSource, SampleSpec

SIDE = 16
TENTHS = Packing("uint16", 0.1, 0.0, 65535)
SPEC = SampleSpec(t_in=3, t_out=2, event_limit=timedelta(hours=2))


def info(shape: tuple[int, int] = (SIDE, SIDE), snapshot: str = "SNAPSHOT") -> TrainingDataInfo:
    """Rain on a 1 km grid every five minutes."""
    return TrainingDataInfo(
        domain="tiny",
        archive_snapshot=snapshot,
        quantity="rainfall_rate",
        cadence_s=300,
        epoch="2026-01-01T00:00:00+00:00",
        cell_size_m=1000.0,
        packing=TENTHS,
        no_echo=None,
        wet_threshold=0.5,
        shape=shape,
    )


def drifting_rain(frames: int, shape: tuple[int, int] = (SIDE, SIDE)) -> NDArray[np.float32]:
    """(frame, y, x) [mm h-1], multiples of 0.1: a disc that moves a cell a frame and returns at the other side."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    out = np.zeros((frames, *shape), np.float32)
    for frame in range(frames):
        distance = np.hypot(rows - shape[0] / 2, (columns - frame) % shape[1] - shape[1] / 2)
        out[frame] = np.round(np.clip(8.0 - 2.0 * distance, 0, None), 1)
    out[:, 0, 0] = np.nan
    return out


def write(folder: Path, values: NDArray[np.float32], slots: NDArray[np.int64] | None = None) -> TrainingData:
    """A layout of `values`, in slots 0, 1, ... unless said."""
    places = np.arange(len(values)) if slots is None else slots
    shape = (values.shape[1], values.shape[2])
    return write_training_data([FrameBatch(places.astype(np.int64), values)], info(shape), folder)


def samples(folder: Path, frames: int = 240, spec: SampleSpec = SPEC) -> SampleSource:
    """Twenty hours of drifting rain."""
    return SampleSource(write(folder, drifting_rain(frames)), spec)


def small_model() -> ForecasterConfig:
    """A whole Earthformer with dropout, 3 frames in and 2 out on 16 x 16 cells."""
    architecture = EarthformerConfig(
        input_shape=(3, SIDE, SIDE, 1),
        target_shape=(2, SIDE, SIDE, 1),
        base_units=16,
        num_heads=2,
        num_global_vectors=2,
        initial_downsample_scale=4,
        initial_downsample_conv_layers=1,
        final_upsample_conv_layers=1,
        attn_drop=0.1,
        proj_drop=0.1,
        ffn_drop=0.1,
    )
    return ForecasterConfig(
        preset="earthformer/small-64",
        architecture=architecture,
        t_in=3,
        t_out=2,
        quantity="rainfall_rate",
        transform=Transform.of_quantity("rainfall_rate"),
        anchor="persistence",
    )
