"""Icechunk repositories: where they live, the settings they are created with, and the one way to commit.

Settings and the conflict rule are measured: split manifests and no preload keep a commit at a constant cost however
full the axis is; a rebase may only land changes to other chunks (`UseOurs` silently reverts other writers' entries).
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from urllib.parse import urlparse

import icechunk as ic
from filelock import FileLock

from infra.objects import ObjectStore, is_local, local_path, preflight

ic.set_logs_filter("error")  # a local repository prints a warning to stdout at every open otherwise

_TRIES = 20
_LOCK_SECONDS = 600.0
_CREATION_SECONDS = 5.0
_LAYOUT = ("config.yaml", "refs", "snapshots", "manifests", "transactions", "chunks", "overwritten", "repo")
# Manifest splits in CHUNKS along time: 3.5 days of 5-minute frames, a week of day-chunked metadata.
_FIELD_SPLIT, _SLOT_SPLIT = 1008, 7
_NO_TAG = re.compile(r"ref not found|invalid ref name")


class RepositoryMissing(LookupError):
    """There is no repository at the URL."""


class SnapshotMissing(LookupError):
    """The snapshot or tag does not exist, or has expired."""


class CommitContended(RuntimeError):
    """Other writers were first in every one of many tries."""


@dataclass(frozen=True)
class Staged:
    """What a unit of work left in its session.

    Attributes:
        message: One line for the history; None = nothing to commit.
        metadata: Small JSON kept with the snapshot.
    """

    message: str | None
    metadata: Mapping[str, object]


def storage_of(url: str, storage: Mapping[str, object]) -> ic.Storage:
    """The Icechunk storage of a path or `s3://bucket/prefix` with fsspec-style options.

    Raises:
        ValueError: another scheme.
    """
    if is_local(url):
        return ic.local_filesystem_storage(str(local_path(url)))
    parts = urlparse(url)
    if parts.scheme != "s3":
        raise ValueError(f"expected a path, file:// or s3:// URL of an archive; got {url}")
    client = storage.get("client_kwargs")
    region = client.get("region_name") if isinstance(client, Mapping) else None
    endpoint = storage.get("endpoint_url")
    anonymous = bool(storage.get("anon"))
    return ic.s3_storage(
        bucket=parts.netloc,
        prefix=parts.path.strip("/"),
        region=region if region or endpoint is None else "us-east-1",  # AWS: as its environment says
        endpoint_url=endpoint,
        allow_http=str(endpoint or "").startswith("http://"),
        force_path_style=endpoint is not None,
        access_key_id=storage.get("key"),
        secret_access_key=storage.get("secret"),
        session_token=storage.get("token"),
        anonymous=anonymous or None,
        from_env=True if storage.get("key") is None and not anonymous else None,
    )


def _settings(fields: tuple[str, ...]) -> ic.RepositoryConfig:
    condition, dimension = ic.ManifestSplitCondition, ic.ManifestSplitDimCondition
    splits = {condition.name_matches(f"^{name}$"): {dimension.DimensionName("time"): _FIELD_SPLIT} for name in fields}
    splits[condition.AnyArray()] = {dimension.DimensionName("time"): _SLOT_SPLIT}
    config = ic.RepositoryConfig.default()
    config.manifest = ic.ManifestConfig(
        splitting=ic.ManifestSplittingConfig.from_dict(splits),
        preload=ic.ManifestPreloadConfig(max_total_refs=0, preload_if=ic.ManifestPreloadCondition.false()),
    )
    return config


def open_repository(url: str, storage: Mapping[str, object]) -> ic.Repository:
    """Open with the stored settings (another split at opening would re-lay every manifest).

    Raises:
        RepositoryMissing: nothing there.
        OSError: the store cannot be reached, or what is there cannot be opened.
    """
    place = storage_of(url, storage)
    try:
        if (is_local(url) and not local_path(url).is_dir()) or not ic.Repository.exists(place):
            raise RepositoryMissing(f"expected an archive at {url}; there is none")
        return ic.Repository.open(place)
    except ic.IcechunkError as error:
        raise OSError(f"expected to open the archive at {url}; got:{str(error).splitlines()[0]}") from error


def create_repository(url: str, storage: Mapping[str, object], fields: tuple[str, ...]) -> ic.Repository:
    """Create with the measured settings, or open what another process has just created.

    Args:
        url: Where.
        storage: fsspec-style options.
        fields: Names of the (time, y, x) arrays, one chunk per slot.

    Raises:
        UnsafeStore: there is no repository yet, and the store would let two writers overwrite each other.
    """
    place, settings = storage_of(url, storage), _settings(fields)
    with writer_lock(url):
        if ic.Repository.exists(place):
            return _with_settings(place, settings)
        if not is_local(url):
            preflight(_beside(url), storage)
        try:
            return ic.Repository.create(place, config=settings)
        except ic.IcechunkError:
            if _appears(place, 0.0 if is_local(url) else _CREATION_SECONDS):  # another machine was first
                return _with_settings(place, settings)
        return _create_over_remnants(place, settings, ObjectStore(url, storage))


def _beside(url: str) -> str:
    """The folder that `url` lies in: a repository is created in an empty place, SeaweedFS keeps emptied folders."""
    folder, _, _ = url.rstrip("/").rpartition("/")
    return url if folder.endswith("/") else folder  # a whole bucket lies in nothing


def _with_settings(place: ic.Storage, settings: ic.RepositoryConfig) -> ic.Repository:
    """An existing repository; its settings are stored now if its creator died before it could."""
    if ic.Repository.fetch_config(place) is not None:
        return ic.Repository.open(place)
    repository = ic.Repository.open(place, config=settings)
    repository.save_config()
    return repository


def _appears(place: ic.Storage, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not ic.Repository.exists(place):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)
    return True


def _create_over_remnants(place: ic.Storage, settings: ic.RepositoryConfig, store: ObjectStore) -> ic.Repository:
    """Create where a creator died half-way: without a branch nothing refers to what it left.

    The bytes are kept until the new repository stands, and go back if somebody else was creating after all.
    """
    remnants = {item.key: store.read(item.key) for item in store.list() if item.key.split("/")[0] in _LAYOUT}
    for key in remnants:
        store.delete(key)
    try:
        return ic.Repository.create(place, config=settings)
    except ic.IcechunkError:
        for key, data in remnants.items():
            store.put_if_absent(key, data)
        if not ic.Repository.exists(place):
            raise
        return _with_settings(place, settings)


def writer_lock(url: str) -> AbstractContextManager[object]:
    """A local path takes one writer at a time, across processes; S3 keeps writers apart by conditional writes."""
    if not is_local(url):
        return nullcontext()
    path = local_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f"{path.name}.lock"), timeout=_LOCK_SECONDS)


def commit(repository: ic.Repository, url: str, work: Callable[[ic.Session], Staged]) -> str | None:
    """Do `work` in a writable session of main and commit it; repeated from a fresh session while others are first.

    Returns:
        The snapshot's id; None where the work changed nothing.

    Raises:
        CommitContended: every try lost.
    """
    with writer_lock(url):
        for attempt in range(_TRIES):
            session = repository.writable_session("main")
            base = session.snapshot_id
            staged = work(session)
            if staged.message is None or not session.has_uncommitted_changes:
                return None
            try:
                snapshot: str = session.commit(
                    staged.message, metadata=dict(staged.metadata), rebase_with=ic.ConflictDetector()
                )
                return snapshot
            except (ic.ConflictError, ic.RebaseFailedError):
                pass
            except ic.IcechunkError:
                if repository.lookup_branch("main") == base:
                    raise  # nobody else committed: not an outdated base (expired snapshots fail the rebase this way)
            time.sleep(random.uniform(0.02, 0.1) * 2 ** min(attempt, 4))
    raise CommitContended(f"expected to land a commit within {_TRIES} tries; other writers of {url} were always first")


def session_at(repository: ic.Repository, as_of: str | None) -> ic.Session:
    """A read session of main, of a snapshot id or of a tag.

    Raises:
        SnapshotMissing: neither a snapshot (any more) nor a tag.
        OSError: the store cannot be reached.
    """
    if as_of is None:
        return repository.readonly_session("main")
    # Of a snapshot in a store that is away Icechunk says "not found", too; what it says of a tag tells whether it is.
    found = _snapshot(repository, as_of) or _tag(repository, as_of) or _snapshot(repository, as_of)
    if found is None:
        raise SnapshotMissing(f"expected a snapshot id or a tag of the archive; got {as_of!r}")
    return found


def _snapshot(repository: ic.Repository, name: str) -> ic.Session | None:
    try:
        return repository.readonly_session(snapshot_id=name)
    except (ic.IcechunkError, ValueError):
        return None


def _tag(repository: ic.Repository, name: str) -> ic.Session | None:
    try:
        return repository.readonly_session(tag=name)
    except ValueError:
        return None
    except ic.IcechunkError as error:
        said = str(error).strip().splitlines()[0]
        if _NO_TAG.search(said):
            return None
        raise OSError(f"expected an answer about the archive's version {name}; got: {said}") from error
