"""Encoded chunks in and out of a session's store, many at a time: what a cycle waits for is one round trip, not ten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.common import concurrent_map
from zarr.core.sync import sync

_IN_FLIGHT = 32


class ArchiveDamaged(RuntimeError):
    """A chunk that must be there is not: a filled slot's frame, or a coordinate."""


def put_chunks(store: Store, chunks: Mapping[str, bytes]) -> None:
    """Upload encoded chunks by key."""
    buffer = default_buffer_prototype().buffer

    async def put(key: str, data: bytes) -> None:
        await store.set(key, buffer.from_bytes(data))

    async def put_all() -> None:
        await concurrent_map(list(chunks.items()), put, _IN_FLIGHT)

    if chunks:
        sync(put_all())


def get_chunks(store: Store, keys: Sequence[str]) -> list[bytes | None]:
    """Download objects by key; None where there is none."""
    prototype = default_buffer_prototype()

    async def get(key: str) -> bytes | None:
        found = await store.get(key, prototype)
        return None if found is None else found.to_bytes()

    async def get_all() -> list[bytes | None]:
        return await concurrent_map([(key,) for key in keys], get, _IN_FLIGHT)

    return sync(get_all()) if keys else []


def need_chunks(store: Store, keys: Sequence[str]) -> list[bytes]:
    """Download chunks that must be there.

    Raises:
        ArchiveDamaged: one of them is not.
    """
    found = [data for data in get_chunks(store, keys) if data is not None]
    if len(found) != len(keys):
        raise ArchiveDamaged(f"expected {len(keys)} chunks from {keys[0]} on; got {len(found)}")
    return found
