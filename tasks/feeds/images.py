"""GIF and PNG as codes: every block is walked and every declared size checked before Pillow may allocate.

Pillow skips the CRC of PNG image data and reads GIFs that lack their end; both are told here.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from tasks.feeds import FrameRejected

Codes = npt.NDArray[np.uint8]

# Pillow warns above a limit of its own and fails at twice that; the walk refuses before either can happen.
_MAX_PIXELS = 64_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
# Channels of the PNG colour types: grey, RGB, palette, grey + alpha, RGBA.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, zlib.error)


@dataclass(frozen=True)
class Gif:
    """A single-image GIF: palette indices (y, x) and its comment."""

    indices: Codes
    comment: str


def read_gif(data: bytes, max_bytes: int) -> Gif:
    """The palette indices (y, x) of a GIF's only image, and its comment.

    Raises:
        FrameRejected: truncated, corrupt (also: more than one image), or oversized.
    """
    comment = _walk_gif(data, max_bytes)
    indices = _pixels(data, "GIF", max_bytes)
    if indices.ndim != 2:
        raise FrameRejected("corrupt", f"expected palette indices; got pixels of shape {indices.shape}")
    return Gif(indices, comment)


def _need(data: bytes, offset: int, size: int, form: str) -> None:
    if offset + size > len(data):
        raise FrameRejected("truncated", f"{form} ends within a block, after {len(data)} bytes")


def _check_pixels(width: int, height: int, depth: int, max_bytes: int, form: str) -> None:
    if width == 0 or height == 0:
        raise FrameRejected("corrupt", f"{form} of {height} x {width} pixels")
    if width * height > _MAX_PIXELS or width * height * depth > max_bytes:
        raise FrameRejected("oversized", f"{form} declares {height} x {width} pixels of {depth} bytes")


def _walk_gif(data: bytes, max_bytes: int) -> str:
    if not data.startswith((b"GIF87a", b"GIF89a")):
        raise FrameRejected("corrupt" if data else "truncated", f"expected a GIF; got {data[:6]!r}")
    _need(data, 0, 13, "GIF")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    _check_pixels(width, height, 1, max_bytes, "GIF")
    offset, images, comment = 13 + _palette_bytes(flags), 0, b""
    while True:
        _need(data, offset, 1, "GIF")
        kind = data[offset]
        if kind == 0x3B:
            break
        if kind == 0x2C:
            _check_window(data, offset, width, height)
            offset = _skip_image(data, offset)
            images += 1
        elif kind == 0x21:
            _need(data, offset, 2, "GIF")
            end = _skip_blocks(data, offset + 2)
            comment = _join_blocks(data, offset + 2) if data[offset + 1] == 0xFE else comment
            offset = end
        else:
            raise FrameRejected("corrupt", f"GIF block of unknown kind 0x{kind:02x} at byte {offset}")
    if images != 1:
        raise FrameRejected("corrupt", f"expected one image in the GIF; got {images}")
    return comment.decode("latin-1")


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _check_window(data: bytes, offset: int, width: int, height: int) -> None:
    _need(data, offset, 10, "GIF")
    window = struct.unpack_from("<HHHH", data, offset + 1)
    if window != (0, 0, width, height):
        raise FrameRejected("corrupt", f"GIF image {window} does not fill the {height} x {width} screen")


def _skip_image(data: bytes, offset: int) -> int:
    return _skip_blocks(data, offset + 10 + _palette_bytes(data[offset + 9]) + 1)


def _skip_blocks(data: bytes, offset: int) -> int:
    while True:
        _need(data, offset, 1, "GIF")
        size = data[offset]
        offset += 1 + size
        if size == 0:
            return offset


def _join_blocks(data: bytes, offset: int) -> bytes:
    parts = []
    while data[offset]:
        parts.append(data[offset + 1 : offset + 1 + data[offset]])
        offset += 1 + data[offset]
    return b"".join(parts)


def read_png(data: bytes, max_bytes: int) -> Codes:
    """Pixels (y, x) or (y, x, channel) of an 8-bit PNG, every chunk's CRC-32 checked.

    Raises:
        FrameRejected: truncated, corrupt, or oversized.
    """
    if not data.startswith(_PNG):
        raise FrameRejected("corrupt" if data else "truncated", f"expected a PNG; got {data[:8]!r}")
    offset, kind = len(_PNG), b""
    while kind != b"IEND":
        _need(data, offset, 12, "PNG")
        length, kind = struct.unpack_from(">I4s", data, offset)
        _need(data, offset, 12 + length, "PNG")
        (crc,) = struct.unpack_from(">I", data, offset + 8 + length)
        if zlib.crc32(memoryview(data)[offset + 4 : offset + 8 + length]) != crc:
            raise FrameRejected("corrupt", f"CRC of PNG chunk {kind!r} at byte {offset}")
        if offset == len(_PNG):
            _check_ihdr(kind, data[offset + 8 : offset + 8 + length], max_bytes)
        offset += 12 + length
    return _pixels(data, "PNG", max_bytes)


def _check_ihdr(kind: bytes, body: bytes, max_bytes: int) -> None:
    if kind != b"IHDR" or len(body) != 13:
        raise FrameRejected("corrupt", f"expected IHDR as the first PNG chunk; got {kind!r}")
    width, height, depth, colour = struct.unpack_from(">IIBB", body)
    if depth != 8 or colour not in _CHANNELS:
        raise FrameRejected("wrong_quantity", f"expected 8-bit PNG samples; got depth {depth}, colour type {colour}")
    _check_pixels(width, height, _CHANNELS[colour], max_bytes, "PNG")


def _pixels(data: bytes, form: str, max_bytes: int) -> Codes:
    try:
        with Image.open(BytesIO(data), formats=[form]) as image:
            pixels = np.asarray(image)
    except _BROKEN as error:
        raise FrameRejected("corrupt", f"{form} of {len(data)} bytes: {error}") from error
    if pixels.dtype != np.uint8 or pixels.nbytes > max_bytes:
        raise FrameRejected("corrupt", f"{form} gave {pixels.dtype} pixels of shape {pixels.shape}")
    return pixels
