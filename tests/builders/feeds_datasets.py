"""Valid and broken bytes of the published data sets (MeteoNet, TAASRAD19), made from nothing."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from builders.feed_case import FeedCase

Codes = npt.NDArray[np.generic]
Values = npt.NDArray[np.float32]

FIVE, TEN = timedelta(minutes=5), timedelta(minutes=10)
CEILING = 1_000_000

# --- MeteoNet ----------------------------------------------------------------------------------------------------

METEONET_TIMES = tuple(datetime(2016, 8, 21, tzinfo=UTC) + FIVE * slot for slot in (2, 3, 7))
METEONET_LAST = datetime(2016, 8, 31, 23, 55, tzinfo=UTC)
METEONET_SHAPE = (9, 30)


def meteonet_codes() -> npt.NDArray[np.int16]:
    """(frame, y, x) depths with dry, wet and not observed cells, one above the ceiling."""
    codes = np.arange(3 * 270, dtype=np.int16).reshape(3, *METEONET_SHAPE)
    codes[:, 0] = -1
    codes[0, 1, :3] = (0, 8334, 32767)
    return codes


def npz(**arrays: Codes) -> bytes:
    """The arrays as numpy writes them, compressed."""
    stream = BytesIO()
    np.savez_compressed(stream, allow_pickle=True, **arrays)
    return stream.getvalue()


def naive(times: tuple[datetime, ...]) -> npt.NDArray[np.object_]:
    """Datetimes as MeteoNet pickles them: without a zone."""
    return np.array([time.replace(tzinfo=None) for time in times], dtype=object)


def meteonet_npz(codes: Codes | None = None, times: tuple[datetime, ...] = METEONET_TIMES) -> bytes:
    """One MeteoNet file of three frames and two listed gaps."""
    missing = naive((METEONET_TIMES[0] - TEN, METEONET_TIMES[0] - FIVE))
    return npz(data=meteonet_codes() if codes is None else codes, dates=naive(times), miss_dates=missing)


def meteonet_coordinates() -> Mapping[str, bytes]:
    """The file of cell centres beside the data."""
    lats, lons = np.meshgrid(51.891 - 0.01 * np.arange(9), -5.837 + 0.01 * np.arange(30), indexing="ij")
    return {"radar_coords_NW.npz": npz(lats=lats, lons=lons)}


def meteonet_rain() -> Values:
    """0.01 mm in 5 min, times 12; clipped to 8333 steps of 0.12 mm h-1."""
    codes = meteonet_codes().astype(float)
    return np.where(codes == -1, np.nan, np.minimum(codes, 8333) * 0.12).astype(np.float32)


# --- TAASRAD19 ---------------------------------------------------------------------------------------------------

TAASRAD19_TIMES = tuple(datetime(2015, 10, 5, 9, 25, tzinfo=UTC) + FIVE * slot for slot in (0, 1, 4))


def taasrad19_codes() -> npt.NDArray[np.uint8]:
    """(frame, y, x) of a sheet: every code inside the circle, 0 outside."""
    frame, y, x = np.mgrid[:1024, :64, :64]
    inside = np.hypot(y - 31.5, x - 31.5) * 3.75 <= 120.5
    return np.where(inside, (frame * 31 + y * 64 + x) % 256, 0).astype(np.uint8)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Pixels as a PNG."""
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


@lru_cache(maxsize=4)
def taasrad19_png(coloured: bool = False, side: int = 2048) -> bytes:
    """A sheet as an opaque RGBA PNG."""
    sheet = taasrad19_codes().reshape(32, 32, 64, 64).transpose(0, 2, 1, 3).reshape(2048, 2048)[:side, :side]
    pixels = np.repeat(sheet[..., None], 4, axis=2)
    pixels[..., 3] = 255
    if coloured:
        pixels[..., 1] = 255 - pixels[..., 1]
    return png(pixels)


def taasrad19_dates() -> Mapping[str, bytes]:
    """Dates of three frames; the sheet's other tiles have none."""
    return {"umap_train_dates.json": json.dumps([f"{time:%Y-%m-%d %H:%M:%S}" for time in TAASRAD19_TIMES]).encode()}


def _taasrad19_outside(values: Values) -> Values:
    y, x = np.mgrid[:64, :64]
    values[:, np.hypot(y - 31.5, x - 31.5) * 3.75 > 120.5] = np.nan
    return values.astype(np.float32)


def taasrad19_dbz() -> Values:
    """v * 52.5 / 255 dBZ."""
    return _taasrad19_outside(taasrad19_codes()[:3].astype(float) * 52.5 / 255)


def taasrad19_rain() -> Values:
    """Marshall and Palmer's Z = 200 R^1.6; no echo is dry."""
    dbz = (taasrad19_codes()[:3].astype(float) * 52.5 / 255).astype(np.float32).astype(float)
    return _taasrad19_outside(np.where(dbz == 0, 0.0, (10.0 ** (dbz / 10) / 200.0) ** (1 / 1.6)))


def png_bomb() -> bytes:
    """A valid header that declares 60000 x 60000 RGBA pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


# --- cases ----------------------------------------------------------------------------------------------------


def _taasrad19(quantity: str, expected: Callable[[], Values]) -> FeedCase:
    return FeedCase(
        *("taasrad19", quantity, FIVE, lambda time: "meteotn_tile_solid_0.png", TAASRAD19_TIMES[-1]),
        build=taasrad19_png,
        times=TAASRAD19_TIMES,
        expected=expected,
        wrong_quantity=lambda: taasrad19_png(coloured=True),
        wrong_grid=lambda: taasrad19_png(side=1984),
        bomb=png_bomb,
        bomb_ceiling=40 * CEILING,
        spans=True,
        beside=taasrad19_dates,
    )


CASES: dict[str, FeedCase] = {
    "meteonet": FeedCase(
        *("meteonet", "rainfall_rate", FIVE, lambda time: "rainfall_NW_2016_08.3.npz", METEONET_LAST),
        build=meteonet_npz,
        times=METEONET_TIMES,
        expected=meteonet_rain,
        wrong_quantity=lambda: meteonet_npz(meteonet_codes().astype(np.float64)),
        wrong_grid=lambda: meteonet_npz(meteonet_codes()[:, :, 1:]),
        bomb=lambda: meteonet_npz(np.zeros((3, 1000, 1000), np.int16)),
        bomb_ceiling=CEILING,
        spans=True,
        beside=meteonet_coordinates,
    ),
    "taasrad19": _taasrad19("equivalent_reflectivity_factor", taasrad19_dbz),
    "taasrad19-rain": _taasrad19("rainfall_rate", taasrad19_rain),
}
