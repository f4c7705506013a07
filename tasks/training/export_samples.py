"""Copy a snapshot of an archive into the training layout, once: the folder is named by the snapshot and then reused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.archive.archive import Archive, ArchiveSpec
from tasks.archive.epochs import Epoch
from tasks.archive.slots import as_datetime
from tasks.grid import cell_size_m
from tasks.training.data import FrameBatch, TrainingData, TrainingDataInfo, frames_per_shard, write_training_data

# At or above: wet [mm h-1 | dBZ | kg m-2]. 15 dBZ is about 0.3 mm h-1; below it clutter and noise dominate.
WET_THRESHOLD = {"rainfall_rate": 0.5, "equivalent_reflectivity_factor": 15.0, "vil": 0.2}


def export_samples(
    archive: Archive,
    root: Path,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    as_of: str | None = None,
) -> TrainingData:
    """The training layout of a snapshot: every slot in [start, end] that holds a frame, in time order.

    A training needs one grid and one cadence. Where they changed (`on_grid_change = "open_epoch"`), only the newest run
    of epochs that share them is exported: it starts where the newest epoch that differs ends.

    Args:
        archive: Source.
        root: Layouts of all snapshots lie here; one that exists is opened as it is.
        start: First slot (aware, UTC); None for the first frame of that run.
        end: Last slot; None for its newest frame.
        as_of: Snapshot id or tag; None for the newest.

    Raises:
        ValueError: no frame in the period, or slots without a fixed step.
        EpochMismatch: a period with a `start` of its own spans grids or cadences.
    """
    snapshot = archive.snapshot() if as_of is None else as_of
    last = end or archive.latest(snapshot)
    run = _newest_run(archive.epochs(snapshot), last) if last else []
    if not run or last is None:
        raise ValueError(f"expected frames in the archive at {archive.url}; it is empty at snapshot {snapshot}")
    spec = run[0].spec
    if spec.calendar != "step":
        raise ValueError(f"expected an archive with a fixed step; got calendar {spec.calendar!r}")
    first = start or _first_frame(archive, snapshot, run[-1].spec.start, last)
    whole = start is None and end is None
    name = snapshot if whole else f"{snapshot}-{first:%Y%m%dT%H%M}-{last:%Y%m%dT%H%M}"
    info = _describe(archive, snapshot, spec, first)
    return write_training_data(_frames(archive, info, first, last), info, root / name)


def _newest_run(epochs: Sequence[Epoch], last: datetime) -> list[Epoch]:
    """The epochs up to the one of `last` that follow one another on its grid and cadence, newest first."""
    begun = [epoch for epoch in reversed(epochs) if epoch.spec.start <= last]  # a later one holds nothing yet
    return list(takewhile(lambda epoch: _alike(epoch.spec, begun[0].spec), begun))


def _alike(one: ArchiveSpec, other: ArchiveSpec) -> bool:
    return one.cadence == other.cadence and one.grid.equals(other.grid)


def _first_frame(archive: Archive, snapshot: str, begin: datetime, last: datetime) -> datetime:
    present, times = archive.present(begin, last, snapshot)
    if not present.any():
        raise ValueError(f"expected frames in {begin}..{last} of the archive at {archive.url}; there are none")
    return as_datetime(times[present][0])


def _describe(archive: Archive, snapshot: str, spec: ArchiveSpec, first: datetime) -> TrainingDataInfo:
    found = archive.read(first, first, as_of=snapshot)
    return TrainingDataInfo(
        domain=spec.domain,
        archive_snapshot=snapshot,
        quantity=spec.quantity,
        cadence_s=int(spec.cadence.total_seconds()),
        epoch=spec.slots.time(spec.slots.nearest(first)).isoformat(),
        cell_size_m=cell_size_m(found),
        packing=spec.packing,
        no_echo=spec.no_echo,
        wet_threshold=WET_THRESHOLD.get(spec.quantity, 0.0),
        shape=(found.sizes["y"], found.sizes["x"]),
    )


def _frames(archive: Archive, info: TrainingDataInfo, first: datetime, last: datetime) -> Iterator[FrameBatch]:
    """Filled slots, read in windows that begin at a filled one, so that long gaps cost nothing."""
    snapshot, step = info.archive_snapshot, timedelta(seconds=info.cadence_s)
    present, times = archive.present(first, last, snapshot)
    times = times[present]
    slots = _slot_numbers(times, info)
    span, at = frames_per_shard(info), 0
    while at < slots.size:
        stop = int(np.searchsorted(slots, slots[at] + span))
        begin = as_datetime(times[at])
        field = archive.read(begin, min(last, begin + (span - 1) * step), as_of=snapshot)[info.quantity]
        wanted = np.searchsorted(field["time"].values, times[at:stop])
        yield FrameBatch(slots[at:stop], field.values[wanted])
        at = stop


def _slot_numbers(times: NDArray[np.datetime64], info: TrainingDataInfo) -> NDArray[np.int64]:
    epoch = np.datetime64(datetime.fromisoformat(info.epoch).replace(tzinfo=None), "s")
    elapsed = (times.astype("datetime64[s]") - epoch).astype(np.int64)
    return np.rint(elapsed / info.cadence_s).astype(np.int64)
