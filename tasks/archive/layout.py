"""How an epoch lies in Zarr: its arrays with their CF attributes, their chunks, and how an axis is lengthened.

Metadata chunks hold a day, frames one each, and axes grow by whole blocks: a cycle touches few small objects, and
growing rewrites nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.codecs import BytesCodec, ZstdCodec

from tasks.archive.chunks import get_chunks
from tasks.archive.epochs import BLOCK, DAY, ArchiveSpec, Epoch, Status
from tasks.archive.packing import ZSTD_LEVEL
from tasks.archive.slots import UNKNOWN

SCHEMA = 1
KEY_BYTES, ETAG_BYTES, HASH_BYTES = 192, 96, 32
# Stable words; their places are the flag values in `reject_reason`.
REASONS = (
    "none",
    "truncated",
    "corrupt",
    "wrong_grid",
    "wrong_quantity",
    "future",
    "oversized",
    "unreadable",
    "no_data",
    "off_grid",
    "duplicate",
    "out_of_range",
    "other",
)


def reason_flag(reason: str) -> int:
    """Flag value of a reject reason; `other` for a word this schema does not know."""
    return 1 + (REASONS.index(reason) if reason in REASONS else REASONS.index("other"))


def _described(spec: ArchiveSpec) -> dict[str, Any]:
    raw = {name: getattr(spec, name) for name in ("domain", "feed", "quantity", "licence", "no_echo", "calendar")}
    spans = {f"{name}_s": getattr(spec, name).total_seconds() for name in ("cadence", "tolerance", "late_after")}
    attrs = {name: _json(getattr(spec, name)) for name in ("grid_mapping", "y_attrs", "x_attrs", "attrs")}
    return {**raw, **spans, **attrs, "start": spec.start.isoformat(), "packing": asdict(spec.packing)}


def _json(attrs: Mapping[str, object]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(attrs), default=lambda value: value.item()))
    return plain


def lay_out(store: Store, spec: ArchiveSpec, length: int) -> Epoch:
    """Create the next epoch's group, arrays and coordinates in a writable session's store."""
    listed = _listed(store)
    root = zarr.open_group(store, mode="a", zarr_format=3)
    name = f"epoch-{len(listed)}"
    if not listed:
        root.update_attributes(_root_attrs(spec))
    root.update_attributes({"squall_epochs": {**listed, name: {**_described(spec), "length": length}}})
    group = root.create_group(name, attributes=_root_attrs(spec))
    _create_slot_arrays(group, length)
    _create_field(group, spec, length)
    _create_coordinates(group, spec)
    epoch = Epoch(name, spec, length)
    write_times(store, epoch, 0)
    return epoch


def lengthen(store: Store, epoch: Epoch, length: int) -> Epoch:
    """Resize every slot array of an epoch to `length` (whole blocks) and write the new times."""
    group = zarr.open_group(store, path=epoch.name, mode="r+", zarr_format=3)
    for name in (*SLOT_ARRAYS, "time", epoch.spec.quantity):
        array = group[name]
        assert isinstance(array, zarr.Array)
        array.resize((length, *array.shape[1:]))
    root = zarr.open_group(store, mode="r+", zarr_format=3)
    listed = _listed(store)
    root.update_attributes({"squall_epochs": {**listed, epoch.name: {**listed[epoch.name], "length": length}}})
    longer = replace(epoch, length=length)
    write_times(store, longer, epoch.length)
    return longer


def _listed(store: Store) -> dict[str, Any]:
    (root,) = get_chunks(store, ["zarr.json"])
    return {} if root is None else dict(json.loads(root)["attributes"].get("squall_epochs", {}))


def write_times(store: Store, epoch: Epoch, first: int) -> None:
    """Write the time coordinate from slot `first` (a multiple of a block) to the end."""
    times = zarr.open_array(store, path=f"{epoch.name}/time", mode="r+")
    times[first:] = epoch.spec.slots.seconds(first, epoch.length)


def _root_attrs(spec: ArchiveSpec) -> dict[str, Any]:
    return {
        "Conventions": "CF-1.11",
        "title": f"Squall archive of {spec.domain}: {spec.quantity} from feed {spec.feed}",
        "license": spec.licence,
        "squall_schema": SCHEMA,
        "domain": spec.domain,
        "feed": spec.feed,
        "cadence_s": spec.cadence.total_seconds(),
        "tolerance_s": spec.tolerance.total_seconds(),
        "late_after_s": spec.late_after.total_seconds(),
    }


_SECONDS = {"units": "seconds since 1970-01-01T00:00:00Z", "calendar": "proleptic_gregorian"}


def _flags(values: Sequence[int], meanings: Sequence[str]) -> dict[str, Any]:
    return {"flag_values": list(values), "flag_meanings": " ".join(meanings)}


# name: (dtype, bytes per slot or 0, fill value, attributes)
SLOT_ARRAYS: Mapping[str, tuple[str, int, int, Mapping[str, Any]]] = {
    "valid_time": ("int64", 0, UNKNOWN, {"long_name": "time stated inside the file, end of interval", **_SECONDS}),
    "received_at": ("int64", 0, UNKNOWN, {"long_name": "time at which the bytes were received", **_SECONDS}),
    "status": (
        "uint8",
        0,
        int(Status.EXPECTED),
        {"long_name": "status of the slot", **_flags(list(Status), [status.name.lower() for status in Status])},
    ),
    "reject_reason": (
        "uint8",
        0,
        reason_flag("none"),
        {"long_name": "why the slot's object was rejected", **_flags(range(1, len(REASONS) + 1), REASONS)},
    ),
    "source_key": ("uint8", KEY_BYTES, 0, {"long_name": "key of the source object, UTF-8, zero-padded"}),
    "etag": ("uint8", ETAG_BYTES, 0, {"long_name": "entity tag of the source object, UTF-8, zero-padded"}),
    "content_hash": ("uint8", HASH_BYTES, 0, {"long_name": "SHA-256 of the source object's bytes"}),
}


def _create_slot_arrays(group: zarr.Group, length: int) -> None:
    for name, (dtype, width, fill, attrs) in SLOT_ARRAYS.items():
        missing = {"_FillValue": fill} if fill == UNKNOWN else {}
        group.create_array(
            name,
            shape=(length, width) if width else (length,),
            chunks=(DAY, width) if width else (DAY,),
            dtype=dtype,
            fill_value=fill,
            compressors=ZstdCodec(level=ZSTD_LEVEL),
            dimension_names=("time", f"{name}_byte") if width else ("time",),
            attributes={**attrs, **missing},
        )


def _create_field(group: zarr.Group, spec: ArchiveSpec, length: int) -> None:
    packing = spec.packing
    attrs: dict[str, Any] = {
        **_json(spec.attrs),
        "grid_mapping": "spatial_ref",
        "scale_factor": packing.scale_factor,
        "add_offset": packing.add_offset,
        "_FillValue": packing.fill,
        "coordinates": "valid_time status received_at reject_reason spatial_ref",
        **({} if spec.no_echo is None else {"no_echo": spec.no_echo}),
    }
    group.create_array(
        spec.quantity,
        shape=(length, spec.y.size, spec.x.size),
        chunks=(1, spec.y.size, spec.x.size),
        dtype=packing.dtype,
        fill_value=packing.fill,
        serializer=BytesCodec(endian="little") if packing.dtype != "uint8" else BytesCodec(endian=None),
        compressors=ZstdCodec(level=ZSTD_LEVEL),
        dimension_names=("time", "y", "x"),
        attributes=attrs,
    )


def _create_coordinates(group: zarr.Group, spec: ArchiveSpec) -> None:
    start: dict[str, Any] = {"standard_name": "time", "long_name": "slot, end of interval", "axis": "T", **_SECONDS}
    length = group["status"].shape[0]  # type: ignore[union-attr]
    zstd = ZstdCodec(level=ZSTD_LEVEL)
    group.create_array(
        "time", shape=(length,), chunks=(BLOCK,), dtype="int64", fill_value=UNKNOWN, compressors=zstd,
        dimension_names=("time",), attributes=start,
    )  # fmt: skip
    for name, values, attrs in (("y", spec.y, spec.y_attrs), ("x", spec.x, spec.x_attrs)):
        array = group.create_array(
            name, shape=values.shape, chunks=values.shape, dtype="float64", fill_value=float("nan"), compressors=zstd,
            dimension_names=(name,), attributes=_json(attrs),
        )  # fmt: skip
        array[:] = values
    group.create_array("spatial_ref", shape=(), dtype="int64", fill_value=UNKNOWN, attributes=_json(spec.grid_mapping))
