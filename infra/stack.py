"""The local stack on 127.0.0.1: object store, Prefect server, MLflow server and a worker, started and stopped for real.

`up` writes a plan, starts one supervisor (infra/supervisor.py) and waits until every service answers; `down` stops all
of it, in order, and also what a killed supervisor or worker has left behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal
from uuid import uuid4

from botocore.exceptions import BotoCoreError
from filelock import FileLock, Timeout

from infra import postgres
from infra.attachment import attach, environment
from infra.objects import UnsafeStore, preflight
from infra.processes import (
    STACK_MARK,
    marked,
    next_free_port,
    port_is_free,
    random_free_port,
    session,
    stop,
    tail,
    wait_gone,
)
from infra.services import PORTS, sockets
from infra.settings import Settings
from infra.stack_state import (
    ServiceStatus,
    StackState,
    folder,
    hold,
    load_credentials,
    load_stack,
    load_statuses,
    log_file,
    now,
    running_stack,
    save_state,
)

__all__ = ["StackError", "attach", "down", "environment", "hold", "load_stack", "random_ports", "status", "up"]

_FAILURES_BEFORE_GIVING_UP = 3
_LONGEST_STOP = 90.0
_SUPERVISOR_WITHIN = 10.0


class StackError(RuntimeError):
    """The stack could not be started or stopped; the message ends with the log of what failed."""


def random_ports() -> dict[str, int]:
    """A free port for every service, for stacks beside one another."""
    ports: dict[str, int] = {}
    for name in PORTS:
        ports[name] = random_free_port(ports.values())
    return ports


def up(
    settings: Settings,
    *,
    ports: Mapping[str, int] | None = None,
    timeout: float = 240.0,
    report: Callable[[list[ServiceStatus]], None] = lambda seen: None,
) -> StackState:
    """Start the stack of this state folder and wait until all services are healthy; a running one is left as it is.

    Args:
        settings: `stack_database` and `stack_ports` say what differs from the defaults.
        ports: Ports by service that override those.
        timeout: Seconds until all services have to be healthy.
        report: Called with what is seen while waiting (a progress display).

    Raises:
        StackError: a service does not start, or the wait is over; everything started has been stopped again.
    """
    with _locked(settings):
        running = running_stack(settings)
        if running is None:
            _clear_remains(settings)
            state = _plan(settings, ports or {})
            save_state(settings, state)
            _start_supervisor(settings, state)
        try:
            state = _wait_healthy(settings, timeout, report)
            _prove_store(settings)
            return state
        except StackError:
            if running is None:
                _take_down(settings)
            raise


def down(settings: Settings) -> bool:
    """Stop everything `up` started (worker, flows, MLflow, Prefect, object store); whether there was anything.

    Raises:
        StackError: something survived SIGKILL.
    """
    with _locked(settings):
        return _take_down(settings)


def status(settings: Settings) -> list[ServiceStatus]:
    """Every service as it is now, empty when there is no stack; without a supervisor survivors are `unsupervised`."""
    state = load_stack(settings)
    if state is None:
        return []
    supervised = running_stack(settings) is not None
    return [_as_it_is(seen, supervised) for seen in load_statuses(settings)]


def _as_it_is(seen: ServiceStatus, supervised: bool) -> ServiceStatus:
    process = seen.process.process() if seen.process else None
    if process is None:
        gone = seen.condition == "healthy" or not supervised
        return replace(seen, process=None, condition="stopped" if gone else seen.condition)
    memory = sum(member.memory_info().rss for member in session(process.pid) if member.is_running())
    return replace(seen, memory=memory, condition=seen.condition if supervised else "unsupervised")


def _plan(settings: Settings, wanted: Mapping[str, int]) -> StackState:
    explicit = {**settings.stack_ports, **wanted}
    unknown = sorted(set(explicit) - set(PORTS))
    if unknown:
        raise ValueError(f"expected ports of {', '.join(PORTS)}; got {', '.join(unknown)}")
    ports, notes = _choose_ports(explicit)
    database, reason = _choose_database(settings)
    return StackState(uuid4().hex, now(), ports, database, (*notes, *reason))


def _choose_ports(explicit: Mapping[str, int]) -> tuple[dict[str, int], list[str]]:
    taken = [name for name, port in explicit.items() if not port_is_free(port)]
    if taken:
        raise StackError(f"expected free ports; in use: {', '.join(f'{name} {explicit[name]}' for name in taken)}")
    ports, notes = dict(explicit), []
    for name, preferred in PORTS.items():
        if name in explicit:
            continue
        ports[name] = next_free_port(preferred, ports.values())
        if ports[name] != preferred:
            notes.append(f"{name}: port {preferred} is in use, {ports[name]} is taken instead")
    return ports, notes


def _choose_database(settings: Settings) -> tuple[Literal["sqlite", "postgres"], list[str]]:
    if settings.stack_database == "sqlite":
        return "sqlite", []
    # "auto" too: under a burst SQLite locks, and the scheduler with it, so PostgreSQL wherever it is installed.
    place = folder(settings) / "postgres"
    reason = postgres.obstacle(place)
    if reason is not None:
        return "sqlite", [f"database: SQLite instead of PostgreSQL, because {reason}"]
    return "postgres", []


def _start_supervisor(settings: Settings, state: StackState) -> None:
    if state.database == "postgres":
        secret = load_credentials(settings)
        postgres.Cluster(folder(settings) / "postgres", state.ports["postgres"], secret.database_password).create()
    log = log_file(settings, "supervisor")
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, **environment(settings), STACK_MARK: state.id, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "infra.supervisor"]
    with log.open("ab") as stream:
        subprocess.run(
            command, env=env, cwd=folder(settings), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            start_new_session=True, check=False,
        )  # fmt: skip


def _wait_healthy(settings: Settings, timeout: float, report: Callable[[list[ServiceStatus]], None]) -> StackState:
    began = time.monotonic()
    seen: list[ServiceStatus] = []
    while time.monotonic() < began + timeout:
        state = running_stack(settings)
        if state is not None:
            seen = load_statuses(settings)
            report(seen)
            if seen and all(service.condition in ("healthy", "held") for service in seen):
                return state
        elif seen or time.monotonic() > began + _SUPERVISOR_WITHIN:
            raise StackError(f"the supervisor has ended; its log ends with:\n{tail(log_file(settings, 'supervisor'))}")
        _give_up_early(seen)
        time.sleep(0.1)
    ill = [service for service in seen if service.condition not in ("healthy", "held", "waiting")]
    name, log = (ill[0].name, ill[0].log) if ill else ("supervisor", log_file(settings, "supervisor"))
    raise StackError(f"{name} is not healthy after {timeout:.0f} s; its log ends with:\n{tail(log)}")


def _prove_store(settings: Settings) -> None:
    """The attached store takes writes and keeps two conditional writers apart."""
    attached = attach(settings)
    url = attached.expand(attached.store)
    try:
        preflight(url, attached.storage_options(url))
    except (OSError, UnsafeStore, BotoCoreError) as error:
        log = log_file(settings, "weed")
        raise StackError(f"expected a safe object store at {url}: {error}; its log ends with:\n{tail(log)}") from error


def _give_up_early(seen: list[ServiceStatus]) -> None:
    for service in seen:
        if service.restarts >= _FAILURES_BEFORE_GIVING_UP and service.condition != "healthy":
            raise StackError(
                f"{service.name} does not start: {service.detail}; its log ends with:\n{tail(service.log)}"
            )


def _take_down(settings: Settings) -> bool:
    state = load_stack(settings)
    if state is None:
        return False
    supervisor = state.supervisor.process() if state.supervisor else None
    if supervisor is not None and state.supervisor is not None:
        supervisor.terminate()
        if not wait_gone(state.supervisor, _LONGEST_STOP):
            stop([supervisor], 0.0)
    _clear_remains(settings)
    return True


def _clear_remains(settings: Settings) -> None:
    """End whatever a killed supervisor left running, then forget the plan; data, logs and credentials stay."""
    state = load_stack(settings)
    if state is None:
        return
    leaders = [process for seen in load_statuses(settings) if seen.process and (process := seen.process.process())]
    members = [member for leader in leaders for member in session(leader.pid)]
    remains = {process.pid: process for process in (*members, *marked(state.id)) if process.pid != os.getpid()}
    stop(remains.values(), 10.0)
    survivors = marked(state.id)
    if survivors:
        raise StackError(f"expected no process of the stack; still there: {[process.pid for process in survivors]}")
    for path in (*sockets(state), *(folder(settings) / name for name in ("services.json", "held.json", "stack.json"))):
        path.unlink(missing_ok=True)


@contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    folder(settings).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder(settings) / "lock", timeout=300):
            yield
    except Timeout as error:
        raise StackError(f"expected to be alone; another `up` or `down` holds {error.lock_file}") from error
