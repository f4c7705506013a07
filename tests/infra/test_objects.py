"""The object store keeps its promises on a local path, on moto and on SeaweedFS."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
import zarr
from moto.server import ThreadedMotoServer

from builders.weed import BUCKET, start_weed, stop_weed, storage_options
from infra.objects import ObjectStore, UnsafeStore, preflight


@pytest.fixture(scope="module")
def moto_options() -> Iterator[dict[str, object]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = storage_options(f"http://{host}:{port}")
    boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id="testkey",
        aws_secret_access_key="testsecret",
        region_name="us-east-1",
    ).create_bucket(Bucket=BUCKET)
    yield options
    server.stop()


@pytest.fixture(params=["local", "moto"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return ObjectStore(str(tmp_path / "root"))
    options = request.getfixturevalue("moto_options")
    return ObjectStore(f"s3://{BUCKET}/{tmp_path.name}", options)


def test_what_was_written_is_read_listed_and_deleted(store: ObjectStore) -> None:
    store.write("a/b/one", b"1")
    store.write("a/two", b"22")
    store.write("ab", b"333")
    assert store.read("a/two") == b"22"
    assert [(item.key, item.size) for item in store.list("a")] == [("a/b/one", 1), ("a/two", 2)]
    assert [item.key for item in store.list()] == ["a/b/one", "a/two", "ab"]
    assert [item.key for item in store.list("ab")] == ["ab"]
    assert store.list("nothing") == []
    assert store.list("a/two")[0].etag == store.etag("a/two")
    assert store.list("a/two")[0].modified.tzinfo is not None
    store.delete("a")
    store.delete("a")
    assert [item.key for item in store.list()] == ["ab"]


def test_a_missing_object_has_no_tag_and_a_folder_is_not_an_object(store: ObjectStore) -> None:
    store.write("folder/item", b"x")
    assert store.etag("folder") is None
    assert not store.exists("folder")
    assert not store.exists("other")
    with pytest.raises(FileNotFoundError):
        store.read("other")
    with pytest.raises(ValueError, match="whole store"):
        store.delete("")


def test_only_one_of_many_simultaneous_creators_wins(store: ObjectStore) -> None:
    bids = [f"{number}".encode() for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda bid: store.put_if_absent("prize", bid), bids))
    assert sum(won) == 1
    assert store.read("prize") == bids[won.index(True)]


def test_a_swap_needs_the_current_tag(store: ObjectStore) -> None:
    assert store.replace("pointer", b"first", if_match=None)
    assert not store.replace("pointer", b"again", if_match=None)
    first = store.etag("pointer")
    assert store.replace("pointer", b"second", if_match=first)
    assert not store.replace("pointer", b"late", if_match=first)
    assert store.read("pointer") == b"second"
    assert not store.replace("absent", b"x", if_match=first)


def test_of_many_simultaneous_swaps_one_wins(store: ObjectStore) -> None:
    store.write("pointer", b"start")
    tag = store.etag("pointer")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.replace("pointer", f"{n}".encode(), if_match=tag), range(8)))
    assert sum(won) == 1


def test_a_local_write_leaves_no_part_behind_and_hides_its_locks(tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}")
    store.write("x", b"1")
    store.put_if_absent("y", b"1")
    assert [item.key for item in store.list()] == ["x", "y"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".squall-locks", "x", "y"]


def test_zarr_goes_through_the_store(store: ObjectStore) -> None:
    array = zarr.create_array(store.zarr_store("some.zarr", read_only=False), shape=(4,), dtype="uint8")
    array[:] = 7
    back = zarr.open_array(store.zarr_store("some.zarr", read_only=True), mode="r")
    assert (back[:] == 7).all()
    assert store.exists("some.zarr/zarr.json")


def test_the_preflight_passes_where_conditions_hold_and_leaves_nothing(store: ObjectStore) -> None:
    preflight(store.url, store.storage)
    assert store.list() == []


def test_the_preflight_refuses_a_store_that_ignores_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: ObjectStore, key: str, data: bytes) -> bool:
        self.write(key, data)
        return True

    monkeypatch.setattr(ObjectStore, "put_if_absent", careless)
    with pytest.raises(UnsafeStore, match="one winner"):
        preflight(str(tmp_path))


def test_a_missing_bucket_is_an_error_not_a_lost_race(moto_options: dict[str, object]) -> None:
    with pytest.raises(FileNotFoundError):
        ObjectStore("s3://no-such-bucket/x", moto_options).put_if_absent("a", b"x")


@pytest.mark.stack
def test_seaweedfs_keeps_the_promises(tmp_path: Path) -> None:
    endpoint, key, secret, process = start_weed(tmp_path)
    try:
        options = storage_options(endpoint, key, secret)
        preflight(f"s3://{BUCKET}/pre", options)
        store = ObjectStore(f"s3://{BUCKET}/swap", options)
        assert store.put_if_absent("pointer", b"first")
        tag = store.etag("pointer")
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n: store.replace("pointer", f"{n}".encode(), if_match=tag), range(8)))
        assert sum(won) == 1
        assert not store.replace("absent", b"x", if_match=tag)
        store.delete("pointer")
        assert store.list() == []
    finally:
        stop_weed(process)
