"""NOAA MRMS: mosaics of the United States in GRIB2, from the live bucket's layout or a flat folder.

References:
    Zhang et al. (2016), doi:10.1175/BAMS-D-14-00174.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import xarray as xr

from infra.objects import open_filesystem
from tasks.feeds import FeedSource, FrameObject, FrameRejected, Packing
from tasks.feeds.bounded import gunzip
from tasks.feeds.frames import Frames, build_frame
from tasks.feeds.grib import Header, open_message, read_header, read_values
from tasks.feeds.listing import Objects, day_prefixes, list_objects, read_object
from tasks.feeds.sections import check_sections, split_messages
from tasks.units import NO_ECHO

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_GZIP = b"\x1f\x8b"
_BLOCK = 64
_DAY = re.compile(r"/\d{8}/?$")
_KEY = re.compile(r"(?:^|/)(?:MRMS_)?(?P<product>\w+)_(?P<level>\d\d\.\d\d)_(?P<stamp>\d{8}-\d{6})\.grib2(?:\.gz)?$")


@dataclass(frozen=True)
class Product:
    """One MRMS product.

    Attributes:
        name: As in keys.
        level: Height word in keys.
        quantity: What it becomes.
        parameter: GRIB2 (discipline, category, number).
        no_coverage: Flag of cells that no radar sees.
        missing: Flag of cells within coverage that have no value.
        no_echo: Value that `missing` means, where it means "below detection"; None: `missing` is not observed.
        packing: Lossless for the product's step, and for any that is a whole multiple of this one's.
    """

    name: str
    level: str
    quantity: str
    parameter: tuple[int, int, int]
    no_coverage: float
    missing: float
    no_echo: float | None
    packing: Packing


# The files' own step is 0.1 (decimal scale 1, read off the real PrecipRate and reflectivity files): 16 bits hold it up
# to 6553.4 mm h-1. No VIL file was at hand: 0.01 holds a decimal scale of 1 or 2 up to 655 kg m-2.
_RAIN = Packing("uint16", 0.1, 0.0, 65535)
_ECHO = Packing("uint16", 0.1, NO_ECHO, 65535)
_LIQUID = Packing("uint16", 0.01, 0.0, 65535)

# Parameters and flags: NSSL's UserTable_MRMS_v12.0, as carried by Unidata netcdf-java (MrmsLocalTables), and the real
# files. A missing cell of reflectivity is one below detection; of VIL and of rain the table does not say: unknown.
PRODUCTS: Mapping[str, Product] = {
    product.name: product
    for product in (
        Product("PrecipRate", "00.00", "rainfall_rate", (209, 6, 1), -3, -1, None, _RAIN),
        Product(
            "MergedReflectivityQCComposite",
            "00.50",
            "equivalent_reflectivity_factor",
            (209, 10, 0),
            -999,
            -99,
            NO_ECHO,
            _ECHO,
        ),
        Product(
            "ReflectivityAtLowestAltitude",
            "00.50",
            "equivalent_reflectivity_factor",
            (209, 3, 57),
            -999,
            -99,
            NO_ECHO,
            _ECHO,
        ),
        Product("VIL", "00.50", "vil", (209, 3, 41), -3, -1, None, _LIQUID),
    )
}
_DEFAULT = {
    "rainfall_rate": "PrecipRate",
    "equivalent_reflectivity_factor": "MergedReflectivityQCComposite",
    "vil": "VIL",
}


def product_of(source: FeedSource) -> Product:
    """The product that `source` asks for: its option `product`, else the usual one of its quantity.

    Raises:
        ValueError: no such product, or one of another quantity.
    """
    name = source.options.get("product", _DEFAULT.get(source.quantity, source.quantity))
    if name not in PRODUCTS or PRODUCTS[name].quantity != source.quantity:
        known = ", ".join(f"{p.name} ({p.quantity})" for p in PRODUCTS.values())
        raise ValueError(f"expected an MRMS product of {known}; got {name!r} for {source.quantity}")
    return PRODUCTS[name]


def object_key(product: Product, time: datetime, region: str = "CONUS") -> str:
    """The live bucket's key of `product` at `time` (aware)."""
    moment = time.astimezone(UTC)
    folder = f"{product.name}_{product.level}"
    return f"{region}/{folder}/{moment:%Y%m%d}/MRMS_{folder}_{moment:%Y%m%d-%H%M%S}.grib2.gz"


def time_of_key(key: str, product: Product) -> datetime | None:
    """Nominal time of `key`, written today or before v12 (no MRMS_ prefix); None for another product or an alias."""
    match = _KEY.search(key)
    if match is None or (match["product"], match["level"]) != (product.name, product.level):
        return None
    try:
        return datetime.strptime(match["stamp"], "%Y%m%d-%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


@dataclass(frozen=True)
class MrmsFeed:
    """MRMS under any fsspec URL: `noaa-mrms-pds` as it stands, a mirror of it, or a flat folder of its files.

    Options: `product`; `region` (CONUS, ALASKA, ...); `shape` ("3500x7000") where any other grid is to be rejected.

    Attributes:
        source: Where the files are.
        product: Which of them.
        latency: Two to three minutes in the live bucket.
    """

    source: FeedSource
    product: Product
    latency: timedelta = timedelta(minutes=3)

    @property
    def packing(self) -> Packing:
        """Whole steps of the product."""
        return self.product.packing

    @property
    def licence(self) -> str:
        """A work of the United States' government, in the public domain."""
        return "CC0-1.0"

    def list(self, start: datetime, end: datetime) -> Objects:
        """Objects with a nominal time in [start, end]; the bucket's layout is searched by day, a flat folder whole."""
        pattern = self._layout()
        days = None if pattern is None else day_prefixes(start.astimezone(UTC), end.astimezone(UTC), pattern)
        return list_objects(self.source, start, end, lambda key: time_of_key(key, self.product), days)

    def _layout(self) -> str | None:
        """Day folders (strftime) below the bucket's root, or below its folder of one region; None: a flat folder."""
        filesystem, root = open_filesystem(self.source.url, self.source.storage)
        region = self.source.options.get("region", "CONUS")
        product = f"{self.product.name}_{self.product.level}"
        if filesystem.isdir(f"{root}/{region}"):
            return f"{region}/{product}/%Y%m%d"
        folders = filesystem.ls(f"{root}/{product}", detail=False) if filesystem.isdir(f"{root}/{product}") else ()
        return f"{product}/%Y%m%d" if any(map(_DAY.search, folders)) else None

    def read(self, item: FrameObject) -> bytes:
        """The bytes of one object."""
        return read_object(self.source, item)

    def decode(self, data: bytes, key: str) -> Frames:
        """The frame in the bytes (GRIB2, gzipped or not); several where messages were joined, oldest first.

        Raises:
            FrameRejected: truncated, corrupt, oversized, unreadable, wrong_grid, wrong_quantity or no_data.
        """
        ceiling = self.source.max_bytes
        raw = gunzip(data, ceiling) if data.startswith(_GZIP) else data
        frames = []
        for message in split_messages(raw):
            frames.append(self._frame(message, ceiling))
            ceiling -= 2 * frames[-1].nbytes
        times = [frame["time"].values for frame in frames]
        if len(set(times)) < len(times):
            raise FrameRejected("corrupt", f"{key} holds {len(times)} messages, some of one time")
        stamp = time_of_key(key, self.product)
        if stamp is not None and np.datetime64(stamp.replace(tzinfo=None), "ns") not in times:
            raise FrameRejected("corrupt", f"{key} holds {times[0]}, not the time of its name")
        return sorted(frames, key=lambda frame: frame["time"].values)

    def _frame(self, message: bytes, ceiling: int) -> xr.DataArray:
        check_sections(message, ceiling)
        with open_message(message) as handle:
            header = read_header(handle)
            self._check(header)
            values = read_values(handle, header)
        physical, unseen = to_physical(values, self.product)
        return build_frame(
            physical,
            quantity=self.product.quantity,
            time=header.time,
            crs=header.crs,
            x=header.longitude,
            y=header.latitude,
            no_echo=self.product.no_echo,
            quality={"product": self.product.name, "not_observed_cells": unseen},
        )

    def _check(self, header: Header) -> None:
        if header.parameter != self.product.parameter:
            wanted = f"{self.product.name} {self.product.parameter}"
            raise FrameRejected("wrong_quantity", f"expected {wanted}; got parameter {header.parameter}")
        step = self.product.packing.scale_factor
        fine = header.resolution < step / 2
        if fine or not (_whole(header.resolution / step) and _whole(header.reference / step)):
            came = f"{header.reference} and steps of {header.resolution}"
            raise FrameRejected("corrupt", f"expected values in whole steps of {step}; got {came}")
        shape = f"{header.latitude.size}x{header.longitude.size}"
        if self.source.options.get("shape", shape) != shape:
            raise FrameRejected("wrong_grid", f"expected {self.source.options['shape']} cells; got {shape}")


def to_physical(values: Float64, product: Product) -> tuple[Float32, int]:
    """The field (y, x) with flags resolved, and how many cells are not observed (NaN).

    Row blocks keep the masks in cache: 20 ms for 3500 x 7000 cells.

    Raises:
        FrameRejected: corrupt, where a value is below the lowest flag.
    """
    physical = np.empty(values.shape, np.float32)
    unseen = 0
    for top in range(0, values.shape[0], _BLOCK):
        block, out = values[top : top + _BLOCK], physical[top : top + _BLOCK]
        out[...] = block
        hidden = _hidden(block, product)
        if product.no_echo is not None:
            np.maximum(out, np.float32(product.no_echo), out=out)
        np.copyto(out, np.nan, where=hidden)
        unseen += int(np.count_nonzero(hidden))
        if block.min() < product.no_coverage - 0.01:
            raise FrameRejected("corrupt", f"expected values from {product.no_coverage} up; got {block.min()}")
    return physical, unseen


def _hidden(block: Float64, product: Product) -> npt.NDArray[np.bool_]:
    if product.no_echo is not None:
        hidden: npt.NDArray[np.bool_] = block <= (product.no_coverage + product.missing) / 2
        return hidden
    hidden = block < 0
    return hidden


def _whole(count: float) -> bool:
    return abs(count - round(count)) < 1e-4


def open_feed(source: FeedSource) -> MrmsFeed:
    """MRMS at `source`.

    Raises:
        ValueError: an unknown product, or one of another quantity.
    """
    return MrmsFeed(source, product_of(source))
