"""A product's arrays as the objects of a Zarr v3 group, and back."""

from __future__ import annotations

import math
import threading
import warnings
from typing import Any

import dask
import numpy as np
import xarray as xr
from zarr.codecs import BloscCodec, ZstdCodec
from zarr.storage import MemoryStore

from infra.objects import ObjectStore

GROUP = "forecast.zarr"

_WARNING_FILTERS = threading.Lock()  # Python 3.11 keeps one list of warning filters for all threads
_TILE = 2048  # longest side of a chunk
_EPOCH = "seconds since 1970-01-01T00:00:00"
# An object that gets lost must read as "not forecast", so no array's fill is 0.
_PROBABILITY = {"dtype": "uint8", "scale_factor": 0.005, "_FillValue": 255, "fill_value": 255}
_FLOAT = {"_FillValue": np.float32(np.nan), "fill_value": np.float32(np.nan)}


def encode_product(product: xr.Dataset) -> dict[str, bytes]:
    """Key below the product's folder -> bytes of every object of `forecast.zarr`; equal products give equal bytes."""
    store = MemoryStore()
    with _WARNING_FILTERS, dask.config.set(scheduler="threads"), warnings.catch_warnings():
        # Readers rely on consolidated metadata; the Zarr v3 specification has yet to name it.
        warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
        product.to_zarr(store, mode="w", zarr_format=3, consolidated=True, encoding=_encoding(product))
    return {f"{GROUP}/{key}": value.to_bytes() for key, value in store._store_dict.items()}


def open_product(store: ObjectStore, path: str) -> xr.Dataset:
    """The arrays of the product in folder `path`, read when used; NaN = not forecast.

    Raises:
        FileNotFoundError: no product there.
    """
    opened: xr.Dataset = xr.open_zarr(
        store.zarr_store(f"{path}/{GROUP}", read_only=True), consolidated=True, chunks=None, decode_timedelta=True
    )
    return opened


def _encoding(product: xr.Dataset) -> dict[str, dict[str, Any]]:
    return {str(name): _encoded(str(name), variable) for name, variable in product.variables.items()}


def _encoded(name: str, variable: xr.Variable) -> dict[str, Any]:
    if np.issubdtype(variable.dtype, np.datetime64):
        return {"dtype": "int64", "units": _EPOCH, "calendar": "proleptic_gregorian"}
    if np.issubdtype(variable.dtype, np.timedelta64):
        return {"dtype": "int64", "units": "seconds"}
    if variable.ndim < 2:
        return {"compressors": None, "_FillValue": None}  # coordinates are never missing
    tile = tuple(_tile(size) for size in variable.shape[-2:])
    chunks = (1,) * (variable.ndim - 2) + tile
    if name == "probability_above_threshold":
        # One object a lead, each threshold in it readable alone.
        whole = tuple(math.ceil(size / side) * side for size, side in zip(variable.shape[-2:], tile, strict=True))
        return {
            **_PROBABILITY,
            "chunks": chunks,
            "shards": (variable.shape[0], 1, *whole),
            "compressors": ZstdCodec(level=1),
        }
    if name in ("lat", "lon"):
        smooth = BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle")
        return {**_FLOAT, "chunks": chunks, "compressors": smooth}
    fill = _FLOAT if variable.dtype == np.float32 else {"fill_value": 0}
    return {**fill, "chunks": chunks, "compressors": ZstdCodec(level=1)}


def _tile(size: int) -> int:
    return math.ceil(size / math.ceil(size / _TILE))
