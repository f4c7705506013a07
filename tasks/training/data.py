"""The training layout: one immutable sharded Zarr per archive snapshot, holding only the slots that have a frame.

An archive is laid out for one frame at a time and for concurrent writers; training reads short windows of small crops
in random order. So a snapshot is copied once into shards that tensorstore reads several times faster (docs of
`tests/bench/bench_loader.py`), under the snapshot's id, and is never changed afterwards.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from tasks.archive.packing import pack
from tasks.feeds import Packing

MARKER = "training_data"  # group attribute, written last
INDEX = ("slot", "wetness", "wet")
BLOCK = 16  # cells on the side of a block of the coarse wetness map
SHARD_FRAMES, CHUNK_FRAMES, CHUNK_CELLS = 72, 12, 128
SHARD_BYTES = 512 * 2**20  # one shard row is held in memory while it is written

Codes = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class TrainingDataInfo:
    """What a training layout holds.

    Attributes:
        domain: Name of the domain.
        archive_snapshot: Snapshot the frames were read from.
        quantity: rainfall_rate [mm h-1], equivalent_reflectivity_factor [dBZ] or vil [kg m-2].
        cadence_s: Seconds between slots.
        epoch: Time of slot 0, ISO 8601 UTC, end of interval.
        cell_size_m: Side of a grid cell.
        packing: value = code * scale_factor + add_offset; fill = not observed.
        no_echo: Value of "no echo" (reflectivity), None elsewhere.
        wet_threshold: A cell at or above it is wet, in the quantity's units.
        shape: Cells along y, x.
    """

    domain: str
    archive_snapshot: str
    quantity: str
    cadence_s: int
    epoch: str
    cell_size_m: float
    packing: Packing
    no_echo: float | None
    wet_threshold: float
    shape: tuple[int, int]

    def time(self, slot: int) -> datetime:
        """Valid time (aware, UTC) of a slot."""
        return datetime.fromisoformat(self.epoch) + timedelta(seconds=self.cadence_s * int(slot))


@dataclass(frozen=True)
class TrainingData:
    """An opened training layout; the frames themselves stay on disk.

    Attributes:
        folder: Where it lies.
        info: What it holds.
        slots: (frame,) slot of each frame, ascending.
        wetness: (frame, block_y, block_x) uint8, 255 * the wet share of the observed cells of each block.
        wet: (frame,) float32 wet share of the observed cells of the whole frame, 0..1.
    """

    folder: Path
    info: TrainingDataInfo
    slots: NDArray[np.int64]
    wetness: NDArray[np.uint8]
    wet: NDArray[np.float32]


@dataclass(frozen=True)
class FrameBatch:
    """Consecutive frames on their way into the layout.

    Attributes:
        slots: (frame,) ascending.
        values: (frame, y, x) float32 in the quantity's units; NaN = not observed.
    """

    slots: NDArray[np.int64]
    values: NDArray[np.float32]


def block_wetness(values: NDArray[np.float32], threshold: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Wet share per block, uint8 (frame, block_y, block_x) of 255, and per frame, float32 (frame,).

    Args:
        values: (frame, y, x) in the quantity's units; NaN = not observed and counts neither as wet nor as dry.
        threshold: A cell at or above it is wet.
    """
    edges = [np.arange(0, size, BLOCK) for size in values.shape[1:]]
    observed, wet = np.isfinite(values), values >= threshold
    sums = [
        np.add.reduceat(np.add.reduceat(part.astype(np.int32), edges[0], 1), edges[1], 2) for part in (wet, observed)
    ]
    share = sums[0] / np.maximum(sums[1], 1)
    total = sums[0].sum((1, 2)) / np.maximum(sums[1].sum((1, 2)), 1)
    return np.ceil(share * 255).astype(np.uint8), total.astype(np.float32)


def write_training_data(batches: Iterable[FrameBatch], info: TrainingDataInfo, folder: Path) -> TrainingData:
    """Write frames as an immutable layout at `folder`, or open it when a complete one is there already.

    Everything is written under a temporary name; the rename makes it visible. Two writers race harmlessly.

    Raises:
        ValueError: no frames, or slots do not ascend.
    """
    if folder.exists():
        return open_training_data(folder)
    partial = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.part")
    try:
        _write(batches, info, partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # else another writer of the same snapshot was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_training_data(folder)


def open_training_data(folder: Path) -> TrainingData:
    """The layout at `folder`.

    Raises:
        FileNotFoundError: no complete layout there.
    """
    if not folder.exists():
        raise FileNotFoundError(f"expected training data at {folder}; found nothing")
    raw = json.loads((folder / "zarr.json").read_text())["attributes"][MARKER]
    info = TrainingDataInfo(**{**raw, "packing": Packing(**raw["packing"]), "shape": tuple(raw["shape"])})
    slots, wetness, wet = (np.asarray(zarr.open_array(str(folder / name), mode="r")[:]) for name in INDEX)
    return TrainingData(folder, info, slots, wetness, wet)


def _write(batches: Iterable[FrameBatch], info: TrainingDataInfo, folder: Path) -> None:
    group = zarr.create_group(str(folder), attributes={"archive_snapshot": info.archive_snapshot})
    rows = frames_per_shard(info)
    codes = _create_codes(info, rows, group)
    pending: list[Codes] = []
    slots, wetness, wet, written = [], [], [], 0
    for batch in batches:
        pending.append(pack(batch.values, info.packing, info.no_echo or 0.0))
        slots.append(batch.slots)
        block, frame = block_wetness(batch.values, info.wet_threshold)
        wetness.append(block)
        wet.append(frame)
        while sum(map(len, pending)) >= rows:
            stacked = np.concatenate(pending)
            written = _append(codes, stacked[:rows], written)
            pending = [stacked[rows:]]
    if not slots:
        raise ValueError(f"expected at least one frame of {info.domain} to export; got none")
    _append(codes, np.concatenate(pending), written)
    order = np.concatenate(slots).astype(np.int64)
    if np.any(np.diff(order) <= 0):
        raise ValueError("expected frames in ascending slots, each once")
    index: tuple[NDArray[Any], ...] = (order, np.concatenate(wetness), np.concatenate(wet))
    for name, values in zip(INDEX, index, strict=True):
        dimensions = ("frame", "block_y", "block_x")[: values.ndim]
        group.create_array(name, data=values, fill_value=0, dimension_names=dimensions)
    group.update_attributes({MARKER: asdict(info)})


def _append(codes: zarr.Array[Any], block: Codes, written: int) -> int:
    codes.resize((written + len(block), *codes.shape[1:]))
    codes[written : written + len(block)] = block
    return written + len(block)


def frames_per_shard(info: TrainingDataInfo) -> int:
    """Frames of one shard: whole chunks, few enough to be held in memory."""
    frame = info.shape[0] * info.shape[1] * np.dtype(info.packing.dtype).itemsize
    return max(CHUNK_FRAMES, min(SHARD_FRAMES, SHARD_BYTES // frame // CHUNK_FRAMES * CHUNK_FRAMES))


def _create_codes(info: TrainingDataInfo, rows: int, group: zarr.Group) -> zarr.Array[Any]:
    tile = [min(CHUNK_CELLS, size) for size in info.shape]
    shard = [min(-(-size // side) * side, 4 * side) for size, side in zip(info.shape, tile, strict=True)]
    packing = info.packing
    return group.create_array(
        "codes",
        shape=(0, *info.shape),
        dtype=info.packing.dtype,
        chunks=(CHUNK_FRAMES, *tile),
        shards=(rows, *shard),
        compressors=ZstdCodec(level=3),
        fill_value=packing.fill,
        dimension_names=("frame", "y", "x"),
        attributes={
            "scale_factor": packing.scale_factor,
            "add_offset": packing.add_offset,
            "_FillValue": packing.fill,
            "quantity": info.quantity,
        },
    )
