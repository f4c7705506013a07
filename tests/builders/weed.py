"""A real S3 server for tests: SeaweedFS on random ports of 127.0.0.1."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "test-bucket"
KEY, SECRET = "testkey", "testsecret"  # of a server that lives for one test session on the loopback
_PORTS = ("master", "volume", "filer", "s3", "admin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [int(item.getsockname()[1]) for item in sockets]
    for item in sockets:
        item.close()
    return ports


def _weed() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    return str(beside) if beside.exists() else "weed"


def start_weed(tmp: Path) -> tuple[str, str, str, subprocess.Popen[bytes]]:
    """Start SeaweedFS below `tmp`; returns (endpoint, key, secret, process) once `BUCKET` takes a PUT."""
    folder = Path(tempfile.mkdtemp(prefix="weed-", dir=tmp))
    (folder / "data").mkdir()
    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    identity["actions"] = ["Admin", "Read", "Write", "List", "Tagging"]  # type: ignore[assignment]
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = _free_ports(2 * len(_PORTS))
    flags = []
    for number, name in enumerate(_PORTS):
        flags += [f"-{name}.port={ports[2 * number]}", f"-{name}.port.grpc={ports[2 * number + 1]}"]
    command = [_weed(), "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *flags]
    command += [f"-s3.config={folder / 's3.json'}", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0"]
    command += ["-s3.port.lance=0", "-webdav=false", "-admin.ui=false", f"-bucket={BUCKET}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    endpoint = f"http://127.0.0.1:{ports[2 * _PORTS.index('s3')]}"
    try:
        _await_put(endpoint)
    except TimeoutError:
        stop_weed(process)
        raise TimeoutError(f"SeaweedFS is not ready: {(folder / 'log').read_text()[-800:]}") from None
    return endpoint, KEY, SECRET, process


def _await_put(endpoint: str) -> None:
    quick = Config(retries={"max_attempts": 0}, connect_timeout=1, read_timeout=2)
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=quick,
    )
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            client.put_object(Bucket=BUCKET, Key="probe", Body=b"x")
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.1)
    raise TimeoutError(endpoint)


def stop_weed(process: subprocess.Popen[bytes]) -> None:
    """Stop a server that `start_weed` started."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)


def storage_options(endpoint: str, key: str = KEY, secret: str = SECRET) -> dict[str, object]:
    """fsspec options for a server of `start_weed`."""
    return {
        "key": key,
        "secret": secret,
        "endpoint_url": endpoint,
        "client_kwargs": {"region_name": "us-east-1"},
    }
