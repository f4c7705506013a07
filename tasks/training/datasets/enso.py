"""ICAR-ENSO-2021: monthly sea surface temperature anomalies of climate models, and of the SODA reanalysis beside them.

`CMIP_train.nc` holds `sst` (year, month, lat, lon), `CMIP_label.nc` holds `nino` (year, month); row y is the 36 months
from year y on, so that rows overlap. The first 2265 rows are CMIP6 (15 models of 151 years), the rest CMIP5 (17 models
of 140 years). `SODA_train.nc` and `SODA_label.nc`, where present, are 100 years of reanalysis in the same form.

References:
    Ham, Kim and Luo (2019), doi:10.1038/s41586-019-1559-7 (the data).
    Gao et al. (2022), Earthformer, arXiv:2207.05833 (splits, windows, scaling).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasks.training.datasets.files import DatasetFiles
from tasks.training.datasets.sequences import DatasetError, DatasetInfo, fingerprint

Float32 = NDArray[np.float32]

YEAR, ROW = 12, 36  # months
CMIP6_MODELS, CMIP6_YEARS, CMIP5_MODELS, CMIP5_YEARS = 15, 151, 17, 140
LONGITUDES = (95.0, 330.0)
FIRST_YEAR = 1850  # of every model's own calendar, which the files do not tell
MONTH_S = 2_629_746  # a mean Gregorian month
CELL_M = 500_000.0
# Months between the starts of two windows (train, val, test): of the released configuration and of the paper's tables.
GAPS = {"released": (1, 1, 1), "paper": (10, 5, 1)}


@dataclass(frozen=True)
class Series:
    """One model's unbroken months.

    Attributes:
        name: `CMIP6-0` ... `CMIP5-16`, `SODA-0`.
        sst: (month, lat, lon) float32, anomaly [K].
        nino: (month,) float32, Nino3.4 index [K].
    """

    name: str
    sst: Float32
    nino: Float32


def fold_rows(rows: NDArray[Any]) -> NDArray[Any]:
    """Overlapping rows (year, 36, ...) as one series (12 year + 24, ...): each row's first year, the last row whole.

    Raises:
        ValueError: rows of another length.
    """
    if rows.shape[1] != ROW:
        raise ValueError(f"expected rows of {ROW} months; got {rows.shape[1]}")
    years = rows[:-1, :YEAR].reshape(-1, *rows.shape[2:])
    return np.concatenate([years, rows[-1]])


def window_months(
    length: int, t_in: int, t_out: int, *, gap: int = 1, stride_in: int = 1, stride_out: int = 1
) -> NDArray[np.int64]:
    """Months of every window (window, t_in + t_out) of a series of `length` months.

    Args:
        length: Months of the series.
        t_in: Months of context, `stride_in` apart.
        t_out: Months of forecast, `stride_out` apart, the first one stride after the context.
        gap: Months between the starts of two windows.
        stride_in: As said.
        stride_out: As said.
    """
    context = np.arange(t_in) * stride_in
    ahead = context[-1] + (np.arange(t_out) + 1) * stride_out
    months = np.concatenate([context, ahead])
    starts = np.arange(0, max(length - int(months[-1]), 0), gap)
    return np.asarray(starts[:, None] + months, np.int64)


def target_index(nino: Float32, months: NDArray[np.int64], t_in: int) -> Float32:
    """Index to be forecast (window, t_out - 2) [K]: a three-month mean from predicted fields ends two months early."""
    return np.asarray(nino[months[:, t_in:-2]], np.float32)


class Enso:
    """The climate models' series, in memory (0.3 GB); windows are views of them."""

    def __init__(
        self,
        url: str,
        storage: Mapping[str, Any] | None = None,
        *,
        protocol: Literal["released", "paper"] = "released",
        test: Literal["cmip5", "soda"] = "cmip5",
        models: tuple[int, int] = (CMIP6_MODELS, CMIP5_MODELS),
        years: tuple[int, int] = (CMIP6_YEARS, CMIP5_YEARS),
    ) -> None:
        """Read and fold the dataset in the folder `url`.

        Args:
            url: Folder with CMIP_train.nc and CMIP_label.nc (and SODA_train.nc, SODA_label.nc for `test="soda"`).
            storage: fsspec options for it.
            protocol: How far apart windows start.
            test: The last CMIP5 model, as in the paper, or the reanalysis.
            models: Models of CMIP6 and CMIP5 in the file.
            years: Rows of each of their models.

        Raises:
            DatasetError: a file is missing, damaged, of another shape, or holds NaN.
        """
        files = DatasetFiles(url, storage)
        rows = (models[0] * years[0], models[1] * years[1])
        sst, nino = _read_pair(files, "CMIP", sum(rows))
        counts = [*[("CMIP6", years[0])] * models[0], *[("CMIP5", years[1])] * models[1]]
        self.series = _split_series(counts, sst, nino)
        last = held_out = len(self.series) - 1
        if test == "soda":
            observed = _read_pair(files, "SODA", None)
            self.series += _split_series([("SODA", len(observed[0]))], *observed)
            held_out = len(self.series) - 1
        self.splits = {
            "train": np.arange(last - 1),
            "val": np.array([last - 1]),
            "test": np.array([held_out]),
        }
        self.strides = dict(zip(self.splits, GAPS[protocol], strict=True))
        self.lengths = np.array([len(one.sst) for one in self.series], np.int64)
        shape = self.series[0].sst.shape[1:]
        digest = fingerprint("icar-enso", protocol, test, [(one.name, one.sst.shape) for one in self.series])
        self.info = DatasetInfo(
            "icar-enso", digest, "sea_surface_temperature", MONTH_S, CELL_M, (int(shape[0]), int(shape[1]))
        )

    def read(self, sequence: int) -> Float32:
        """All months of one model, (month, lat, lon) [K]."""
        return self.series[sequence].sst

    def values(self, raw: NDArray[Any]) -> Float32:
        """As they are."""
        return np.asarray(raw, np.float32)

    def start(self, sequence: int) -> np.datetime64:
        """The first month, in a calendar of the dataset's own: the files name no years."""
        return np.datetime64(f"{FIRST_YEAR}-01-01", "ns")

    def name(self, sequence: int) -> str:
        """Which model."""
        return self.series[sequence].name


def _split_series(counts: list[tuple[str, int]], sst: Float32, nino: Float32) -> list[Series]:
    series, at, numbers = [], 0, dict.fromkeys((name for name, _ in counts), 0)
    for name, years in counts:
        block = slice(at, at + years)
        series.append(Series(f"{name}-{numbers[name]}", fold_rows(sst[block]), fold_rows(nino[block])))
        numbers[name] += 1
        at += years
    return series


def _read_pair(files: DatasetFiles, source: str, rows: int | None) -> tuple[Float32, Float32]:
    """Fields (row, 36, lat, lon) cut to the longitudes, and indices (row, 36), checked against each other."""
    fields, labels = f"{source}_train.nc", f"{source}_label.nc"
    sst = _read(files, fields, "sst", ("year", "month", "lat", "lon"))
    nino = _read(files, labels, "nino", ("year", "month"))
    expected = (rows or len(sst), ROW)
    for name, key, values in ((fields, "sst", sst), (labels, "nino", nino)):
        if values.shape[:2] != expected:
            raise DatasetError(f"expected {key!r} of {name} with (year, month) of {expected}; got {values.shape}")
        if missing := int(np.isnan(values).sum()):
            raise DatasetError(f"expected no NaN in {key!r} of {name}; got {missing}")
    return sst, nino


def _read(files: DatasetFiles, path: str, key: str, dimensions: tuple[str, ...]) -> Float32:
    with files.netcdf(path) as dataset:
        if key not in dataset or set(dataset[key].dims) != set(dimensions):
            found = {name: dataset[name].dims for name in map(str, dataset.data_vars)}
            raise DatasetError(f"expected {key!r} with dimensions {dimensions} in {path}; it has {found}")
        array = dataset[key].transpose(*dimensions)
        if "lon" in dimensions:
            array = array.sel(lon=slice(*LONGITUDES))
        if not array.size:
            raise DatasetError(f"expected 'lon' of {path} to reach {LONGITUDES[0]:g}..{LONGITUDES[1]:g}; none does")
        return np.asarray(array.values, np.float32)
