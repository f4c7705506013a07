"""Published datasets in miniature: the real layout, a few events, values that tell where they came from."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tasks.training.datasets.nbody import NBody

HEADER = "id,file_name,file_index,img_type,time_utc,minute_offsets,event_type,pct_missing"
STORMS, RANDOM = "vil/2018/STORMS_2018.h5", "vil/2019/RANDOM_2019.h5"
# id, file, row, time, missing: two train, one val, two test events; the others fall to a filter.
EVENTS = [
    ("S2", STORMS, 0, "2018-05-01 00:00:00", 0.0),
    ("S1", STORMS, 1, "2019-01-01 00:00:00", 0.0),
    ("R1", RANDOM, 0, "2019-01-01 00:05:00", 0.0),
    ("R2", RANDOM, 1, "2019-06-01 00:05:00", 0.0),
    ("R3", RANDOM, 2, "2019-07-01 12:00:00", 0.0),
    ("S3", STORMS, 2, "2018-06-01 00:00:00", 2.5),
    ("S4", STORMS, 3, "2018-06-02 00:00:00", 0.0),
    ("S4", STORMS, 4, "2018-06-02 00:00:00", 0.0),
]


def codes(event: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(y, x, frame) of an event: all different where it matters."""
    y, x, t = np.mgrid[: shape[0], : shape[1], : shape[2]]
    return ((37 * event + 5 * t + 4 * y + x) % 256).astype(np.uint8)


def write_sevir(folder: Path, shape: tuple[int, int, int] = (16, 16, 49)) -> Path:
    """CATALOG.csv and the HDF5 files; event number e of `EVENTS` holds `codes(e, shape)`."""
    lines = [HEADER]
    for number, (name, file, row, time, missing) in enumerate(EVENTS):
        lines.append(f"{name},{file},{row},vil,{time},-5:0:5,,{missing}")
        lines.append(f"{name},ir069/x.h5,{row},ir069,{time},-5:0:5,,{missing}")
        path = folder / "data" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "a") as store:
            ids = [entry[0] for entry in EVENTS if entry[1] == file]
            store.require_dataset("id", (len(ids),), "S4", data=np.array(ids, "S4"), exact=True)
            store.require_dataset("vil", (len(ids), *shape), np.uint8)[row] = codes(number, shape)
    (folder / "CATALOG.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_enso(folder: Path, models: tuple[int, int] = (2, 4), years: tuple[int, int] = (3, 2)) -> Path:
    """Files of the challenge: row y of model m holds months 1000 m + 12 y + 0..35 in hundredths, at every cell."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = [years[0]] * models[0] + [years[1]] * models[1]
    rows = [1000.0 * m + 12 * y + np.arange(36) for m, count in enumerate(counts) for y in range(count)]
    _write_pair(folder, "CMIP", np.stack(rows) / 100)
    _write_pair(folder, "SODA", np.stack([90000.0 + 12 * y + np.arange(36) for y in range(4)]) / 100)
    return folder


def _write_pair(folder: Path, source: str, months: NDArray[np.float64]) -> None:
    lon, lat = np.arange(0.0, 360.0, 5.0), np.arange(-55.0, 65.0, 5.0)
    field = months[:, :, None, None] + 0.001 * np.arange(lat.size)[:, None] + np.zeros(lon.size)
    sst = xr.DataArray(field.astype(np.float32), {"lat": lat, "lon": lon}, ("year", "month", "lat", "lon"), "sst")
    sst.to_dataset().to_netcdf(folder / f"{source}_train.nc", engine="h5netcdf")
    nino = xr.DataArray(months.astype(np.float32), dims=("year", "month"), name="nino")
    nino.to_dataset().to_netcdf(folder / f"{source}_label.nc", engine="h5netcdf")


def write_digits(folder: Path, count: int = 12) -> Path:
    """Images in MNIST's IDX form: bright rectangles of different sizes."""
    images = np.zeros((count, 28, 28), np.uint8)
    for number in range(count):
        images[number, 6 : 12 + number % 8, 8 : 14 + number % 5] = 120 + 10 * number
    path = folder / "train-images-idx3-ubyte"
    head = bytes([0, 0, 8, 3]) + np.array(images.shape, ">u4").tobytes()
    path.write_bytes(head + images.tobytes())
    return path


def tiny_nbody(folder: Path, seed: int = 0) -> NBody:
    """Eight sequences of the published length from a dozen digits."""
    return NBody(str(write_digits(folder)), seed=seed, counts={"train": 4, "val": 2, "test": 2})
