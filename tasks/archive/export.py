"""A period of an archive as plain, immutable CF Zarr for others: one chunk per frame, missing times listed apart.

With a `Credit` it keeps the MLCast community's specification for radar source data
(https://github.com/mlcast-community/mlcast-dataset-validator); grids in degrees lack the projected axes it asks for.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec

from infra.objects import ObjectStore, is_local, local_path
from tasks.archive.archive import Archive
from tasks.archive.packing import ZSTD_LEVEL
from tasks.archive.slots import UNKNOWN, as_datetime, as_times
from tasks.grid import crs_of, latlon

_BATCH_BYTES = 192 << 20
Stores = Callable[[str], Store]

_SECONDS = {"units": "seconds since 1970-01-01T00:00:00Z", "calendar": "proleptic_gregorian"}
# Names and units by which the specification knows a quantity; 1 kg m-2 of water is 1 mm.
_KNOWN_AS: Mapping[str, Mapping[str, str]] = {
    "rainfall_rate": {"standard_name": "rainfall_flux", "units": "kg m-2 h-1", "comment": "1 kg m-2 h-1 is 1 mm h-1"}
}


class ExportExists(RuntimeError):
    """Something else is at the target; an export is never changed."""


@dataclass(frozen=True)
class Credit:
    """Who made a data set of the export, with what, and under which name.

    Attributes:
        created_by: `Name <email>`.
        created_with: Repository of the producing code with its version, `https://github.com/…@v1.0`.
        version: Version of the data set (semantic or calendar).
        country: Two capital letters (ISO 3166-1).
        entity: Short name of the institution; letters, digits and underscores.
        validator: Version of mlcast-dataset-validator that the data set keeps to.
    """

    created_by: str
    created_with: str
    version: str
    country: str
    entity: str
    validator: str = "0.4.0"


@dataclass(frozen=True)
class Export:
    """A finished export.

    Attributes:
        url: Where it is.
        snapshot: The archive's snapshot it was read from.
        frames: Frames written.
        missing: Slots between the first and the last frame that have none.
    """

    url: str
    snapshot: str
    frames: int
    missing: int


def export_archive(
    archive: Archive,
    out: Path | str,
    start: datetime,
    end: datetime,
    *,
    created: datetime | None = None,
    storage: Mapping[str, object] | None = None,
    as_of: str | None = None,
    credit: Credit | None = None,
) -> Export:
    """Write the frames of [start, end] (both included) to `out`; the group's metadata comes last and makes it visible.

    Args:
        archive: Where from.
        out: Path or s3:// URL of the Zarr group to be.
        start: First slot.
        end: Last slot.
        created: Time stamped on the export (aware, UTC); None = now.
        storage: fsspec-style options of `out`.
        as_of: Snapshot id or tag; None = the newest, which the export then names.
        credit: Attributes of an MLCast data set.

    Raises:
        ExportExists: `out` holds another snapshot or period.
        ValueError: no frame in the period.
    """
    snapshot = archive.snapshot() if as_of is None else as_of
    url = str(local_path(str(out))) if is_local(str(out)) else str(out).rstrip("/")
    parent, _, name = url.rpartition("/")
    target = ObjectStore(parent or "/", storage)
    present, times = archive.present(start, end, snapshot)
    if not present.any():
        raise ValueError(f"expected frames in {start}..{end} at snapshot {snapshot}; there are none")
    reach = np.flatnonzero(present)[[0, -1]]
    present, times = present[reach[0] : reach[1] + 1], times[reach[0] : reach[1] + 1]
    export = Export(url, snapshot, int(present.sum()), int((~present).sum()))
    stamp = {"archive_snapshot": snapshot, "export_period": [f"{times[0]}", f"{times[-1]}"]}
    if target.exists(f"{name}/zarr.json"):
        _check_same(json.loads(target.read(f"{name}/zarr.json"))["attributes"], stamp, url)
        return export
    target.delete(name)  # a former export that died has no group metadata

    def stores(array: str) -> Store:
        # One per array: created inside a group, an array would write the group's metadata before it is complete.
        return target.zarr_store(f"{name}/{array}", read_only=False)

    first = archive.read(as_datetime(times[0]), as_datetime(times[0]), as_of=snapshot)
    _write_coordinates(stores, first, times, present)
    _write_frames(stores, archive, times[present], first, snapshot)
    group = target.zarr_store(name, read_only=False)
    zarr.create_group(group, attributes={**_global_attrs(first, created or datetime.now(UTC), credit), **stamp})
    with warnings.catch_warnings():
        # xarray opens without consolidated metadata too, but warns; the Zarr v3 specification has yet to name it.
        warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
        zarr.consolidate_metadata(group)
    return export


def _check_same(found: Mapping[str, Any], stamp: Mapping[str, object], url: str) -> None:
    held = {key: found.get(key) for key in stamp}
    if held != stamp:
        raise ExportExists(f"expected nothing at {url}, or {stamp}; found {held}")


def _array(stores: Stores, name: str, data: NDArray[Any], dims: tuple[str, ...], attrs: Mapping[str, Any]) -> None:
    array = zarr.create_array(
        stores(name),
        shape=data.shape,
        chunks=tuple(max(size, 1) for size in data.shape) if data.shape else "auto",
        dtype=data.dtype,
        fill_value=UNKNOWN if data.dtype.kind == "i" else float("nan"),
        compressors=ZstdCodec(level=ZSTD_LEVEL) if data.shape else None,
        dimension_names=dims or None,
        attributes=json.loads(json.dumps(dict(attrs))),
    )
    array[...] = data


def _write_coordinates(
    stores: Stores, first: xr.Dataset, times: NDArray[np.datetime64], present: NDArray[np.bool_]
) -> None:
    stamps = times.astype("datetime64[s]").astype(np.int64)
    slot = {"standard_name": "time", "long_name": "time, end of interval", "axis": "T", **_SECONDS}
    _array(stores, "time", stamps[present], ("time",), slot)
    if not present.all():
        attrs = {"long_name": "times for which there is no frame", **_SECONDS}
        _array(stores, "missing_times", stamps[~present], ("missing_times",), attrs)
    for axis in ("y", "x"):
        _array(stores, axis, first[axis].values, (axis,), first[axis].attrs)
    mapping = dict(first.spatial_ref.attrs)
    _array(stores, "spatial_ref", np.array(0), (), {**mapping, "spatial_ref": mapping["crs_wkt"]})
    if not crs_of(first).is_geographic:
        for name, values in zip(("lat", "lon"), latlon(first), strict=True):
            attrs = {key: value for key, value in values.attrs.items() if key != "axis"}
            _array(stores, name, np.asarray(values.values, np.float64), ("y", "x"), attrs)


def _quantity(first: xr.Dataset) -> str:
    return next(str(name) for name in first.data_vars if first[name].dims == ("time", "y", "x"))


def _write_frames(
    stores: Stores, archive: Archive, times: NDArray[np.datetime64], first: xr.Dataset, snapshot: str
) -> None:
    name = _quantity(first)
    shape = (times.size, first.sizes["y"], first.sizes["x"])
    place = "spatial_ref" if crs_of(first).is_geographic else "spatial_ref lat lon"
    field = zarr.create_array(
        stores(name),
        shape=shape,
        chunks=(1, *shape[1:]),
        dtype="float32",
        fill_value=float("nan"),
        compressors=ZstdCodec(level=ZSTD_LEVEL),
        dimension_names=("time", "y", "x"),
        attributes={**_known_attrs(first[name]), "grid_mapping": "spatial_ref", "coordinates": f"valid_time {place}"},
    )
    valid = np.empty(times.size, np.int64)
    for at, data in _batches(archive, times, shape, snapshot):
        size = data.sizes["time"]
        field[at : at + size] = data[name].values
        valid[at : at + size] = data.valid_time.values.astype("datetime64[s]").astype(np.int64)
    _array(stores, "valid_time", valid, ("time",), {"long_name": "time stated inside the source file", **_SECONDS})


def _known_attrs(field: xr.DataArray) -> dict[str, Any]:
    attrs = {key: field.attrs[key] for key in ("units", "standard_name", "long_name", "no_echo") if key in field.attrs}
    return {**attrs, **_KNOWN_AS.get(str(field.name), {})}


def _batches(
    archive: Archive, times: NDArray[np.datetime64], shape: tuple[int, int, int], snapshot: str
) -> Iterator[tuple[int, xr.Dataset]]:
    """Frames of `times` in order, some hundred megabytes at a time, with the place of the first."""
    size = max(1, _BATCH_BYTES // (4 * shape[1] * shape[2]))
    step = np.timedelta64(archive.spec.cadence, "ns")
    at = 0
    while at < times.size:
        stop = min(int(np.searchsorted(times, times[at] + size * step)), at + size)
        data = archive.read(as_datetime(times[at]), as_datetime(times[stop - 1]), as_of=snapshot)
        yield at, data.sel(time=as_times(times[at:stop].astype("datetime64[s]").astype(np.int64)))
        at = stop


def _global_attrs(first: xr.Dataset, created: datetime, credit: Credit | None) -> dict[str, Any]:
    attrs = {key: first.attrs[key] for key in ("Conventions", "license", "domain", "feed")}
    attrs["title"] = f"Squall export of {attrs['domain']}: {_quantity(first)}"
    # Slots are regular from the first frame on; those without a frame are in missing_times.
    attrs["consistent_timestep_start"] = str(first.time.values[0].astype("datetime64[s]"))
    if credit is None:
        return {**attrs, "created_on": created.isoformat()}
    return {
        **attrs,
        "mlcast_created_on": created.isoformat(),
        "mlcast_created_by": credit.created_by,
        "mlcast_created_with": credit.created_with,
        "mlcast_dataset_version": credit.version,
        "mlcast_dataset_validator_version": credit.validator,
        "mlcast_dataset_identifier": f"{credit.country}-{credit.entity}-{_quantity(first)}",
    }
