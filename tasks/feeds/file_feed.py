"""A feed whose files are named after their time and hold what one pure function decodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from tasks.feeds import FeedSource, FrameObject, Packing
from tasks.feeds.frames import Frames
from tasks.feeds.listing import Objects, day_prefixes, list_objects, read_object


@dataclass
class FileFeed:
    """Keeps the `Feed` protocol; picklable, because its functions are a module's own.

    The option `folders` (strftime form, such as "%Y/%m/%d") limits a listing to the folders of its days.

    Attributes:
        source: Where files lie and what of them is wanted.
        packing: Lossless packing of the source's quantity.
        latency: Typical delay from valid time to availability.
        licence: SPDX identifier (or LicenseRef-...) of the data.
        time_of: Nominal time of a key, END of the interval; None for another kind of file.
        frames_of: Frames in the bytes under a key; raises FrameRejected.
    """

    source: FeedSource
    packing: Packing
    latency: timedelta
    licence: str
    time_of: Callable[[str], datetime | None]
    frames_of: Callable[[FeedSource, bytes, str], Frames]

    def list(self, start: datetime, end: datetime) -> Objects:
        """Files whose time lies in [start, end], oldest first."""
        pattern = self.source.options.get("folders")
        # Midnight's file may lie in the folder of the day that it ends.
        prefixes = day_prefixes(start - timedelta(days=1), end, pattern) if pattern else None
        return list_objects(self.source, start, end, self.time_of, prefixes)

    def read(self, item: FrameObject) -> bytes:
        """The bytes of one file."""
        return read_object(self.source, item)

    def decode(self, data: bytes, key: str) -> Frames:
        """Frames in the bytes, oldest first.

        Raises:
            FrameRejected: the bytes are not what the key says.
        """
        return self.frames_of(self.source, data, key)


def packing_of(source: FeedSource, packings: Mapping[str, Packing]) -> Packing:
    """The packing of the wanted quantity.

    Raises:
        ValueError: the feed does not give it.
    """
    if source.quantity not in packings:
        raise ValueError(f"feed {source.kind} gives {', '.join(packings)}; got {source.quantity!r}")
    return packings[source.quantity]
