"""The services of the local stack: what is started, with which flags, and when each counts as ready.

The object store's flags matter: without them SeaweedFS binds every interface, makes missing buckets up, and two
stacks on one machine collide. MLflow's defaults would start fifteen processes (2.8 GB); one worker without the job
runner is two (0.5 GB).
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from infra import postgres
from infra.processes import STACK_MARK
from infra.settings import Settings
from infra.stack_state import BUCKET, Credentials, StackState, folder, write_atomically

POOL = "squall"
PORTS = {
    "s3": 8333, "s3_grpc": 18333, "master": 9333, "master_grpc": 19333, "volume": 9340, "volume_grpc": 19340,
    "filer": 8888, "filer_grpc": 18888, "admin": 23646, "admin_grpc": 33646,
    "prefect": 4200, "mlflow": 5000, "worker": 4210, "postgres": 5433,
}  # fmt: skip
_PROBE_TIMEOUT = 3.0
_QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


class NotReady(Exception):
    """A service does not answer as it should (yet); the message says what was seen."""


@dataclass(frozen=True)
class Service:
    """One supervised process.

    Attributes:
        name: One word.
        command: Program and arguments.
        env: Its whole environment.
        probe: Raises NotReady while it cannot serve.
        needs: Services that have to be healthy before it starts.
        url: Where it is found.
        patience: Seconds from start to the first successful probe, at most.
        grace: Seconds between the stop signal and SIGKILL.
        how: The stop signal.
        user: Account it runs as, None for the caller's.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    probe: Callable[[], None]
    needs: tuple[str, ...] = ()
    url: str = ""
    patience: float = 90.0
    grace: float = 10.0
    how: signal.Signals = field(default=signal.SIGTERM)
    user: str | None = None


def program(name: str) -> str | None:
    """Path of a program: beside this Python first, then on PATH."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))


def sockets(state: StackState) -> list[Path]:
    """Unix sockets of the object store; in the temporary folder because their paths may not exceed 107 bytes."""
    return [Path(tempfile.gettempdir()) / f"squall-{state.id[:12]}-{end}.sock" for end in ("filer", "s3")]


def services(settings: Settings, state: StackState, secret: Credentials, env: Mapping[str, str]) -> list[Service]:
    """All services in start order; `env` is what a client of the stack has in its environment."""
    base = {**os.environ, **env, **_QUIET, STACK_MARK: state.id}
    database = [_postgres(settings, state, secret, base)] if state.database == "postgres" else []
    return [
        _object_store(settings, state, secret, base),
        *database,
        _prefect(settings, state, secret, base),
        _mlflow(settings, state, secret, base),
        _worker(state, base),
    ]


def _object_store(settings: Settings, state: StackState, secret: Credentials, base: Mapping[str, str]) -> Service:
    place = folder(settings) / "weed"
    (place / "data").mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "squall",
        "credentials": [{"accessKey": secret.s3_key, "secretKey": secret.s3_secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    write_atomically(place / "s3.json", json.dumps({"identities": [identity]}).encode(), mode=0o600)
    ports = {name: state.ports[name] for name in ("master", "volume", "filer", "s3", "admin")}
    filer_socket, s3_socket = sockets(state)
    command = (
        program("weed") or "weed", "mini", f"-dir={place / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *(f"-{name}.port.grpc={state.ports[name + '_grpc']}" for name in ports),
        f"-s3.config={place / 's3.json'}", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-webdav=false", "-admin.ui=false", "-master.telemetry=false", f"-bucket={BUCKET}",
        f"-filer.localSocket={filer_socket}", f"-s3.localSocket={s3_socket}",
    )  # fmt: skip
    url = state.url("s3")
    return Service("weed", command, base, lambda: _probe_bucket(url, secret), url=url, patience=60)


def _postgres(settings: Settings, state: StackState, secret: Credentials, base: Mapping[str, str]) -> Service:
    cluster = postgres.Cluster(folder(settings) / "postgres", state.ports["postgres"], secret.database_password)
    return Service(
        "postgres", cluster.command(), base, lambda: _probe_postgres(cluster), url=f"127.0.0.1:{cluster.port}",
        how=signal.SIGINT, user=postgres.account(),
    )  # fmt: skip


def _prefect(settings: Settings, state: StackState, secret: Credentials, base: Mapping[str, str]) -> Service:
    place = folder(settings) / "prefect"
    place.mkdir(parents=True, exist_ok=True)
    url = f"sqlite+aiosqlite:///{place / 'prefect.db'}"
    if state.database == "postgres":
        url = f"postgresql+asyncpg://squall:{secret.database_password}@127.0.0.1:{state.ports['postgres']}/postgres"
    env = {
        **base,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": url,
        "PREFECT_SERVER_DATABASE_TIMEOUT": "20",  # locked out for longer, it would be taken for dead
        "PREFECT_SERVER_UI_API_URL": state.prefect_api,
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "15",
    }
    command = (sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1")
    needs = ("postgres",) if state.database == "postgres" else ()
    return Service(
        "prefect", (*command, "--port", str(state.ports["prefect"])), env,
        lambda: _probe_http(f"{state.prefect_api}/health"), needs, state.url("prefect"), patience=180,
    )  # fmt: skip


def _mlflow(settings: Settings, state: StackState, secret: Credentials, base: Mapping[str, str]) -> Service:
    place = folder(settings) / "mlflow"
    place.mkdir(parents=True, exist_ok=True)
    env = {
        **base,
        "MLFLOW_S3_ENDPOINT_URL": state.url("s3"),
        "AWS_ACCESS_KEY_ID": secret.s3_key,
        "AWS_SECRET_ACCESS_KEY": secret.s3_secret,
        "AWS_DEFAULT_REGION": settings.s3_region,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = (
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(state.ports["mlflow"]),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{place / 'mlflow.db'}",
        "--artifacts-destination", f"s3://{BUCKET}/mlflow",
    )  # fmt: skip
    url = state.url("mlflow")
    return Service("mlflow", command, env, lambda: _probe_http(f"{url}/health"), (), url, patience=180)


def _worker(state: StackState, base: Mapping[str, str]) -> Service:
    # A run starts as soon as its process is up, also before its time: a prefetch longer than the start of a process
    # (3 s) would issue nowcasts before their frame can be there.
    env = {
        **base,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_WORKER_PREFETCH_SECONDS": "2",
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
        "PREFECT_WORKER_WEBSERVER_PORT": str(state.ports["worker"]),
    }
    command = (
        sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process",
        "--name", f"squall-{state.id[:8]}", "--with-healthcheck",
    )  # fmt: skip
    url = f"{state.url('worker')}/health"
    return Service("worker", command, env, lambda: _probe_http(url), ("weed", "prefect"), url, grace=20)


def _probe_http(url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> None:
    request = urllib.request.Request(url, headers=dict(headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT):
            return
    except (OSError, http.client.HTTPException) as error:
        raise NotReady(f"{method} {url}: {error}") from error


def _probe_bucket(url: str, secret: Credentials) -> None:
    """The bucket answers to a signed request: process, metadata, credentials and bucket in one."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials as SigningKey

    request = AWSRequest("HEAD", f"{url}/{BUCKET}")
    SigV4Auth(SigningKey(secret.s3_key, secret.s3_secret), "s3", "us-east-1").add_auth(request)
    _probe_http(f"{url}/{BUCKET}", dict(request.headers), "HEAD")


def _probe_postgres(cluster: postgres.Cluster) -> None:
    if not cluster.accepts_connections():
        raise NotReady(f"postgres on port {cluster.port} does not accept connections")
