"""Objects under any fsspec URL: an S3 bucket behaves as a folder does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from builders.feeds_national import FIVE, FMI_TIME, fmi_codes, fmi_key, fmi_pgm
from tasks.feeds import FeedSource, open_feed
from tasks.feeds.listing import day_prefixes, read_key, stored_objects

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


@pytest.fixture(scope="module")
def bucket() -> Iterator[FeedSource]:
    """A bucket with three composites below a prefix, one beside it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=endpoint, **KEYS)
    client.create_bucket(Bucket="radar")
    for step in range(3):
        time = FMI_TIME + step * FIVE
        client.put_object(Bucket="radar", Key=f"fmi/{fmi_key(time)}", Body=fmi_pgm(fmi_codes(), time))
    client.put_object(Bucket="radar", Key=f"other/{fmi_key(FMI_TIME)}", Body=b"")
    storage = {"key": "test", "secret": "test", "endpoint_url": endpoint}
    yield FeedSource("fmi", "s3://radar/fmi", "rainfall_rate", FIVE, storage, {"folders": "%Y%m%d"})
    server.stop()


def test_a_bucket_lists_and_reads_as_a_folder_does(bucket: FeedSource, tmp_path: Path) -> None:
    for step in range(3):
        path = tmp_path / fmi_key(FMI_TIME + step * FIVE)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(fmi_pgm(fmi_codes(), FMI_TIME + step * FIVE))
    remote, local = open_feed(bucket), open_feed(FeedSource("fmi", f"file://{tmp_path}", "rainfall_rate", FIVE))
    found, expected = (feed.list(FMI_TIME + FIVE, FMI_TIME + 2 * FIVE) for feed in (remote, local))
    assert [(item.key, item.size, item.time) for item in found] == [(i.key, i.size, i.time) for i in expected]
    assert len(found) == 2
    for item, twin in zip(found, expected, strict=True):
        assert remote.read(item) == local.read(twin)
        assert len(item.etag) == 32
        assert remote.decode(remote.read(item), item.key)[0].identical(local.decode(local.read(twin), twin.key)[0])


def test_a_new_object_is_seen_by_the_next_listing(bucket: FeedSource) -> None:
    feed = open_feed(bucket)
    late = FMI_TIME - FIVE
    window = (late, FMI_TIME)
    assert len(feed.list(*window)) == 1
    client = boto3.client("s3", endpoint_url=str(bucket.storage["endpoint_url"]), **KEYS)
    client.put_object(Bucket="radar", Key=f"fmi/{fmi_key(late)}", Body=b"partial")
    assert [item.time for item in feed.list(*window)] == [late, FMI_TIME]


def test_a_key_that_is_not_there_is_not_found(bucket: FeedSource) -> None:
    with pytest.raises(FileNotFoundError, match="expected absent under the feed's root"):
        read_key(bucket, "absent")


def test_a_folder_that_is_not_there_yet_holds_nothing(bucket: FeedSource) -> None:
    assert stored_objects(bucket, ["19990101"]) == []


def test_days_of_a_window_are_listed_once_each_across_midnight() -> None:
    start = datetime(2024, 2, 28, 23, 55, tzinfo=UTC)
    assert day_prefixes(start, start + timedelta(minutes=10), "%Y%m%d") == ["20240228", "20240229"]
    assert day_prefixes(start, start + timedelta(days=2), "%Y/%m") == ["2024/02", "2024/03"]
