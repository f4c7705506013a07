"""Files of a dataset wherever they lie, read in place over fsspec, with errors that name file and key."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast

import fsspec
import h5py
import xarray as xr

from tasks.training.datasets.sequences import DatasetError

OPEN_FILES = 8
BLOCK_BYTES = 4 * 2**20  # of a remote file, fetched at once: an event of SEVIR is 7 MB
_UNREADABLE = (OSError, KeyError, RuntimeError)


class DatasetFiles:
    """Files under one address, a few of them held open; picklable, opened in the process that reads."""

    def __init__(self, url: str, storage: Mapping[str, Any] | None = None) -> None:
        """Files under `url` (a folder or an fsspec address such as s3://sevir).

        Args:
            url: Folder or bucket.
            storage: fsspec options for it, such as {"anon": True}.
        """
        self.url, self.storage = url.rstrip("/"), dict(storage or {})
        self._open: OrderedDict[str, h5py.File] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def text(self, path: str) -> IO[str]:
        """A text file, open.

        Raises:
            DatasetError: no such file.
        """
        try:
            return cast("IO[str]", fsspec.open(f"{self.url}/{path}", "rt", **self.storage).open())
        except OSError as error:
            raise DatasetError(f"expected {path} under {self.url}; {_told(error)}") from error

    @contextmanager
    def dataset(self, path: str, key: str) -> Iterator[h5py.Dataset]:
        """The array `key` of file `path`, for reading.

        Raises:
            DatasetError: the file is missing or damaged (also when the body of the `with` finds that out), or has no
                such array.
        """
        try:
            file = self._file(path)
            if not isinstance(file.get(key), h5py.Dataset):
                raise DatasetError(f"expected an array {key!r} in {path}; it has {sorted(file)}")
            yield file[key]
        except _UNREADABLE as error:
            stale = self._open.pop(path, None)
            if stale is not None:
                stale.close()
            raise DatasetError(f"expected to read {key!r} of {path} under {self.url}; {_told(error)}") from error

    @contextmanager
    def netcdf(self, path: str) -> Iterator[xr.Dataset]:
        """A netCDF file (classic or HDF5), open.

        Raises:
            DatasetError: the file is missing or damaged.
        """
        try:
            with (
                fsspec.open(f"{self.url}/{path}", "rb", **self.storage) as stream,
                xr.open_dataset(stream, decode_times=False) as dataset,
            ):
                yield dataset
        except DatasetError:
            raise
        except (*_UNREADABLE, ValueError, TypeError) as error:
            raise DatasetError(f"expected a netCDF file {path} under {self.url}; {_told(error)}") from error

    def _file(self, path: str) -> h5py.File:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        stream = fsspec.open(f"{self.url}/{path}", "rb", **self.storage, **self._buffering()).open()
        self._open[path] = h5py.File(stream, "r")
        while len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        return self._open[path]

    def _buffering(self) -> dict[str, Any]:
        return {"block_size": BLOCK_BYTES} if "://" in self.url and not self.url.startswith("file://") else {}


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
