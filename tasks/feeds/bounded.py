"""Decompression with a ceiling: a few kilobytes never become gigabytes, and every checksum of the format is checked."""

from __future__ import annotations

import bz2
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Protocol

from tasks.feeds import FrameRejected

_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError, OverflowError)
_GZIP_WBITS = 16 + zlib.MAX_WBITS


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def gunzip(data: bytes, max_bytes: int) -> bytes:
    """The bytes of all gzip members of `data`, CRC-32 and length checked.

    Raises:
        FrameRejected: truncated, corrupt, or oversized above `max_bytes`.
    """
    return _inflate(data, max_bytes, lambda: zlib.decompressobj(_GZIP_WBITS), "gzip")


def bunzip2(data: bytes, max_bytes: int) -> bytes:
    """The bytes of all bzip2 streams of `data`, CRC checked.

    Raises:
        FrameRejected: truncated, corrupt, or oversized above `max_bytes`.
    """
    return _inflate(data, max_bytes, bz2.BZ2Decompressor, "bzip2")


def _inflate(data: bytes, max_bytes: int, opener: Callable[[], _Inflater], form: str) -> bytes:
    parts: list[bytes] = []
    room, rest = max_bytes, data
    while rest or not parts:
        part, rest = _stream(rest, room, opener(), form)
        parts.append(part)
        room -= len(part)
        # Gzip members may be padded with zeros to a block.
        rest = rest.lstrip(b"\0")
    return b"".join(parts)


def _stream(data: bytes, room: int, inflater: _Inflater, form: str) -> tuple[bytes, bytes]:
    try:
        out = inflater.decompress(data, room + 1)
    except (zlib.error, OSError, ValueError) as error:
        raise FrameRejected("corrupt", f"{form} stream of {len(data)} bytes: {error}") from error
    if len(out) > room:
        raise FrameRejected("oversized", f"{form} stream of {len(data)} bytes inflates above the ceiling")
    if not inflater.eof:
        raise FrameRejected("truncated", f"{form} stream ends after {len(data)} bytes without its trailer")
    return out, inflater.unused_data


def unzip(data: bytes, max_bytes: int) -> dict[str, bytes]:
    """The members of a zip archive by name, CRC-32 checked.

    Raises:
        FrameRejected: truncated (no central directory), corrupt, or oversized above `max_bytes` in all.
    """
    if not data.startswith(b"PK"):
        raise FrameRejected("truncated" if not data else "corrupt", f"{len(data)} bytes are no zip archive")
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            declared = sum(member.file_size for member in archive.infolist())
            if declared > max_bytes:
                raise FrameRejected("oversized", f"zip archive declares {declared} bytes; the ceiling is {max_bytes}")
            return {member.filename: _member(archive, member) for member in archive.infolist()}
    except FrameRejected:
        raise
    except _BROKEN_ZIP as error:
        reason = "truncated" if b"PK\x05\x06" not in data[-65_557:] else "corrupt"
        raise FrameRejected(reason, f"zip archive of {len(data)} bytes: {error}") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FrameRejected("corrupt", f"{member.filename} is packed by method {member.compress_type}")
    # zipfile itself reads no more than the declared size, and checks the CRC at its end.
    with archive.open(member) as stream:
        return stream.read(member.file_size + 1)
