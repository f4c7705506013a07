"""Small files in the formats of MRMS, ODIM_H5 and RADOLAN, built without the feeds' code, and simulated ones."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import h5py
import numpy as np
import numpy.typing as npt
import pyproj
from PIL import Image

from builders.feed_case import FeedCase
from tasks.feeds.simulated import write_frame

Float32 = npt.NDArray[np.float32]
NAN = np.nan

MOMENT = datetime(2024, 5, 6, 23, 58, 40, tzinfo=UTC)
RATE, COMPOSITE, LOWEST, VIL = (209, 6, 1), (209, 10, 0), (209, 3, 57), (209, 3, 41)


def section(number: int, body: bytes) -> bytes:
    """One GRIB2 section."""
    return struct.pack(">IB", 5 + len(body), number) + body


def grib2(
    codes: npt.NDArray[np.uint16],
    parameter: tuple[int, int, int],
    *,
    reference: float,
    decimals: int = 1,
    time: datetime = MOMENT,
    first: tuple[int, int] = (54_995_000, 230_005_000),
    step: int = 10_000,
    last_off: int = 0,
    declared: tuple[int, int] | None = None,
    scanning: int = 0,
    lead: int = 0,
) -> bytes:
    """A GRIB2 message with MRMS's sections: value = (reference + code) / 10**decimals, codes (y, x) as a grey PNG."""
    ny, nx = declared or codes.shape
    png = io.BytesIO()
    Image.fromarray(codes).save(png, format="PNG")
    stamp = struct.pack(">HBBBBB", time.year, time.month, time.day, time.hour, time.minute, time.second)
    last = (first[0] - step * (ny - 1) + last_off, first[1] + step * (nx - 1))
    ellipsoid = struct.pack(">BBIBIBI", 2, 1, 6_367_470, 1, 6_378_160, 1, 6_356_775)
    grid = struct.pack(">IIIIIIBIIIIB", nx, ny, 1, 1_000_000, *first, 48, *last, step, step, scanning)
    body = b"".join(
        [
            section(1, struct.pack(">HHBBB", 161, 0, 255, 1, 3) + stamp + bytes([2, 7])),
            section(3, struct.pack(">BIBBH", 0, nx * ny, 0, 0, 0) + ellipsoid + grid),
            section(
                4,
                struct.pack(">HHBBBBBHBBI", 0, 0, parameter[1], parameter[2], 8, 0, 97, 0, 0, 0, lead)
                + struct.pack(">BBIBBI", 102, 0, 0, 255, 0, 0),
            ),
            section(5, struct.pack(">IHfHHBB", nx * ny, 41, reference, 0, decimals, 16, 0)),
            section(6, b"\xff"),
            section(7, png.getvalue()),
            b"7777",
        ]
    )
    return b"GRIB\xff\xff" + bytes([parameter[0], 2]) + struct.pack(">Q", 16 + len(body)) + body


RAIN_CODES = np.array([[0, 30, 31, 130], [0, 20, 30, 1518], [0, 0, 30, 42]], np.uint16)
RAIN = np.array([[NAN, 0, 0.1, 10], [NAN, NAN, 0, 148.8], [NAN, NAN, 0, 1.2]], np.float32)
ECHO_CODES = np.array([[0, 9000, 9680, 9990], [0, 9000, 9685, 10590]], np.uint16)
ECHO = np.array([[NAN, -33, -31, 0], [NAN, -33, -30.5, 60]], np.float32)
VIL_CODES = np.array([[0, 30, 31], [20, 30, 655]], np.uint16)
LIQUID = np.array([[NAN, 0, 0.1], [NAN, 0, 62.5]], np.float32)


def _mrms_case(
    product: str,
    quantity: str,
    parameter: tuple[int, int, int],
    codes: npt.NDArray[np.uint16],
    values: Float32,
    reference: float,
    dry: float,
) -> FeedCase:
    level = "00.00" if product == "PrecipRate" else "00.50"
    other = VIL if parameter == RATE else RATE

    def key_of(time: datetime) -> str:
        folder = f"{product}_{level}"
        return f"CONUS/{folder}/{time:%Y%m%d}/MRMS_{folder}_{time:%Y%m%d-%H%M%S}.grib2.gz"

    return FeedCase(
        kind="mrms",
        quantity=quantity,
        cadence=timedelta(minutes=2),
        key_of=key_of,
        time=MOMENT,
        build=lambda: gzip.compress(grib2(codes, parameter, reference=reference)),
        times=(MOMENT,),
        expected=lambda: values[None],
        dry=dry,
        wrong_quantity=lambda: gzip.compress(grib2(codes, other, reference=reference)),
        wrong_grid=lambda: gzip.compress(grib2(codes, parameter, reference=reference, last_off=5_000)),
        bomb=lambda: gzip.compress(grib2(codes, parameter, reference=reference, declared=(3500, 7000))),
        bomb_ceiling=100_000_000,
        options={"product": product},
    )


SIMULATED = np.array([[NAN, 0, 0.1], [0, 12.3, 149.9]], np.float32)


def _simulated_key(time: datetime) -> str:
    return f"CONUS/PrecipRate_00.00/{time:%Y%m%d}/MRMS_PrecipRate_00.00_{time:%Y%m%d-%H%M%S}.grib2.gz"


# ODIM_H5

LAEA = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"
ODIM_END = datetime(2018, 8, 24, 18, 5, tzinfo=UTC)
ODIM_NOMINAL = datetime(2018, 8, 24, 18, 0, tzinfo=UTC)
ODIM_RATES = np.array([[-9999000, -8888000, 0.01], [0, 4.37, 8647.0]], np.float64)
ODIM_RAIN = np.array([[NAN, 0, 0.01], [0, 4.37, 1000]], np.float32)
ODIM_ECHO_CODES = np.array([[255, 0, 1], [254, 64, 65]], np.uint8)
ODIM_ECHO = np.array([[NAN, -33, -31.5], [80, 0, 0.5]], np.float32)


def corners(
    projdef: str, west: float, north: float, nx: int, ny: int, step: float, *, centres: bool = False
) -> dict[str, float]:
    """The `where` attributes of a grid whose north-western outer corner is at (west, north)."""
    crs = pyproj.CRS.from_user_input(projdef)
    to_degrees = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    inset = step / 2 if centres else 0.0
    x = {"L": west + inset, "R": west + nx * step - inset}
    y = {"U": north - inset, "L": north - ny * step + inset}
    found = {}
    for name in ("LL", "LR", "UL", "UR"):
        lon, lat = to_degrees.transform(x[name[1]], y[name[0]])
        found |= {f"{name}_lon": lon, f"{name}_lat": lat}
    return found


def odim(
    data: npt.NDArray[np.generic],
    quantity: str = "RATE",
    *,
    scaling: Mapping[str, float] | None = None,
    scaling_in: str = "dataset1/what",
    where: Mapping[str, object] | None = None,
    interval: tuple[datetime, datetime] | None = (ODIM_END - timedelta(minutes=15), ODIM_END),
    quality: npt.NDArray[np.float64] | None = None,
    obj: str = "COMP",
) -> bytes:
    """An ODIM_H5 composite; `scaling` holds gain, offset, nodata and undetect, written to the group `scaling_in`."""
    ny, nx = data.shape
    place = {"projdef": LAEA, "xscale": 2000.0, "yscale": 2000.0, "xsize": nx, "ysize": ny}
    place = {**place, **corners(LAEA, 0.0, 0.0, nx, ny, 2000.0), **(where or {})}
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file.create_dataset("dataset1/data1/data", data=data, compression="gzip", chunks=data.shape)
        for path in {"what", "where", "dataset1/what", scaling_in}:
            file.require_group(path)
        file["what"].attrs.update({"object": np.bytes_(obj), "date": b"20180824", "time": b"180000"})
        file["where"].attrs.update({k: np.bytes_(v) if isinstance(v, str) else v for k, v in place.items()})
        file["dataset1/what"].attrs["quantity"] = np.bytes_(quantity)
        for name, moment in zip(("start", "end"), interval or (), strict=False):
            file["dataset1/what"].attrs[f"{name}date"] = np.bytes_(f"{moment:%Y%m%d}")
            file["dataset1/what"].attrs[f"{name}time"] = np.bytes_(f"{moment:%H%M%S}")
        file[scaling_in].attrs.update(dict(scaling or {}))
        if quality is not None:
            file.create_dataset("dataset2/data1/data", data=quality, compression="gzip", chunks=quality.shape)
            file.create_group("dataset2/what").attrs.update({"quantity": b"QIND", "nodata": -1.0})
    return stream.getvalue()


OPERA = {"gain": 1.0, "offset": 0.0, "nodata": -9999000.0, "undetect": -8888000.0}
NATIONAL = {"gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0}


def _odim_key(time: datetime) -> str:
    return f"{time:%Y%m%d}/T_PAAH21_C_EUOC_{time:%Y%m%d%H%M%S}.hdf"


def _odim_case(quantity: str, data: npt.NDArray[np.generic], name: str, values: Float32, dry: float) -> FeedCase:
    scaling, place = (OPERA, "dataset1/what") if name == "RATE" else (NATIONAL, "dataset1/data1/what")
    shifted = corners(LAEA, 0.0, 0.0, 3, 3, 2000.0)
    return FeedCase(
        kind="odim",
        quantity=quantity,
        cadence=timedelta(minutes=15),
        key_of=_odim_key,
        time=ODIM_NOMINAL,
        build=lambda: odim(data, name, scaling=scaling, scaling_in=place),
        times=(ODIM_END,),
        expected=lambda: values[None],
        dry=dry,
        wrong_quantity=lambda: odim(data, "ACRR" if dry else "VRAD", scaling=scaling, scaling_in=place),
        wrong_grid=lambda: odim(data, name, scaling=scaling, scaling_in=place, where=shifted),
        bomb=lambda: odim(np.zeros((1000, 1000), data.dtype), name, scaling=scaling, scaling_in=place),
        bomb_ceiling=500_000,
        # The cells are, but gain, offset, nodata and undetect are plain bytes of HDF5's object headers.
        checksummed=False,
    )


# RADOLAN

RUN = datetime(2022, 10, 18, 7, 0, tzinfo=UTC)
LEADS = (0, 5, 10)


def radolan(
    codes: npt.NDArray[np.uint16],
    lead: int = 0,
    *,
    product: str = "RV",
    time: datetime = RUN,
    version: int = 5,
    exponent: int = -2,
    length: int | None = None,
    shape: tuple[int, int] | None = None,
) -> bytes:
    """A RADOLAN file: codes (y, x), rows from south to north, behind its header."""
    ny, nx = shape or codes.shape
    head = f"{product}{time:%d%H%M}10000{time:%m%y}BY{{length:>10}}VS{version:>2}SW P300001HPR E{exponent:+03d}"
    head += f"INT   5GP{ny:>4}x{nx:>4}VV {lead:03d}MF 00000008MS 12<deasb,deboo>"
    size = len(head.format(length=0)) + 1 + 2 * codes.size if length is None else length
    return head.format(length=size).encode() + b"\x03" + codes.astype("<u2").tobytes()


def radolan_codes(lead: int) -> npt.NDArray[np.uint16]:
    """DE1200 with a dry south, a missing northern row, and rain that depends on the lead."""
    codes = np.zeros((1200, 1100), np.uint16)
    codes[-1] = 0x2000 | 2500
    codes[0, :4] = [1 + lead, 4095, 0x1000 | 7, 0x8000 | 9]
    return codes


def radolan_rain(lead: int) -> Float32:
    """What `radolan_codes` means, rows from north to south [mm h-1]."""
    rain = np.zeros((1200, 1100), np.float32)
    rain[0] = NAN
    rain[-1, :4] = [0.12 * (1 + lead), 491.4, 0.84, NAN]
    return rain


def tar_bz2(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A bzip2 tar of (name, bytes)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return bz2.compress(stream.getvalue(), 1)


def run_tar(**changes: object) -> bytes:
    """A run of the leads `LEADS`, every member built with `changes`."""
    name = f"DE1200_RV{RUN:%y%m%d%H%M}"
    return tar_bz2([(f"{name}_{lead:03d}", radolan(radolan_codes(lead), lead, **changes)) for lead in LEADS])  # type: ignore[arg-type]


CASES: dict[str, FeedCase] = {
    "mrms": _mrms_case("PrecipRate", "rainfall_rate", RATE, RAIN_CODES, RAIN, -30.0, 0.0),
    "mrms composite": _mrms_case(
        "MergedReflectivityQCComposite", "equivalent_reflectivity_factor", COMPOSITE, ECHO_CODES, ECHO, -9990.0, -33.0
    ),
    "mrms lowest altitude": _mrms_case(
        "ReflectivityAtLowestAltitude", "equivalent_reflectivity_factor", LOWEST, ECHO_CODES, ECHO, -9990.0, -33.0
    ),
    "mrms vil": _mrms_case("VIL", "vil", VIL, VIL_CODES, LIQUID, -30.0, 0.0),
    "simulated": FeedCase(
        kind="simulated",
        quantity="rainfall_rate",
        cadence=timedelta(minutes=2),
        key_of=_simulated_key,
        time=MOMENT,
        build=lambda: write_frame(MOMENT, SIMULATED)[1],
        times=(MOMENT,),
        expected=lambda: SIMULATED[None],
        wrong_quantity=lambda: gzip.compress(grib2(VIL_CODES, VIL, reference=-30.0)),
        wrong_grid=lambda: gzip.compress(grib2(RAIN_CODES, RATE, reference=-30.0, scanning=64)),
        bomb=lambda: gzip.compress(bytes(2_000_000)),
        bomb_ceiling=1_000_000,
    ),
    "odim": _odim_case("rainfall_rate", ODIM_RATES, "RATE", ODIM_RAIN, 0.0),
    "odim reflectivity": _odim_case("equivalent_reflectivity_factor", ODIM_ECHO_CODES, "DBZH", ODIM_ECHO, -33.0),
    "radolan": FeedCase(
        kind="radolan",
        quantity="rainfall_rate",
        cadence=timedelta(minutes=5),
        key_of=lambda time: f"DE1200_RV{time:%y%m%d%H%M}.tar.bz2",
        time=RUN,
        build=run_tar,
        times=tuple(RUN + timedelta(minutes=lead) for lead in LEADS),
        expected=lambda: np.stack([radolan_rain(lead) for lead in LEADS]),
        leads=tuple(timedelta(minutes=lead) for lead in LEADS),
        wrong_quantity=lambda: run_tar(product="RX"),
        wrong_grid=lambda: tar_bz2([("DE1200_RV2210180700_000", radolan(np.zeros((900, 900), np.uint16)))]),
        bomb=lambda: bz2.compress(bytes(60_000_000)),
        bomb_ceiling=40_000_000,
    ),
}
