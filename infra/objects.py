"""The object store: read, list and replace objects on s3:// and file:// behind one small class.

Whatever is visible under a key is whole: local writes are a temporary file and a rename, S3 writes one PUT. Two
writers are kept apart by conditional requests (If-None-Match, If-Match) on S3 and by a file lock on a local path.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import fsspec
from botocore.exceptions import BotoCoreError, ClientError
from filelock import FileLock

if TYPE_CHECKING:
    from zarr.abc.store import Store

_LOCKS = ".squall-locks"
_PARTIAL = ".squall-part"
_STRIPES = 64
_RACERS = 4
# 404: If-Match on a missing key (AWS); 409: a concurrent conditional request; 412: the condition does not hold.
_LOST = (404, 409, 412)


class UnsafeStore(RuntimeError):
    """The store lets two conditional writes win: commits to it would be lost silently."""


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object.

    Attributes:
        key: Path below the store's root.
        size: Bytes.
        etag: Entity tag on S3; inode, modification time and size on a local path.
        modified: Time of the last write (aware, UTC).
    """

    key: str
    size: int
    etag: str
    modified: datetime


@contextmanager
def reaching_store() -> Iterator[None]:
    """Inside (or in a function decorated with it), a store that cannot be reached is an OSError, as a lost disk is.

    Raises:
        OSError: in place of botocore's own connection errors, which are none.
    """
    try:
        yield
    except BotoCoreError as error:
        raise OSError(f"expected an answer of the object store; got: {error}") from error


def is_local(url: str) -> bool:
    """Whether `url` is a plain path or file://."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    """The absolute path behind a plain path or file:// URL."""
    return Path(url.removeprefix("file://")).absolute()


def open_filesystem(url: str, storage: Mapping[str, object] | None = None) -> tuple[Any, str]:
    """The fsspec file system of `url` and the root inside it; listings are never cached (other processes write)."""
    options: dict[str, Any] = dict(storage or {})
    if url.startswith("s3://"):
        options.setdefault("config_kwargs", {"connect_timeout": 5, "read_timeout": 60})
        options.setdefault("use_listings_cache", False)
    filesystem, root = fsspec.core.url_to_fs(str(local_path(url)) if is_local(url) else url, **options)
    return filesystem, str(root).rstrip("/")


def _won(put: Callable[[], object]) -> bool:
    """Whether a conditional PUT was accepted; a refused condition is an answer, anything else an error."""
    try:
        put()
    except FileExistsError:
        return False
    except OSError as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and cause.response["ResponseMetadata"].get("HTTPStatusCode") in _LOST:
            if cause.response["Error"].get("Code") == "NoSuchBucket":
                raise
            return False
        raise
    return True


def _local_etag(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}"


def _remote_etag(info: Mapping[str, Any]) -> str:
    return str(info.get("ETag") or info.get("etag") or f"{info.get('mtime')}-{info['size']}").strip('"')


class ObjectStore:
    """Objects below one root URL (`s3://bucket/prefix`, `file:///path` or a path).

    Raises:
        OSError: by every method that asks the store, while it cannot be reached.
    """

    def __init__(self, url: str, storage: Mapping[str, object] | None = None) -> None:
        self.url = url.rstrip("/")
        self.storage: dict[str, object] = dict(storage or {})
        self._local = local_path(self.url) if is_local(self.url) else None
        self._files, self._root = open_filesystem(self.url, self.storage)

    @reaching_store()
    def read(self, key: str) -> bytes:
        """The bytes of one object. Raises FileNotFoundError."""
        data: bytes = self._files.cat_file(self._path(key))
        return data

    def exists(self, key: str) -> bool:
        """Whether an object (not a folder) has this key."""
        return self.etag(key) is not None

    @reaching_store()
    def etag(self, key: str) -> str | None:
        """The entity tag of an object; None where there is no such object."""
        if self._local is not None:
            path = self._local / key
            return _local_etag(path) if path.is_file() else None
        try:
            info = self._files.info(self._path(key))
        except FileNotFoundError:
            return None
        return _remote_etag(info) if info["type"] == "file" else None

    @reaching_store()
    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Every object below the folder `prefix` (or the object itself), in the order of their keys."""
        found = self._list_local(prefix) if self._local is not None else self._list_remote(prefix)
        return sorted(found, key=lambda item: item.key)

    @reaching_store()
    def write(self, key: str, data: bytes) -> None:
        """Write an object, replacing what was there; a reader sees the old bytes or the new."""
        if self._local is None:
            self._files.pipe_file(self._path(key), data)
            return
        with self._lock(key):
            self._rename(key, data)

    @reaching_store()
    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless the key is taken; False = it was (an answer lost on the wire also reads False)."""
        if self._local is None:
            return _won(lambda: self._files.pipe_file(self._path(key), data, mode="create"))
        with self._lock(key):
            if (self._local / key).exists():
                return False
            self._rename(key, data, durable=True)
            return True

    @reaching_store()
    def replace(self, key: str, data: bytes, if_match: str | None) -> bool:
        """Swap an object if its tag is still `if_match` (None: still absent); False = somebody else was first."""
        if if_match is None:
            return self.put_if_absent(key, data)
        if self._local is None:
            return _won(lambda: self._files.pipe_file(self._path(key), data, IfMatch=f'"{if_match}"'))
        with self._lock(key):
            if self.etag(key) != if_match:
                return False
            self._rename(key, data, durable=True)
            return True

    @reaching_store()
    def delete(self, prefix: str) -> None:
        """Remove an object, or everything below a folder; nothing there is not an error.

        Raises:
            ValueError: an empty prefix (that would be the whole store).
        """
        if not prefix.strip("/"):
            raise ValueError("expected a key or a folder to delete; got the whole store")
        if self._local is not None:
            path = self._local / prefix
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return
        doomed = self._files.find(self._path(prefix))
        if doomed:
            self._files.rm(doomed)

    def zarr_store(self, key: str, *, read_only: bool) -> Store:
        """A Zarr store rooted at `key`."""
        from zarr.storage import FsspecStore, LocalStore

        if self._local is not None:
            return LocalStore(self._local / key, read_only=read_only)
        options = {"use_listings_cache": False, **self.storage}
        return FsspecStore.from_url(f"{self.url}/{key}", storage_options=options, read_only=read_only)

    def _path(self, key: str) -> str:
        return f"{self._root}/{key.strip('/')}" if key.strip("/") else self._root

    def _lock(self, key: str) -> FileLock:
        assert self._local is not None
        folder = self._local / _LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{crc32(key.encode()) % _STRIPES:02x}.lock")

    def _rename(self, key: str, data: bytes, *, durable: bool = False) -> None:
        assert self._local is not None
        target = self._local / key
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.parent / f"{_PARTIAL}-{uuid.uuid4().hex}"
        try:
            with partial.open("wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _list_local(self, prefix: str) -> Iterable[ObjectInfo]:
        assert self._local is not None
        top = self._local / prefix.strip("/")
        for path in [top] if top.is_file() else top.rglob("*"):
            parts = path.relative_to(self._local).parts
            if parts[0] == _LOCKS or parts[-1].startswith(_PARTIAL):
                continue
            try:
                stat = path.stat()
                if path.is_file():
                    modified = datetime.fromtimestamp(stat.st_mtime, UTC)
                    yield ObjectInfo("/".join(parts), stat.st_size, _local_etag(path), modified)
            except FileNotFoundError:  # removed between the listing and the look
                continue

    def _list_remote(self, prefix: str) -> Iterable[ObjectInfo]:
        for name, info in self._files.find(self._path(prefix), detail=True).items():
            if info["type"] != "file" or name.rstrip("/") == self._root:  # SeaweedFS lists folders it still keeps
                continue
            modified = info.get("LastModified") or datetime.fromtimestamp(info.get("mtime") or 0, UTC)
            yield ObjectInfo(name[len(self._root) + 1 :], int(info["size"]), _remote_etag(info), modified)


def preflight(url: str, storage: Mapping[str, object] | None = None) -> None:
    """Prove that conditional writes to `url` exclude each other, before anything relies on it.

    Raises:
        UnsafeStore: more than one of several simultaneous If-None-Match writes won, the stored bytes are not the
            winner's, or a write with an outdated If-Match was accepted.
        OSError: the store cannot be reached or written.
    """
    store = ObjectStore(url, storage)
    key = f".preflight/{uuid.uuid4().hex}"
    bids = [f"bid {number}".encode() for number in range(_RACERS)]
    try:
        with ThreadPoolExecutor(_RACERS) as pool:
            won = list(pool.map(lambda bid: store.put_if_absent(key, bid), bids))
        if sum(won) != 1 or store.read(key) != bids[won.index(True)]:
            raise UnsafeStore(
                f"expected one winner of {_RACERS} simultaneous If-None-Match writes; got {sum(won)}, {url}"
            )
        if store.replace(key, b"late", if_match="0" * 32):
            raise UnsafeStore(f"expected a write with an outdated If-Match to be refused; it was accepted, {url}")
    finally:
        store.delete(key)
