"""Published datasets, read in place as samples: what each is called, how it is opened, and which windows it has.

| name | address | sequences | windows (train, val, test) | scaling |
|---|---|---|---|---|
| sevir | folder or s3://sevir: CATALOG.csv, data/vil | 49 frames, 5 min, 384 x 384 | 25 frames, 12 apart | / 255 |
| sevir-lr | the same, or files already reduced | 25 frames, 10 min, 128 x 128 | 13 frames, 6 apart | / 255 |
| icar-enso | folder with CMIP_train.nc, CMIP_label.nc | models' months, 24 x 48 | 1 month apart | min-max of CMIP |
| icar-enso-paper | the same | the same | 10, 5 and 1 months apart | the same |
| icar-enso-soda | the same with SODA_train.nc, SODA_label.nc | tested on the reanalysis | 1 month apart | the same |
| nbody | file of MNIST digits (IDX or .npy) | generated, 20 frames, 64 x 64 | 20 frames | / 255 |

A domain trains on one where its file says `[training] dataset = "sevir"` and `dataset_url = "{data}/sevir"`; a network
sees the scaled values because the quantity's transform says so. SEVIR splits by time (up to 2019-01-01, 2019-06-01,
later), ICAR-ENSO by model (CMIP5's last two are held out). Nothing is put on an archive's time grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tasks.training.datasets.sequences import DatasetError, DatasetInfo, Sequences

__all__ = ["DATASETS", "DatasetError", "DatasetInfo", "Sequences", "open_dataset"]

Storage = Mapping[str, Any] | None


def _sevir(url: str, storage: Storage) -> Sequences:
    from tasks.training.datasets.sevir import Sevir

    return Sevir(url, storage)


def _sevir_lr(url: str, storage: Storage) -> Sequences:
    from tasks.training.datasets.sevir import Sevir

    return Sevir(url, storage, dataset="sevir-lr")


def _enso(url: str, storage: Storage) -> Sequences:
    from tasks.training.datasets.enso import Enso

    return Enso(url, storage)


def _enso_paper(url: str, storage: Storage) -> Sequences:
    from tasks.training.datasets.enso import Enso

    return Enso(url, storage, protocol="paper")


def _enso_soda(url: str, storage: Storage) -> Sequences:
    from tasks.training.datasets.enso import Enso

    return Enso(url, storage, test="soda")


def _nbody(url: str, storage: Storage) -> Sequences:
    from tasks.training.datasets.nbody import NBody

    return NBody(url, storage)


DATASETS: dict[str, Callable[[str, Storage], Sequences]] = {
    "sevir": _sevir,
    "sevir-lr": _sevir_lr,
    "icar-enso": _enso,
    "icar-enso-paper": _enso_paper,
    "icar-enso-soda": _enso_soda,
    "nbody": _nbody,
}


def open_dataset(name: str, url: str, storage: Storage = None) -> Sequences:
    """The dataset `name` at `url`.

    Args:
        name: One of `DATASETS`.
        url: Folder, bucket or file (any fsspec address).
        storage: fsspec options for it.

    Raises:
        ValueError: no such dataset.
        DatasetError: its files are missing, damaged, or laid out in another way.
    """
    if name not in DATASETS:
        raise ValueError(f"expected a dataset of {', '.join(DATASETS)}; got {name!r}")
    return DATASETS[name](url, storage)
