"""What is known about a local stack: its plan (`stack.json`), its secrets, and what its supervisor last saw."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from infra.processes import ProcessId
from infra.settings import Settings

BUCKET = "squall"
Condition = Literal["starting", "healthy", "unhealthy", "waiting", "held", "stopped", "unsupervised"]


@dataclass(frozen=True)
class StackState:
    """The plan of a stack: written once by `up`, read by everything that wants to use it.

    Attributes:
        id: Mark carried by every process of this stack.
        started_at: When `up` was called.
        ports: Port on 127.0.0.1 by name (s3, prefect, mlflow, worker, ... ).
        database: What keeps the Prefect server's records.
        notes: What differs from the defaults, and why.
        supervisor: The process that keeps the services running; None until it has started.
    """

    id: str
    started_at: datetime
    ports: dict[str, int]
    database: Literal["sqlite", "postgres"]
    notes: tuple[str, ...] = ()
    supervisor: ProcessId | None = None

    def url(self, service: str) -> str:
        """HTTP address of a service."""
        return f"http://127.0.0.1:{self.ports[service]}"

    @property
    def prefect_api(self) -> str:
        """Address for PREFECT_API_URL."""
        return f"{self.url('prefect')}/api"


@dataclass(frozen=True)
class Credentials:
    """Secrets of one state folder, generated once."""

    s3_key: str
    s3_secret: str
    database_password: str


@dataclass(frozen=True)
class ServiceStatus:
    """One service as last seen.

    Attributes:
        name: weed, postgres, prefect, mlflow or worker.
        condition: healthy, or what it is doing instead.
        process: The leader of its session, None when it does not run.
        restarts: How often the supervisor had to start it again.
        since: When the condition began.
        detail: Reason of an unhealthy or waiting condition.
        url: Where a person or a client finds it.
        log: Its log file.
        memory: Resident bytes of the whole session; 0 when it does not run.
    """

    name: str
    condition: Condition
    process: ProcessId | None
    restarts: int
    since: datetime
    detail: str
    url: str
    log: Path
    memory: int = 0


_STATE = TypeAdapter(StackState)
_CREDENTIALS = TypeAdapter(Credentials)
_STATUSES = TypeAdapter(list[ServiceStatus])


def folder(settings: Settings) -> Path:
    """Where the stack keeps its plan, logs and data."""
    return settings.root / "stack"


def log_file(settings: Settings, service: str) -> Path:
    """Log of one service, or of the supervisor."""
    return folder(settings) / "logs" / f"{service}.log"


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace `path` in one step; a reader sees the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    partial.replace(path)


def save_state(settings: Settings, state: StackState) -> None:
    """Write the plan."""
    write_atomically(folder(settings) / "stack.json", _STATE.dump_json(state, indent=1))


def load_stack(settings: Settings) -> StackState | None:
    """The stack of this state folder, None when none was started (or it was taken down)."""
    path = folder(settings) / "stack.json"
    return _STATE.validate_json(path.read_bytes()) if path.exists() else None


def running_stack(settings: Settings) -> StackState | None:
    """The stack of this state folder when its supervisor is alive, else None."""
    state = load_stack(settings)
    alive = state is not None and state.supervisor is not None and state.supervisor.process() is not None
    return state if alive else None


def save_statuses(settings: Settings, statuses: list[ServiceStatus]) -> None:
    """Write what the supervisor sees."""
    write_atomically(folder(settings) / "services.json", _STATUSES.dump_json(statuses, indent=1))


def load_statuses(settings: Settings) -> list[ServiceStatus]:
    """What the supervisor last saw, empty before it has looked."""
    path = folder(settings) / "services.json"
    return _STATUSES.validate_json(path.read_bytes()) if path.exists() else []


def load_credentials(settings: Settings) -> Credentials:
    """The secrets of this state folder, generated on first use and readable by their owner only."""
    path = folder(settings) / "credentials.json"
    if not path.exists():
        fresh = Credentials(secrets.token_hex(10), secrets.token_hex(20), secrets.token_hex(16))
        write_atomically(path, json.dumps(asdict(fresh)).encode(), mode=0o600)
    return _CREDENTIALS.validate_json(path.read_bytes())


def held(settings: Settings) -> frozenset[str]:
    """Services that an operator wants stopped for now."""
    path = folder(settings) / "held.json"
    return frozenset(json.loads(path.read_text())) if path.exists() else frozenset()


def hold(settings: Settings, services: Mapping[str, bool]) -> None:
    """Mark services as held (True: the supervisor stops them and keeps them stopped) or released (False)."""
    wanted = held(settings) - {name for name, on in services.items() if not on}
    wanted |= {name for name, on in services.items() if on}
    write_atomically(folder(settings) / "held.json", json.dumps(sorted(wanted)).encode())


def now() -> datetime:
    """Wall time, UTC."""
    return datetime.now(UTC)
