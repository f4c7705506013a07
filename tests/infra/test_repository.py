"""Where repositories are created: only where conditional writes exclude each other, with the keys that were given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import icechunk
import pytest
from moto.server import DomainDispatcherApplication, ThreadedMotoServer, create_backend_app
from werkzeug.serving import make_server

from builders.weed import BUCKET, KEY, SECRET, storage_options
from infra.objects import ObjectStore, UnsafeStore
from infra.repository import SnapshotMissing, create_repository, open_repository, session_at, storage_of
from infra.settings import Settings

FIELDS = ("rainfall_rate",)
_CONDITIONS = ("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH")


def deaf(application: Callable[..., Any]) -> Callable[..., Any]:
    """The same web application, which never hears of the conditions of a request."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        return application({k: v for k, v in environ.items() if k not in _CONDITIONS}, start_response)

    return answer


@pytest.fixture(scope="module")
def safe() -> Iterator[dict[str, object]]:
    """An S3 server with a bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = storage_options(f"http://{host}:{port}")
    boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
    ).create_bucket(Bucket=BUCKET)
    yield options
    server.stop()


@pytest.fixture(scope="module")
def careless(safe: dict[str, object]) -> Iterator[dict[str, object]]:
    """The objects of `safe` behind a server that ignores If-None-Match and If-Match."""
    server = make_server("127.0.0.1", 0, deaf(DomainDispatcherApplication(create_backend_app)), threaded=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield storage_options(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("place", ["archives/tiny", "alone"])
def test_no_repository_is_begun_where_two_conditional_writes_win(careless: dict[str, object], place: str) -> None:
    with pytest.raises(UnsafeStore, match="one winner"):
        create_repository(f"s3://{BUCKET}/{place}", careless, FIELDS)
    store = ObjectStore(f"s3://{BUCKET}", careless)
    assert [item.key for item in store.list() if item.key.startswith((".preflight", place.split("/")[0]))] == []


def test_a_proven_store_holds_the_repository_and_nothing_of_the_proof(safe: dict[str, object]) -> None:
    create_repository(f"s3://{BUCKET}/proven/tiny", safe, FIELDS)
    open_repository(f"s3://{BUCKET}/proven/tiny", safe)
    assert {item.key.split("/")[0] for item in ObjectStore(f"s3://{BUCKET}/proven", safe).list()} == {"tiny"}


def test_a_repository_that_exists_needs_no_proof(safe: dict[str, object], careless: dict[str, object]) -> None:
    create_repository(f"s3://{BUCKET}/known/tiny", safe, FIELDS)
    create_repository(f"s3://{BUCKET}/known/tiny", careless, FIELDS)


def test_a_repository_on_aws_is_reached_in_the_region_that_was_set() -> None:
    own = Settings(s3_key="key", s3_secret="secret", s3_region="eu-north-1", _env_file=None)
    assert "region=eu-north-1, endpoint_url=None" in str(storage_of("s3://mine/a", own.storage_options("s3://mine/a")))


def test_without_a_region_aws_is_reached_as_its_environment_says() -> None:
    own = Settings(s3_key="key", s3_secret="secret", _env_file=None)
    assert "us-east-1" not in str(storage_of("s3://mine/a", own.storage_options("s3://mine/a")))


class Flaky:
    """A repository whose store is away for its next looks, in the words of Icechunk 2."""

    def __init__(self, repository: Any, away: int) -> None:
        self.repository, self.away = repository, away

    def readonly_session(self, **version: str) -> Any:
        self.away -= 1
        if self.away >= 0:
            said = "snapshot not found: `…`" if "snapshot_id" in version else "error getting object: dispatch failure"
            raise icechunk.IcechunkError(f"  x {said}\n  | \n  | context:")
        return self.repository.readonly_session(**version)


def test_a_version_that_does_not_exist_is_missing_and_one_in_a_store_that_is_away_is_not(tmp_path: Path) -> None:
    repository = create_repository(str(tmp_path / "archive"), {}, FIELDS)
    there = repository.lookup_branch("main")
    assert session_at(repository, there).snapshot_id == there
    for name in ("nothing-here", "F10V2NHXFM23ECB5C31G", "no/thing"):
        with pytest.raises(SnapshotMissing, match=name):
            session_at(repository, name)
    with pytest.raises(OSError, match="dispatch failure"):
        session_at(Flaky(repository, 2), there)
    assert session_at(Flaky(repository, 1), there).snapshot_id == there
