"""The structure of a GRIB2 message, checked byte by byte before ecCodes sees it.

On some flipped bits ecCodes 2.42 does not raise: an assertion (`DataPngPacking`, a section's length) aborts the whole
process. What passes here has whole sections of the expected templates, and PNG data whose every chunk keeps its CRC.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from struct import unpack_from

from tasks.feeds import FrameRejected

_INDICATOR, _END = 16, b"7777"
_PNG = b"\x89PNG\r\n\x1a\n"
_MISSING = 0xFFFFFFFF
# Section: (length, offset of the template number, templates). MRMS: analysis at a level, PNG packing.
_SHAPES = {1: (21, 0, ()), 3: (72, 12, (0,)), 4: (34, 7, (0,)), 5: (21, 9, (0, 41)), 6: (6, 0, ())}
_ORDER = (1, 3, 4, 5, 6, 7)
_SIMPLE, _PNG_PACKING = 0, 41


def split_messages(data: bytes) -> list[bytes]:
    """The GRIB2 messages that `data` consists of, whole from indicator to end section.

    Raises:
        FrameRejected: no_data (empty), unreadable (not GRIB2), truncated, or corrupt (no end section, bytes between).
    """
    if not data:
        raise FrameRejected("no_data", "expected a GRIB2 message; got 0 bytes")
    messages, at = [], 0
    while at < len(data):
        length = _message_length(data, at)
        messages.append(data[at : at + length])
        at += length
    return messages


def _message_length(data: bytes, at: int) -> int:
    head = data[at : at + _INDICATOR]
    if not head.startswith(b"GRIB"[: len(head)]):
        raise FrameRejected("corrupt" if at else "unreadable", f"expected GRIB at byte {at}; got {head[:4]!r}")
    if len(head) < _INDICATOR:
        raise FrameRejected("truncated", f"the message at byte {at} ends within its indicator section")
    if head[7] != 2:
        raise FrameRejected("unreadable", f"expected GRIB edition 2 at byte {at}; got edition {head[7]}")
    length = int.from_bytes(head[8:], "big")
    if len(data) - at < length:
        raise FrameRejected("truncated", f"the message at byte {at} declares {length} bytes; {len(data) - at} came")
    if length < _INDICATOR + len(_END) or data[at + length - len(_END) : at + length] != _END:
        raise FrameRejected("corrupt", f"the message at byte {at} of {length} bytes has no end section")
    return length


def check_sections(message: bytes, max_bytes: int) -> None:
    """Nothing, where ecCodes may safely unpack the message into at most `max_bytes` of float64.

    Raises:
        FrameRejected: corrupt, oversized, wrong_grid or unreadable (another template or packing).
    """
    sections = dict(_sections(message))
    if tuple(sections) != _ORDER:
        raise FrameRejected("unreadable", f"expected sections {_ORDER} once each; got {tuple(sections)}")
    for number, (length, offset, templates) in _SHAPES.items():
        section = sections[number]
        if len(section) != length or (templates and unpack_from(">H", section, offset)[0] not in templates):
            raise FrameRejected("unreadable", f"section {number} of {len(section)} bytes is of no template known here")
    nx, ny = _check_grid(sections[3], max_bytes)
    if sections[6][5] != 255 or unpack_from(">H", sections[4], 5)[0]:
        raise FrameRejected("unreadable", "expected a field without a bitmap and without vertical coordinates")
    _check_packing(sections[5], sections[7][5:], nx, ny)


def _sections(message: bytes) -> Iterator[tuple[int, bytes]]:
    at, end = _INDICATOR, len(message) - len(_END)
    while at < end:
        length, number = unpack_from(">IB", message, at) if end - at >= 5 else (0, 0)
        if length < 5 or at + length > end:
            raise FrameRejected("corrupt", f"section {number} at byte {at} declares {length} bytes; {end - at} remain")
        yield number, message[at : at + length]
        at += length


def _check_grid(section: bytes, max_bytes: int) -> tuple[int, int]:
    points, listed = unpack_from(">IB", section, 6)
    nx, ny, angle, subdivisions = unpack_from(">IIII", section, 30)
    if nx * ny * 8 > max_bytes:
        raise FrameRejected("oversized", f"{ny} x {nx} values declared; the ceiling is {max_bytes} bytes")
    if points != nx * ny or min(nx, ny) < 2 or listed:
        raise FrameRejected("wrong_grid", f"expected {points} points on a regular grid; got {ny} x {nx}")
    if (angle, subdivisions) not in {(1, 1_000_000), (0, 0), (0, _MISSING), (_MISSING, _MISSING)}:
        raise FrameRejected("wrong_grid", f"expected angles in microdegrees; got {angle}/{subdivisions}")
    return nx, ny


def _check_packing(section: bytes, data: bytes, nx: int, ny: int) -> None:
    points, template, reference, binary, decimal, bits = unpack_from(">IHfHHB", section, 5)
    scale, widest = max(binary & 0x7FFF, decimal & 0x7FFF), 16 if template == _PNG_PACKING else 32
    if points != nx * ny or bits > widest or scale > 30 or not math.isfinite(reference):
        raise FrameRejected("corrupt", f"packing of {points} values in {bits} bits with scales {binary}, {decimal}")
    if not bits and decimal and reference:
        # ecCodes takes the reference of a constant field for its value, the standard for a decimal code of it.
        raise FrameRejected(
            "unreadable", f"a constant field of {reference} with decimal scale {decimal} has two meanings"
        )
    if template == _PNG_PACKING and bits:
        _check_png(data, (nx, ny, 8 if bits <= 8 else 16, 0, 0, 0, 0))
        return
    expected = (nx * ny * bits + 7) // 8
    if len(data) != expected:
        raise FrameRejected("corrupt", f"expected {expected} bytes of {bits}-bit values; got {len(data)}")


def _check_png(data: bytes, expected: tuple[int, ...]) -> None:
    if not data.startswith(_PNG):
        raise FrameRejected("corrupt", f"expected PNG data; got {data[:8]!r}")
    kinds, at = [], len(_PNG)
    while at < len(data):
        length, kind = unpack_from(">I4s", data, at) if len(data) - at >= 12 else (len(data), b"")
        body = data[at + 4 : at + 8 + length]
        if at + 12 + length > len(data) or zlib.crc32(body) != unpack_from(">I", data, at + 8 + length)[0]:
            raise FrameRejected("corrupt", f"PNG chunk {kind!r} at byte {at} fails its checksum")
        kinds.append(kind)
        at += 12 + length
    header = unpack_from(">IIBBBBB", data, len(_PNG) + 8)
    if kinds[0] != b"IHDR" or kinds[-1] != b"IEND" or header != expected:
        raise FrameRejected("corrupt", f"expected a grey PNG {expected}; got {header}, {kinds[0]!r}..{kinds[-1]!r}")
