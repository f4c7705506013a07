"""Several writers, killed writers and S3: nothing lost, nothing doubled, nothing half visible."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from builders.archives import at, received, spec, tiny_archive
from builders.weed import BUCKET, start_weed, stop_weed, storage_options
from tasks.archive.archive import Archive, Status
from tasks.archive.epochs import BLOCK

_BATCH = 8
_WRITER = f"""
import sys
from builders.archives import at, received
from tasks.archive.archive import Archive
archive = Archive.open(sys.argv[1], {{}})
print("ready", flush=True)
for first in range(0, 4000, {_BATCH}):
    archive.write([received(at(n), 1 + first // {_BATCH}) for n in range(first, first + {_BATCH})])
"""


def write_slots(url: str, storage: dict[str, object], slots: range) -> int:
    """Each slot in a commit of its own, by a writer of its own."""
    archive = Archive.open(url, storage)
    return sum(archive.write([received(at(slot), 1 + slot)]).written for slot in slots)


def assert_whole(archive: Archive, slots: int) -> None:
    """Every slot holds its own frame."""
    data = archive.read(at(0), at(slots - 1))
    assert (data.status == Status.PRESENT).all()
    assert data.rainfall_rate.values[:, 1, 1].tolist() == [1.0 + n for n in range(slots)]
    assert len(set(data.source_key.values.tolist())) == slots


def race(url: str, storage: dict[str, object], writers: int, each: int) -> None:
    """Writers of interleaved slots of one day: every commit touches the same metadata chunks."""
    total = writers * each
    with ThreadPoolExecutor(writers) as pool:
        jobs = [pool.submit(write_slots, url, storage, range(n, total, writers)) for n in range(writers)]
        assert sum(job.result() for job in jobs) == total
    assert_whole(Archive.open(url, storage), total)


@pytest.fixture(scope="module")
def moto_options() -> Iterator[dict[str, object]]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = storage_options(f"http://{host}:{port}")
    client = boto3.client(
        "s3",
        endpoint_url=options["endpoint_url"],
        aws_access_key_id="testkey",
        aws_secret_access_key="testsecret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    yield options
    server.stop()


def test_four_local_writers_lose_nothing(tmp_path: Path) -> None:
    tiny_archive(tmp_path / "a")
    race(str(tmp_path / "a"), {}, writers=4, each=4)


def test_four_writers_on_s3_rebase_or_start_afresh_and_lose_nothing(
    moto_options: dict[str, object], tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}"
    tiny_archive(url, moto_options)
    race(url, moto_options, writers=4, each=3)
    assert write_slots(url, moto_options, range(12)) == 0


def test_two_writers_of_the_same_slot_leave_one_frame_and_one_snapshot(
    moto_options: dict[str, object], tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}"
    before = len(tiny_archive(url, moto_options).snapshots())
    with ThreadPoolExecutor(2) as pool:
        written = list(pool.map(lambda _: write_slots(url, moto_options, range(1)), range(2)))
    assert sorted(written) == [0, 1]
    assert len(Archive.open(url, moto_options).snapshots()) == before + 1


def test_a_writer_whose_axis_was_extended_meanwhile_still_lands(
    moto_options: dict[str, object], tmp_path: Path
) -> None:
    url = f"s3://{BUCKET}/{tmp_path.name}"
    archive = tiny_archive(url, moto_options)
    far = 13 * BLOCK + 5
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(archive.extend, at(far)), pool.submit(write_slots, url, moto_options, range(6))]
        jobs.append(pool.submit(write_slots, url, moto_options, range(far, far + 1)))
        for job in jobs:
            job.result()
    assert_whole(archive, 6)
    assert archive.latest() == at(far)
    assert archive.epochs()[0].length == 14 * BLOCK


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_whole_batches_only(tmp_path: Path) -> None:
    url, random = str(tmp_path / "a"), np.random.default_rng(7)
    archive = tiny_archive(url)
    done = 0
    for _ in range(3):
        root = Path(__file__).parents[2]
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, url],
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": f"{root}:{root / 'tests'}", "PATH": "/usr/bin:/bin"},
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        goal, seen, until = done + _BATCH * int(random.integers(1, 6)), 0, time.monotonic() + 60
        while seen < goal and time.monotonic() < until:
            seen = int(archive.present(at(0), at(4000))[0].sum())
            assert seen % _BATCH == 0
        time.sleep(random.random() * 0.03)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        present, _ = archive.present(at(0), at(4000))
        assert int(present.sum()) % _BATCH == 0
        assert int(present.sum()) >= goal
        done = int(present.sum())
        data = archive.read(at(0), at(done - 1))
        assert data.rainfall_rate.values[:, 1, 1].tolist() == [1.0 + n // _BATCH for n in range(done)]
    assert done > 0
    last = archive.latest()
    assert archive.write([received(at(done), 9.0)]).written == 1  # the dead writer's lock is free
    assert archive.latest() == at(done)
    assert last == at(done - 1)


def test_a_repository_without_conditional_writes_would_be_found_out(moto_options: dict[str, object]) -> None:
    from infra.objects import preflight

    preflight(f"s3://{BUCKET}/archives", moto_options)


@pytest.mark.stack
@pytest.mark.slow
def test_seaweedfs_keeps_four_writers_apart(tmp_path: Path) -> None:
    endpoint, key, secret, process = start_weed(tmp_path)
    try:
        options = storage_options(endpoint, key, secret)
        url = f"s3://{BUCKET}/archives/tiny"
        archive = Archive.create(url, options, spec())
        race(url, options, writers=4, each=4)
        first = archive.snapshots(1)[0].id
        archive.write([received(at(0), 50.0, key="20260101-000000.bin", etag="e2")])
        assert archive.read(at(0), at(0)).rainfall_rate.values[0, 1, 1] == 50.0
        assert archive.read(at(0), at(0), as_of=first).rainfall_rate.values[0, 1, 1] == 1.0
        assert archive.info().bytes > 1000
    finally:
        stop_weed(process)
