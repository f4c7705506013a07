"""From one listed object to packed frames: read, hash, decode, crop and pack, in the thread or worker it is given to.

What travels back is compressed codes and provenance; the pixels stay where they were decoded.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

import numpy as np
import xarray as xr

from infra.settings import RegionSettings
from tasks.archive.packing import PackedFrame, PackingError, pack_frame
from tasks.archive.rejections import Rejection
from tasks.archive.slots import as_datetime
from tasks.feeds import Feed, FrameObject, FrameRejected, Packing
from tasks.grid import apply_region

_THREADS, _IN_FLIGHT = 2, 16


@dataclass(frozen=True)
class Job:
    """One object to be received.

    Attributes:
        feed: Where from.
        item: Which object.
        packing: How the archive stores the quantity.
        region: Crop and block means.
        newest: Frames after this time (aware, UTC) claim to be from the future.
    """

    feed: Feed
    item: FrameObject
    packing: Packing
    region: RegionSettings
    newest: datetime

    @property
    def key(self) -> str:
        """The object's key: its name in errors and progress."""
        return self.item.key


@dataclass(frozen=True)
class Parcel:
    """What came of one object.

    Attributes:
        item: Which object.
        content_hash: SHA-256 of its bytes; empty where they could not be read.
        frames: Its observations (lead 0, first member), packed, oldest first.
        rejections: Why the object, or some of its frames, will not be archived.
        failure: The store's error, where the object could not be read now; worth another try.
    """

    item: FrameObject
    content_hash: bytes = b""
    frames: tuple[PackedFrame, ...] = ()
    rejections: tuple[Rejection, ...] = field(default=())
    failure: OSError | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of compressed codes."""
        return sum(len(frame.chunk) for frame in self.frames)


def receive(job: Job) -> Parcel:
    """Read and decode one object; a bad one becomes a rejection, an unreachable one a failure."""
    item = job.item
    try:
        data = job.feed.read(item)
        decoded = job.feed.decode(data, item.key)
    except FrameRejected as error:
        return Parcel(item, rejections=(_rejection(item, item.time, error.reason, error),))
    except OSError as error:
        return Parcel(item, failure=error)
    frames, rejections = _packed(job, decoded)
    return Parcel(item, hashlib.sha256(data).digest(), tuple(frames), tuple(rejections))


def _packed(job: Job, decoded: Sequence[xr.DataArray]) -> tuple[list[PackedFrame], list[Rejection]]:
    frames, rejections = [], []
    observed = [frame for frame in decoded if _is_observation(frame)]
    if not observed:
        error = ValueError("expected an observation (lead 0); got forecasts only")
        return [], [_rejection(job.item, job.item.time, "no_data", error)]
    for frame in observed:
        time = as_datetime(frame.coords["time"].values[()])
        if time > job.newest:
            error = ValueError(f"expected a time up to {job.newest}; got {time}")
            rejections.append(_rejection(job.item, time, "future", error))
            continue
        try:
            frames.append(pack_frame(apply_region(frame, job.region), job.packing))
        except PackingError as reason:
            rejections.append(_rejection(job.item, time, "out_of_range", reason))
        except ValueError as reason:
            rejections.append(_rejection(job.item, time, "wrong_grid", reason))
    return frames, rejections


def _is_observation(frame: xr.DataArray) -> bool:
    lead, member = frame.coords.get("lead_time"), frame.coords.get("member")
    return (lead is None or lead.values[()] == np.timedelta64(0)) and (member is None or int(member) == 0)


def _rejection(item: FrameObject, time: datetime, reason: str, error: Exception) -> Rejection:
    return Rejection(item.key, item.etag, time, reason, str(error))


def in_threads(function: Callable[[Job], Parcel], jobs: Sequence[Job]) -> Iterator[Parcel]:
    """`map` over two threads, in order, few in flight; a single job stays in this thread."""
    if len(jobs) == 1:
        yield function(jobs[0])
        return
    source = iter(jobs)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="receive") as pool:
        pending: deque[Future[Parcel]] = deque(pool.submit(function, job) for job in islice(source, _IN_FLIGHT))
        while pending:
            parcel = pending.popleft().result()
            pending.extend(pool.submit(function, job) for job in islice(source, 1))
            yield parcel
