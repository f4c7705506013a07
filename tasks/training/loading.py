"""The loader: batches of windows straight from the sharded training layout through tensorstore.

The store is opened on first use in whichever process reads (tensorstore does not survive a fork), all chunks of a batch
are requested before the first is awaited, and decoded chunks stay in a bounded cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorstore as ts
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from tasks.archive.packing import unpack
from tasks.training.sample_set import Reader
from tasks.training.samples import SampleSource, Window

CACHE_BYTES = 512 * 2**20


Extend = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Frames (k, y, x) to be appended to a window (t_in + t_out, y, x), in its units."""


class WindowReader:
    """Reads windows as physical values; picklable, opened lazily."""

    def __init__(self, samples: SampleSource, cache_bytes: int = CACHE_BYTES) -> None:
        self.samples, self.cache_bytes = samples, cache_bytes
        self._store: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}

    def _open(self) -> Any:
        if self._store is None:
            path = self.samples.data.folder / "codes"
            self._store = ts.open(
                {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}},
                context=ts.Context({"cache_pool": {"total_bytes_limit": self.cache_bytes}}),
                recheck_cached_data=False,
                recheck_cached_metadata=False,
                read=True,
            ).result()
        return self._store

    def read(self, windows: Sequence[Window]) -> NDArray[np.float32]:
        """Windows (window, t_in + t_out, y, x) float32 in the quantity's units; NaN = not observed."""
        store, (rows, columns) = self._open(), self.samples.size
        length, packing = self.samples.spec.length, self.samples.data.info.packing
        pending = [store[w.frame : w.frame + length, w.y : w.y + rows, w.x : w.x + columns].read() for w in windows]
        fields = np.empty((len(windows), length, rows, columns), np.float32)
        for field, future, window in zip(fields, pending, windows, strict=True):
            unpack(turn(future.result(), window.symmetry), packing, out=field)
        return fields


def turn(codes: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """Frames (..., y, x) after a mirror along x (symmetry >= 4) and symmetry % 4 quarter turns."""
    mirrored = codes[..., ::-1] if symmetry >= 4 else codes
    return np.rot90(mirrored, symmetry % 4, axes=(-2, -1))


@dataclass(frozen=True)
class BatchPlan:
    """Which part of which batch a process reads.

    Attributes:
        seed: Of the training.
        batch_size: Windows per optimiser step, over all processes.
        parts: Micro-batches per step, over all processes.
        rank: First part of this process; the next are `stride` apart.
        stride: Number of processes.
        augment: Turn and mirror windows.
    """

    seed: int
    batch_size: int
    parts: int = 1
    rank: int = 0
    stride: int = 1
    augment: bool = False


class StepBatches(Dataset[torch.Tensor]):
    """Micro-batches by number: item i holds this process's part i % (parts / stride) of step i // (parts / stride)."""

    def __init__(self, reader: Reader, plan: BatchPlan, extend: Extend | None = None) -> None:
        if plan.batch_size % plan.parts or plan.parts % plan.stride:
            raise ValueError(
                f"expected a batch that divides into its parts and these among processes; got {plan.batch_size} "
                f"windows, {plan.parts} parts, {plan.stride} processes"
            )
        self.reader, self.plan, self.extend = reader, plan, extend

    def __getitem__(self, index: int) -> torch.Tensor:
        plan = self.plan
        step, turn = divmod(index, plan.parts // plan.stride)
        windows = self.reader.samples.draw(plan.seed, step, plan.batch_size, augment=plan.augment)
        mine = windows[turn * plan.stride + plan.rank :: plan.parts]
        return torch.from_numpy(_extended(self.reader.read(mine), self.extend))


class HeldOutBatches(Dataset[torch.Tensor]):
    """Fixed batches of held-out windows, in time order."""

    def __init__(
        self, reader: Reader, windows: Sequence[Window], batch_size: int, extend: Extend | None = None
    ) -> None:
        self.reader, self.extend = reader, extend
        self.batches = [windows[at : at + batch_size] for at in range(0, len(windows), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> torch.Tensor:
        if index >= len(self.batches):
            raise IndexError(index)
        return torch.from_numpy(_extended(self.reader.read(self.batches[index]), self.extend))


def _extended(fields: NDArray[np.float32], extend: Extend | None) -> NDArray[np.float32]:
    if extend is None:
        return fields
    return np.concatenate([fields, np.stack([extend(window) for window in fields])], axis=1)


def step_loader(batches: StepBatches, first: int, last: int, workers: int) -> DataLoader[torch.Tensor]:
    """Micro-batches `first` to `last` (exclusive) in order, by `workers` forkserver processes or in this one.

    The order never depends on the number of workers, and no global random state is consumed.
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
