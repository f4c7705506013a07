"""A real stack for tests: random ports, a state folder of its own, taken down whatever happens."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from infra import stack
from infra.processes import marked
from infra.settings import Settings
from infra.stack_state import StackState

TESTS = Path(__file__).parents[1]


@contextmanager
def running_stack(home: Path, **settings: Any) -> Iterator[tuple[Settings, StackState]]:
    """A stack under `home` whose worker finds the tests' own flows too; gives attached settings and the plan."""
    let_through(home)
    given = Settings(home=home, _env_file=None, nice=0, **settings)  # other tests beside it are no nowcasts
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(TESTS)
    try:
        state = stack.up(given, ports=stack.random_ports())
        yield stack.attach(given), state
    finally:
        stack.down(given)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def let_through(home: Path) -> None:
    """Let the account of PostgreSQL, which refuses to run as root, get to `home` through pytest's private folders."""
    temporary = Path(tempfile.gettempdir()).resolve()
    for folder in (home, *home.parents):
        if os.geteuid() == 0 and temporary in folder.resolve().parents:
            folder.chmod(folder.stat().st_mode | 0o011)


def eventually(look: Callable[[], Any], within: float, what: str) -> Any:
    """The first true result of `look`, polled; fails naming `what` after `within` seconds.

    A server that does not answer may be starting again, as the supervisor has it do when it hangs.
    """

    def seen_now() -> Any:
        with suppress(httpx.TransportError):
            return look()
        return None

    deadline = time.monotonic() + within
    while not (seen := seen_now()):
        assert time.monotonic() < deadline, f"{what}: not within {within:.0f} s"
        time.sleep(0.1)
    return seen


def condition_of(settings: Settings, service: str) -> str:
    """What `squall status` says of one service."""
    return next(seen.condition for seen in stack.status(settings) if seen.name == service)


def pid_of(settings: Settings, service: str) -> int | None:
    """Number of a service's process, None when it does not run."""
    process = next(seen.process for seen in stack.status(settings) if seen.name == service)
    return process.pid if process else None


def flow_runs(settings: Settings, flow: str) -> list[Any]:
    """All runs of a flow that the server knows, oldest schedule first."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    from infra.deployments import prefect_client

    with prefect_client(settings) as client:
        runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])), limit=200)
    return sorted(runs, key=lambda run: run.expected_start_time)


def flow_processes(state: StackState) -> list[psutil.Process]:
    """Processes of this stack that run a flow, whoever their parent is."""
    found = []
    for process in marked(state.id):
        try:
            if "prefect.flow_engine" in process.cmdline() or "prefect.engine" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found
