"""SEVIR and SEVIR-LR: storm events of vertically integrated liquid, read in place from the published layout.

`CATALOG.csv` lists events; `data/vil/<year>/*.h5` hold them as uint8 (event, y, x, frame), 384 x 384 x 49 at 5 minutes.
SEVIR-LR is every second frame and the maximum of 3 x 3 cells, taken from SEVIR's own files or from files already so
reduced (128 x 128 x 25 at 10 minutes).

References:
    Veillette, Samsi and Mattioli (2020), SEVIR, NeurIPS 33, 22009-22019.
    Gao et al. (2022), Earthformer, arXiv:2207.05833 (splits, windows, scaling by 1/255).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tasks.training.datasets.files import DatasetFiles
from tasks.training.datasets.sequences import DatasetError, DatasetInfo, fingerprint

Codes = NDArray[np.uint8]

TYPE = "vil"
# Ends (inclusive) of training and validation; what comes later is the test.
SPLIT_ENDS = (np.datetime64("2019-01-01T00:00", "ns"), np.datetime64("2019-06-01T00:00", "ns"))
STRIDES = {"sevir": 12, "sevir-lr": 6}
TIME_FACTOR, SPACE_FACTOR = 2, 3  # from SEVIR to SEVIR-LR
FULL_FRAMES = 49
CADENCE_S, CELL_M = 300, 1000.0
_COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing")


@dataclass(frozen=True)
class Catalogue:
    """The usable events, ordered by id.

    Attributes:
        ids: (event,) str.
        files: (event,) path of the file, relative to the dataset.
        rows: (event,) place in the file.
        times: (event,) datetime64[ns], UTC: the middle of the event.
    """

    ids: NDArray[np.str_]
    files: NDArray[np.str_]
    rows: NDArray[np.int64]
    times: NDArray[np.datetime64]

    def split(self) -> NDArray[np.int64]:
        """(event,) 0 train, 1 val, 2 test: by time, the ends belonging to the earlier split."""
        return np.searchsorted(np.array(SPLIT_ENDS), self.times, side="left")


def read_catalogue(files: DatasetFiles, name: str = "CATALOG.csv") -> Catalogue:
    """Events of the type `vil` without missing data whose id occurs once.

    Raises:
        DatasetError: no catalogue, a column is missing, or an entry is not what its column holds.
    """
    with files.text(name) as stream:
        header = stream.readline().rstrip("\r\n").split(",")
        if absent := [column for column in _COLUMNS if column not in header]:
            raise DatasetError(f"expected columns {', '.join(_COLUMNS)} in {name}; missing {', '.join(absent)}")
        try:
            table = pd.read_csv(stream, names=header, usecols=list(_COLUMNS), dtype={"id": str}, low_memory=False)
            table = table[(table["pct_missing"] == 0) & (table["img_type"] == TYPE)]
            table = table[~table["id"].duplicated(keep=False)].sort_values("id")
            times = pd.to_datetime(table["time_utc"]).to_numpy().astype("datetime64[ns]")
            rows = table["file_index"].to_numpy().astype(np.int64)
        except (ValueError, TypeError) as error:
            raise DatasetError(f"expected a table of events in {name}; {error}") from error
    paths = np.array([f"data/{path}" for path in table["file_name"]], dtype=np.str_)
    return Catalogue(table["id"].to_numpy(dtype=np.str_), paths, rows, times)


def published_order(count: int) -> NDArray[np.int64]:
    """The order in which the published training reads `count` events: one permutation of seed 1, applied twice."""
    once = np.random.RandomState(1).permutation(count)
    return np.asarray(once[once], np.int64)


class Sevir:
    """Sequences of SEVIR or SEVIR-LR in code values 0..255; the catalogue leaves out events with missing data."""

    def __init__(
        self,
        url: str,
        storage: Mapping[str, Any] | None = None,
        *,
        dataset: Literal["sevir", "sevir-lr"] = "sevir",
    ) -> None:
        """Open the dataset at `url` (a folder, or s3://sevir).

        Raises:
            DatasetError: no catalogue, no event, or a file that is not of the published layout.
        """
        self.files = DatasetFiles(url, storage)
        self.dataset = dataset
        self.catalogue = read_catalogue(self.files)
        if not self.catalogue.ids.size:
            raise DatasetError(f"expected events of type {TYPE} without missing data in {url}/CATALOG.csv; found none")
        with self.files.dataset(str(self.catalogue.files[0]), TYPE) as stored:
            self._stored = self._check(stored, str(self.catalogue.files[0]))
        self.reduce = dataset == "sevir-lr" and self._stored[2] == FULL_FRAMES
        rows, columns, frames = self._stored
        if self.reduce:
            rows, columns, frames = rows // SPACE_FACTOR, columns // SPACE_FACTOR, -(-frames // TIME_FACTOR)
        low = dataset == "sevir-lr"
        self.info = DatasetInfo(
            dataset=dataset,
            archive_snapshot=fingerprint(dataset, self.catalogue.ids.tolist(), rows, columns, frames),
            quantity="vil_code",
            cadence_s=CADENCE_S * (TIME_FACTOR if low else 1),
            cell_size_m=CELL_M * (SPACE_FACTOR if low else 1),
            shape=(rows, columns),
        )
        self.lengths = np.full(self.catalogue.ids.size, frames, np.int64)
        which = self.catalogue.split()
        self.splits = {split: np.flatnonzero(which == number) for number, split in enumerate(("train", "val", "test"))}
        self.strides = dict.fromkeys(self.splits, STRIDES[dataset])

    def _check(self, stored: h5py.Dataset, path: str) -> tuple[int, int, int]:
        if stored.ndim != 4 or stored.dtype != np.uint8:
            raise DatasetError(
                f"expected {TYPE!r} of {path} as uint8 (event, y, x, frame); got {stored.dtype} {stored.shape}"
            )
        return stored.shape[1], stored.shape[2], stored.shape[3]

    def read(self, sequence: int) -> Codes:
        """One event, uint8 (frame, y, x), in one read of its file.

        Raises:
            DatasetError: the file is missing, damaged, of another shape, or holds another event in that place.
        """
        path, row = str(self.catalogue.files[sequence]), int(self.catalogue.rows[sequence])
        with self.files.dataset(path, TYPE) as stored:
            if self._check(stored, path) != self._stored:
                raise DatasetError(f"expected {TYPE!r} of {path} as (event, *{self._stored}); got {stored.shape}")
            if not 0 <= row < stored.shape[0]:
                raise DatasetError(f"expected event {row} in {TYPE!r} of {path}; it holds {stored.shape[0]}")
            self._check_id(stored.file, path, sequence, row)
            event: Codes = np.moveaxis(stored[row], -1, 0)
        return reduce_resolution(event) if self.reduce else event

    def _check_id(self, file: h5py.File, path: str, sequence: int, row: int) -> None:
        if "id" not in file:
            return
        found = file["id"][row]
        text = found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)
        if text != self.name(sequence):
            raise DatasetError(f"expected event {self.name(sequence)} at row {row} of 'id' in {path}; got {text!r}")

    def values(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Codes 0..255 as float32; the network sees code / 255."""
        return raw.astype(np.float32)

    def start(self, sequence: int) -> np.datetime64:
        """Valid time of the first frame: the catalogue's time is that of the middle one."""
        before = np.timedelta64(int(self.lengths[sequence] // 2) * self.info.cadence_s, "s")
        return np.datetime64(self.catalogue.times[sequence] - before, "ns")

    def name(self, sequence: int) -> str:
        """The event's id."""
        return str(self.catalogue.ids[sequence])


def reduce_resolution(event: Codes) -> Codes:
    """SEVIR-LR from SEVIR: every second frame, maximum of 3 x 3 cells; uint8 (frame, y, x); a remainder is dropped."""
    frames, rows, columns = event[::TIME_FACTOR].shape
    rows, columns = rows // SPACE_FACTOR, columns // SPACE_FACTOR
    whole = event[::TIME_FACTOR, : rows * SPACE_FACTOR, : columns * SPACE_FACTOR]
    blocks: Codes = whole.reshape(frames, rows, SPACE_FACTOR, columns, SPACE_FACTOR).max(axis=(2, 4))
    return blocks
