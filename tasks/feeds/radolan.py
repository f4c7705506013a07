"""DWD's RADOLAN composites: the RV nowcast (tar.bz2 of one file per lead), or a single file.

A run is a rival forecast: its frames carry their lead times, and only lead 0 describes what was observed. A code counts
10^PR mm in the interval INT; the four bits above its twelve are flags.

References:
    DWD (2022), RADOLAN/RADVOR: Beschreibung des Kompositformats, version 2.5.1.
    Winterrath, Rosenow and Weigl (2012), IAHS Publ. 351, 400-405 (RADVOR nowcasts).
"""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pyproj
import xarray as xr

from tasks.feeds import FeedSource, FrameRejected, Packing
from tasks.feeds.bounded import bunzip2
from tasks.feeds.file_feed import FileFeed, packing_of
from tasks.feeds.frames import Float32, Float64, Frames, build_frame, ceiling_of, check_time

Codes = npt.NDArray[np.uint16]

_KEY = re.compile(r"DE1200_RV(\d{10})(?:_(\d{3}))?(?:\.tar\.bz2)?$")
_HEADER = re.compile(
    r"(?P<product>[A-Z]{2})(?P<day>\d{2})(?P<clock>\d{4})(?P<place>\d{5})(?P<month>\d{4})"
    r"BY *(?P<length>\d+)VS *(?P<version>\d+)SW *(?P<software>\S+?) *PR *E(?P<exponent>[+-]\d{2})"
    r"INT *(?P<minutes>\d+)GP *(?P<rows>\d+)x *(?P<columns>\d+)(?:VV *(?P<lead>\d+))?(?:MF *(?P<modules>\d+))?"
    r"(?:MS *\d+<(?P<radars>[^>]*)>)?.*"
)
_ETX = 3
_MOST_HEADER, _MOST_MEMBERS = 4096, 64
_SECONDARY, _NODATA, _NEGATIVE, _CLUTTER = 0x1000, 0x2000, 0x4000, 0x8000
_VALUE = 0x0FFF
_FLAGS = {"secondary_cells": _SECONDARY, "negative_cells": _NEGATIVE, "clutter_cells": _CLUTTER}
# Grid DE1200: 1 km cells; the origin of the projection is the centre of the north-western cell.
_SHAPE = (1200, 1100)
_STEREOGRAPHIC = "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +units=m +no_defs"
_SPHERE = "+a=6370040 +b=6370040 +x_0=542962.16692185658 +y_0=3609144.7242655745"
_WGS84 = "+a=6378137 +b=6356752.3142451802 +x_0=543196.83521776402 +y_0=3622588.8619310018"


@dataclass(frozen=True)
class Header:
    """What a RADOLAN file says of itself.

    Attributes:
        product: Two letters, such as RV.
        init_time: Time of the analysis (aware, UTC).
        lead: Lead time; 0 where none is given.
        interval: What a code's depth fell in.
        depth: mm per code step.
        version: Format version; from 5 on the grid is on WGS 84, before on a sphere.
        shape: (rows, columns).
        radars: Sites that contributed.
    """

    product: str
    init_time: datetime
    lead: timedelta
    interval: timedelta
    depth: float
    version: int
    shape: tuple[int, int]
    radars: tuple[str, ...]


def read_member(data: bytes) -> tuple[Header, Codes]:
    """Header and codes (y, x), rows from south to north, of one RADOLAN file.

    Raises:
        FrameRejected: unreadable (no header), truncated, or corrupt (lengths that disagree).
    """
    end = data.find(_ETX, 0, _MOST_HEADER)
    match = _HEADER.fullmatch(data[:end].decode("latin-1")) if end > 0 else None
    if match is None:
        raise FrameRejected("unreadable", f"expected a RADOLAN header that ends with ETX; got {data[:40]!r}")
    header = _parse(match)
    size, declared = 2 * header.shape[0] * header.shape[1], int(match["length"])
    if len(data) < declared:
        raise FrameRejected("truncated", f"the header declares {declared} bytes; {len(data)} came")
    if not len(data) == declared == end + 1 + size:
        raise FrameRejected("corrupt", f"{len(data)} bytes, {declared} declared, {end + 1 + size} by the grid")
    return header, np.frombuffer(data, "<u2", offset=end + 1).reshape(header.shape)


def _parse(match: re.Match[str]) -> Header:
    stamp = f"{match['month']}{match['day']}{match['clock']}"
    try:
        moment = datetime.strptime(stamp, "%m%y%d%H%M").replace(tzinfo=UTC)
    except ValueError as error:
        raise FrameRejected("corrupt", f"expected a time; got {stamp!r}") from error
    return Header(
        product=match["product"],
        init_time=moment,
        lead=timedelta(minutes=int(match["lead"] or 0)),
        interval=timedelta(minutes=int(match["minutes"])),
        depth=10.0 ** int(match["exponent"]),
        version=int(match["version"]),
        shape=(int(match["rows"]), int(match["columns"])),
        radars=tuple((match["radars"] or "").split(",")),
    )


@lru_cache(maxsize=4)
def _table(rate: float) -> Float32:
    """Rain rate [mm h-1] of every 16-bit code: NaN where it says no data or clutter, or is negative."""
    codes = np.arange(65536)
    rates = ((codes & _VALUE) * rate).astype(np.float32)
    rates[(codes & (_NODATA | _CLUTTER | _NEGATIVE)) != 0] = np.nan
    return rates


@lru_cache(maxsize=2)
def _grid(version: int) -> tuple[pyproj.CRS, Float64, Float64]:
    crs = pyproj.CRS.from_user_input(f"{_STEREOGRAPHIC} {_WGS84 if version >= 5 else _SPHERE}")
    x = np.arange(_SHAPE[1], dtype=np.float64) * 1000.0
    return crs, x, np.arange(_SHAPE[0], dtype=np.float64) * -1000.0


def _members(data: bytes, max_bytes: int) -> list[bytes]:
    """The files of a bzip2 tar in memory, or `data` itself; nothing is written to disk.

    Raises:
        FrameRejected: truncated, corrupt (links, folders, too many members) or oversized.
    """
    if not data.startswith(b"BZh"):
        return [data]
    raw = bunzip2(data, max_bytes)
    try:
        with tarfile.open(fileobj=BytesIO(raw), mode="r:") as archive:
            return [_content(archive, member) for member in _listed(archive, len(raw))]
    except tarfile.TarError as error:
        raise FrameRejected("corrupt", f"tar of {len(raw)} bytes: {error}") from error


def _listed(archive: tarfile.TarFile, size: int) -> list[tarfile.TarInfo]:
    listed = []
    for member in archive:
        listed.append(member)
        if not member.isreg() or len(listed) > _MOST_MEMBERS or member.offset_data + member.size > size:
            raise FrameRejected("corrupt", f"member {len(listed)} of the tar is no whole file, or one of too many")
    if sum(member.size for member in listed) > size:
        raise FrameRejected("oversized", f"the tar's members claim more than its {size} bytes")
    return listed


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read(member.size)


def _check(header: Header, first: Header, source: FeedSource, packing: Packing, key: str) -> None:
    if header.product != source.options.get("product", "RV"):
        raise FrameRejected("wrong_quantity", f"expected product RV; got {header.product}")
    if header.shape != _SHAPE:
        raise FrameRejected("wrong_grid", f"expected grid DE1200 of {_SHAPE}; got {header.shape}")
    rate = header.depth * (timedelta(hours=1) / header.interval) if header.interval else 0.0
    if abs(rate - packing.scale_factor) > 1e-9:
        raise FrameRejected("wrong_quantity", f"expected steps of {packing.scale_factor} mm/h; got {rate}")
    if (header.init_time, header.version) != (first.init_time, first.version):
        raise FrameRejected("corrupt", f"members of {first.init_time} and {header.init_time} in one run")
    check_time(header.init_time, _time_of(key), timedelta(0), key)


def _frames_of(source: FeedSource, data: bytes, key: str) -> Frames:
    packing = packing_of(source, _packings(source))
    members = [read_member(member) for member in _members(data, source.max_bytes)]
    if not members:
        raise FrameRejected("no_data", f"{key} is a tar without members")
    members.sort(key=lambda member: member[0].lead)
    leads = [header.lead for header, _ in members]
    if len(set(leads)) < len(leads):
        raise FrameRejected("corrupt", f"{key} holds a lead time twice: {[str(lead) for lead in leads]}")
    for header, _ in members:
        _check(header, members[0][0], source, packing, key)
    if sum(2 * codes.nbytes for _, codes in members) > source.max_bytes:
        raise FrameRejected("oversized", f"{len(members)} frames; the ceiling is {source.max_bytes} bytes")
    return [_frame(source, packing, header, codes) for header, codes in members]


def _frame(source: FeedSource, packing: Packing, header: Header, codes: Codes) -> xr.DataArray:
    crs, x, y = _grid(header.version)
    flags = {name: int(np.count_nonzero(codes & bit)) for name, bit in _FLAGS.items()}
    return build_frame(
        _table(packing.scale_factor)[codes[::-1]],
        quantity=source.quantity,
        time=header.init_time + header.lead,
        crs=crs,
        x=x,
        y=y,
        lead=header.lead,
        ceiling=ceiling_of(source.quantity, packing),
        quality={"product": header.product, "radars": len(header.radars), **flags},
    )


def _packings(source: FeedSource) -> dict[str, Packing]:
    return {"rainfall_rate": Packing("uint16", 0.01 * (timedelta(hours=1) / source.cadence), 0.0, 65535)}


def _time_of(key: str) -> datetime | None:
    match = _KEY.search(key)
    try:
        return datetime.strptime(match[1], "%y%m%d%H%M").replace(tzinfo=UTC) if match else None
    except ValueError:
        return None


def open_feed(source: FeedSource) -> FileFeed:
    """RV runs under any fsspec root; DWD publishes one about five minutes after its analysis.

    Raises:
        ValueError: another quantity than rain.
    """
    packing = packing_of(source, _packings(source))
    return FileFeed(source, packing, timedelta(minutes=5), "CC-BY-4.0", _time_of, _frames_of)
