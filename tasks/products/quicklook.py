"""Pictures of a product: one PNG a lead and one animation, north up, grey hatching where nothing is known.

For an ensemble also the probability of a telling threshold at every lead, and a few members side by side. Palette
images drawn with numpy and Pillow: a lead of a million cells takes tens of milliseconds. Without a coastline at hand,
meridians and parallels say where things are.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import lru_cache

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

FOLDER = "quicklook"

Codes = NDArray[np.uint8]

_LONGEST = 1300  # pixels
_SHORTEST = 400  # holds a line of words
_HEADER, _FOOTER = 58, 34
_GAP = 4  # pixels between members
_FRAME_MS, _LAST_MS = 350, 1200
_THREADS = 4

# From pale blue through green and yellow to red and violet: lightness falls all the way.
_COLOURS = (
    (255, 255, 255),
    (208, 226, 242),
    (158, 202, 225),
    (84, 158, 205),
    (49, 130, 100),
    (90, 170, 60),
    (240, 220, 70),
    (253, 160, 50),
    (227, 60, 40),
    (160, 15, 60),
    (90, 0, 90),
)
_BREAKS = {
    "rainfall_rate": (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100),
    "equivalent_reflectivity_factor": (5, 10, 15, 20, 25, 30, 35, 40, 50, 60),
    "vil": (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40, 60),
}
_CHANCES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Threshold whose probability is drawn: of the product's the nearest to this.
_TELLING = {"rainfall_rate": 1.0, "equivalent_reflectivity_factor": 20.0, "vil": 1.0}
_MEMBERS = 4  # shown side by side, two by two
_GREY, _HATCH, _LINE, _INK = 11, 12, 13, 14
_PALETTE = bytes(
    channel
    for colour in (*_COLOURS, (225, 225, 225), (196, 196, 196), (130, 130, 140), (20, 20, 20))
    for channel in colour
)


def draw_quicklooks(product: xr.Dataset, quantity: str) -> dict[str, bytes]:
    """Key below the product's folder -> bytes: `quicklook/lead_005min.png`, ... and `quicklook/animation.gif`.

    For several members also `quicklook/probability_005min.png`, ... and, for the first, middle and last lead,
    `quicklook/members_005min.png`.

    Args:
        product: <quantity>_mean (lead_time, y, x), lat and lon [degrees], and the attributes of `build_product`; for
            several members also <quantity> (member, lead_time, y, x) and probability_above_threshold.
        quantity: rainfall_rate, equivalent_reflectivity_factor or vil.
    """
    canvas = _Canvas(product, quantity)
    leads = range(product.sizes["lead_time"])
    with ThreadPoolExecutor(_THREADS) as pool:
        images = list(pool.map(canvas.draw, leads))
        pictures = {f"lead_{canvas.minutes[lead]:03d}min": images[lead] for lead in leads}
        if product.sizes.get("member", 1) > 1:
            chances = pool.map(canvas.draw_probability, leads)
            pictures |= {f"probability_{canvas.minutes[lead]:03d}min": next(chances) for lead in leads}
            few = sorted({leads[0], leads[len(leads) // 2], leads[-1]})
            pictures |= {f"members_{canvas.minutes[lead]:03d}min": canvas.draw_members(lead) for lead in few}
        files = list(pool.map(_png, pictures.values()))
    names = [f"{FOLDER}/{name}.png" for name in pictures]
    return {**dict(zip(names, files, strict=True)), f"{FOLDER}/animation.gif": _gif(images)}


class _Canvas:
    """What all pictures of a product share: size, grid lines, scale and the words above them."""

    def __init__(self, product: xr.Dataset, quantity: str) -> None:
        self.product, self.quantity = product, quantity
        self.field = product[f"{quantity}_mean"]
        rows, columns = (self.field.sizes[axis] for axis in ("y", "x"))
        self.stride = max(1, -(-max(rows, columns) // _LONGEST))
        self.zoom = max(1, _SHORTEST // max(rows, columns))
        self.upwards = bool(product["y"].values[0] < product["y"].values[-1])
        degrees = (self._place(plane) for plane in _planes(product["lat"].values, product["lon"].values))
        self.lines = _graticule(*degrees)
        self.minutes = [int(lead / np.timedelta64(60, "s")) for lead in product["lead_time"].values]
        self.valid = [_moment(time) for time in product["time"].values]
        self.title = str(product.attrs["title"])
        self.issue = (
            f"from {_moment(product['init_time'].values):%Y-%m-%d %H:%M} UTC, "
            f"{product.attrs['rung']}, context {product.attrs['verdict']}"
        )

    def draw(self, lead: int) -> Image.Image:
        """The mean at one lead, a palette image."""
        codes = self._codes(self.field.values[lead], _BREAKS[self.quantity])
        return self._page(codes, self._units, lead, _BREAKS[self.quantity])

    def draw_probability(self, lead: int) -> Image.Image:
        """The probability of a telling threshold at one lead."""
        thresholds = self.product["threshold"].values
        index = int(np.abs(thresholds - _TELLING[self.quantity]).argmin())
        chance = self.product["probability_above_threshold"][index, lead].values
        what = f"probability of {thresholds[index]:g} {self._units}"
        return self._page(self._codes(chance, _CHANCES), what, lead, _CHANCES)

    def draw_members(self, lead: int) -> Image.Image:
        """The first members at one lead, two by two."""
        fields = self.product[self.quantity][:_MEMBERS, lead].values
        panels = [np.pad(self._codes(field, _BREAKS[self.quantity]), ((0, _GAP), (0, _GAP))) for field in fields]
        panels += [np.zeros_like(panels[0])] * (-len(panels) % 2)
        rows = [np.hstack(panels[first : first + 2]) for first in range(0, len(panels), 2)]
        what = f"members 0 to {len(fields) - 1}, {self._units}"
        return self._page(np.vstack(rows), what, lead, _BREAKS[self.quantity])

    @property
    def _units(self) -> str:
        return str(self.field.attrs["units"])

    def _codes(self, plane: NDArray[np.float32], breaks: Sequence[float]) -> Codes:
        """Colours of a plane (y, x), hatched where it is NaN, with the grid lines."""
        values = self._place(plane)
        codes = np.searchsorted(np.asarray(breaks, np.float32), values, side="right").astype(np.uint8)
        rows, columns = np.ogrid[0 : values.shape[0], 0 : values.shape[1]]
        unknown = ~np.isfinite(values)
        codes[unknown] = np.where((rows + columns) % 8 < 2, _HATCH, _GREY).astype(np.uint8)[unknown]
        codes[self.lines] = _LINE
        return codes

    def _page(self, codes: Codes, what: str, lead: int, breaks: Sequence[float]) -> Image.Image:
        page = Image.new("P", (max(codes.shape[1], _SHORTEST), codes.shape[0] + _HEADER + _FOOTER), 0)
        page.putpalette(_PALETTE)
        page.paste(Image.fromarray(codes), (0, _HEADER))
        pen = ImageDraw.Draw(page)
        words = (f"{self.valid[lead]:%H:%M} UTC (+{self.minutes[lead]} min): {what}", self.issue, self.title)
        for line, text in enumerate(words):
            pen.text((6, 4 + 18 * line), text, _INK, _font())
        _scale(pen, page.width, codes.shape[0] + _HEADER + 4, breaks)
        return page

    def _place(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        """Every n-th cell, or every cell n times, north up."""
        plane = plane[:: self.stride, :: self.stride]
        plane = np.repeat(np.repeat(plane, self.zoom, axis=0), self.zoom, axis=1)
        return plane[::-1] if self.upwards else plane


def _scale(pen: ImageDraw.ImageDraw, width: int, top: int, breaks: Sequence[float]) -> None:
    side = min(48, (width - 12) // len(_COLOURS))
    for code in range(len(_COLOURS)):
        left = 6 + code * side
        pen.rectangle((left, top, left + side, top + 10), fill=code, outline=_LINE)
        if code:
            pen.text((left, top + 13), f"{breaks[code - 1]:g}", _INK, _font(), anchor="ma")


def _planes(lat: NDArray[np.float32], lon: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Latitude and longitude (y, x), from either those or the axes of a latitude-longitude grid."""
    if lat.ndim == 2:
        return lat, lon
    shape = (len(lat), len(lon))
    return np.broadcast_to(lat[:, None], shape), np.broadcast_to(lon[None, :], shape)


def _graticule(lat: NDArray[np.float32], lon: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels where a round meridian or parallel passes."""
    marks = np.zeros(lat.shape, bool)
    for degrees in (lat, lon):
        extent = float(np.nanmax(degrees) - np.nanmin(degrees))
        step = next((step for step in (0.1, 0.25, 0.5, 1, 2, 5, 10, 20) if extent / step <= 6), 30)
        band = np.floor(degrees / step)
        marks[1:] |= band[1:] != band[:-1]
        marks[:, 1:] |= band[:, 1:] != band[:, :-1]
    return marks


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=6)
    return out.getvalue()


def _gif(images: list[Image.Image]) -> bytes:
    out = io.BytesIO()
    durations = [*[_FRAME_MS] * (len(images) - 1), _LAST_MS]
    images[0].save(
        out, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False, disposal=1
    )
    return out.getvalue()


def _moment(time: NDArray[np.datetime64] | np.datetime64) -> datetime:
    moment: datetime = np.asarray(time).astype("datetime64[s]").item()
    return moment


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)
