"""A product's manifest: every object with its size and SHA-256, and the check of a stored product against it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.objects import ObjectStore

MANIFEST = "manifest.json"

_AT_ONCE = 16


class Entry(BaseModel):
    """One object.

    Attributes:
        key: Below the product's folder.
        size: Bytes.
        sha256: Of its bytes, hexadecimal.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """Every object of a product but the manifest itself, in the order of their keys."""

    model_config = ConfigDict(frozen=True)

    objects: tuple[Entry, ...]

    @classmethod
    def of(cls, objects: Mapping[str, bytes]) -> Self:
        """The manifest of objects given as key -> bytes."""
        return cls(
            objects=tuple(Entry(key=key, size=len(data), sha256=sha256(data)) for key, data in sorted(objects.items()))
        )

    def encode(self) -> bytes:
        """The bytes of manifest.json."""
        return self.model_dump_json(indent=1).encode()


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def read_manifest(store: ObjectStore, path: str) -> Manifest | None:
    """The manifest of the product in folder `path`; None where it has none (not or no longer a product)."""
    try:
        return Manifest.model_validate_json(store.read(f"{path}/{MANIFEST}"))
    except FileNotFoundError:
        return None


def damages(store: ObjectStore, path: str, entries: Sequence[Entry]) -> list[str]:
    """What of `entries` is missing from folder `path` or differs, in words; reads every byte back."""

    def look(entry: Entry) -> str | None:
        try:
            data = store.read(f"{path}/{entry.key}")
        except FileNotFoundError:
            return f"{entry.key} is missing"
        found = (len(data), sha256(data))
        if found == (entry.size, entry.sha256):
            return None
        return f"{entry.key} differs: expected {entry.size} bytes {entry.sha256[:12]}; got {found[0]} {found[1][:12]}"

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [found for found in pool.map(look, entries) if found]


def verify_product(store: ObjectStore, path: str) -> list[str]:
    """Re-hash every object of the product in folder `path`; what is wrong in words, empty when nothing is."""
    try:
        manifest = read_manifest(store, path)
    except ValidationError as error:
        return [f"{MANIFEST} cannot be read: {error.error_count()} errors"]
    if manifest is None:
        return [f"{MANIFEST} is missing: {path} is not a complete product"]
    known = {f"{path}/{entry.key}" for entry in manifest.objects} | {f"{path}/{MANIFEST}"}
    strangers = [f"{item.key[len(path) + 1 :]} is not listed" for item in store.list(path) if item.key not in known]
    return damages(store, path, manifest.objects) + strangers


def write_all(store: ObjectStore, path: str, objects: Mapping[str, bytes]) -> None:
    """Write objects below folder `path`, many at once; returns when all are stored, raises what the first raised."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda key: store.write(f"{path}/{key}", objects[key]), objects))
