"""A feed of one-line text files on a folder: `<time> <rain> [key=value ...]`, decoded like any other."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import xarray as xr

from builders.archives import STEP, TENTHS, frame
from infra.settings import ArchiveSettings, Domain, FeedSettings, ProductSettings
from tasks.feeds import FeedSource, FrameObject, FrameRejected, Packing

_STAMP = "%Y%m%d-%H%M%S"


@dataclass(frozen=True)
class TinyFeed:
    """Keeps the Feed protocol."""

    source: FeedSource

    @property
    def packing(self) -> Packing:
        return TENTHS

    @property
    def latency(self) -> timedelta:
        return timedelta(minutes=2)

    @property
    def licence(self) -> str:
        return "CC-BY-4.0"

    def list(self, start: datetime, end: datetime) -> list[FrameObject]:
        found = []
        for path in sorted(Path(self.source.url).glob("*.txt")):
            time = datetime.strptime(path.stem[:15], _STAMP).replace(tzinfo=UTC)
            stat = path.stat()
            if start <= time <= end:
                found.append(FrameObject(path.name, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}", time))
        return found

    def read(self, item: FrameObject) -> bytes:
        return (Path(self.source.url) / item.key).read_bytes()

    def decode(self, data: bytes, key: str) -> list[xr.DataArray]:
        if not data.endswith(b"."):
            raise FrameRejected("truncated", f"expected a full stop at the end of {key}; got {data[-10:]!r}")
        return [_decoded(line) for line in data[:-1].decode().split(";")]


def _decoded(line: str) -> xr.DataArray:
    stamp, rain, *options = line.split()
    given = dict(option.split("=") for option in options)
    result = frame(datetime.fromisoformat(stamp), float(rain), cell=float(given.get("cell", 1000)))
    return result.assign_coords(lead_time=np.timedelta64(int(given.get("lead", 0)), "m").astype("timedelta64[ns]"))


def put(
    folder: Path, time: datetime, rain: float = 1.0, *, name: datetime | None = None, text: str | None = None
) -> Path:
    """One object with a frame at `time`; `text` replaces its content."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name or time:{_STAMP}}.txt"
    path.write_text(f"{time.isoformat()} {rain}." if text is None else text)
    return path


def tiny_feed(folder: Path) -> TinyFeed:
    """The feed of a folder."""
    return TinyFeed(FeedSource("test", str(folder), "rainfall_rate", STEP))


def tiny_domain(folder: Path, url: Path | str, **feed: object) -> Domain:
    """A domain over a folder, archived at `url`."""
    settings = {"kind": "test", "url": str(folder), "cadence": STEP, "tolerance": timedelta(seconds=90), **feed}
    return Domain(
        name="tiny",
        feed=FeedSettings.model_validate(settings),
        archive=ArchiveSettings(url=str(url)),
        product=ProductSettings(url="unused"),
    )
