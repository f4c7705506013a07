"""The supervisor of the local stack: one daemon that starts, probes, restarts and, when asked, stops the services.

Run as `python -m infra.supervisor`; `infra.stack.up` does. A service that ends, or stops answering, is started
again after a growing pause; SIGTERM stops everything in reverse order of start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import psutil

from infra.attachment import environment
from infra.processes import ProcessId, marked, session, start, stop
from infra.services import NotReady, Service, services
from infra.settings import Settings
from infra.stack_state import (
    Condition,
    ServiceStatus,
    held,
    load_credentials,
    load_stack,
    log_file,
    now,
    save_state,
    save_statuses,
)

TICK = 0.2
_PROBE_EVERY = 3.0
_PROBE_WHILE_STARTING = 0.3
_LONGEST_PAUSE = 30.0
_MISSES_BEFORE_RESTART = 10
_STEADY = 60.0


@dataclass
class Keeper:
    """Keeps one service running.

    Attributes:
        service: What is kept.
        status: What was last seen, as it is written for others to read.
    """

    service: Service
    status: ServiceStatus
    _child: subprocess.Popen[bytes] | None = None
    _started: float = 0.0
    _failures: int = 0
    _misses: int = 0
    _next_probe: float = 0.0
    _not_before: float = 0.0

    @property
    def healthy(self) -> bool:
        """Whether it answered when last probed."""
        return self.status.condition == "healthy"

    def tick(self, may_start: bool, keep_stopped: bool) -> None:
        """Look once, act once."""
        if keep_stopped:
            self._hold()
        elif self._child is None:
            self._consider_start(may_start)
        elif (code := self._child.poll()) is not None:
            self._failed(f"ended with status {code}")
        elif time.monotonic() >= self._next_probe:
            self._probe()

    def shut_down(self) -> None:
        """Stop the service and whatever else lives in its session."""
        if self._child is None:
            return
        if self._child.poll() is None:
            stop([psutil.Process(self._child.pid)], self.service.grace, self.service.how)
        stop(session(self._child.pid), 3.0)
        self._child.wait(5)
        self._child = None
        self._set("stopped", "")

    def _hold(self) -> None:
        if self.status.condition != "held":
            self.shut_down()
            self._failures, self._not_before = 0, 0.0
            self._set("held", "stopped until it is released")

    def _consider_start(self, may_start: bool) -> None:
        if not may_start:
            self._set("waiting", f"waits for {', '.join(self.service.needs)}")
        elif time.monotonic() >= self._not_before:
            self._start()

    def _start(self) -> None:
        try:
            self._child = start(self.service.command, self.service.env, self.status.log, self.service.user)
        except OSError as error:
            self._failed(f"cannot be started: {error}")
            return
        self._started = time.monotonic()
        self._misses, self._next_probe = 0, self._started + _PROBE_WHILE_STARTING
        self.status = replace(self.status, process=ProcessId.of(self._child.pid))
        self._set("starting", "")

    def _probe(self) -> None:
        try:
            self.service.probe()
        except NotReady as error:
            self._missed(str(error))
        else:
            self._misses = 0
            if time.monotonic() - self._started > _STEADY:
                self._failures = 0
            self._set("healthy", "")
        wait = _PROBE_WHILE_STARTING if self.status.condition == "starting" else _PROBE_EVERY
        self._next_probe = time.monotonic() + wait

    def _missed(self, reason: str) -> None:
        self._misses += 1
        if self.status.condition == "starting":
            if time.monotonic() - self._started > self.service.patience:
                self._failed(f"not ready within {self.service.patience:.0f} s: {reason}")
            return
        self._set("unhealthy", reason)
        if self._misses >= _MISSES_BEFORE_RESTART:
            self._failed(f"{self._misses} probes in a row failed: {reason}")

    def _failed(self, reason: str) -> None:
        self.shut_down()
        pause = min(0.5 * 2**self._failures, _LONGEST_PAUSE)
        self._failures += 1
        self._not_before = time.monotonic() + pause
        self.status = replace(self.status, process=None, restarts=self.status.restarts + 1)
        self._set("unhealthy", f"{reason}; next start in {pause:.1f} s")

    def _set(self, condition: Condition, detail: str) -> None:
        process = None if condition in ("stopped", "held", "waiting") else self.status.process
        if condition != self.status.condition or detail != self.status.detail:
            since = self.status.since if condition == self.status.condition else now()
            self.status = replace(self.status, condition=condition, detail=detail, since=since, process=process)


class Supervisor:
    """All services of one stack, in start order."""

    def __init__(self, settings: Settings, stack_id: str, kept: list[Service]) -> None:
        """Start nothing before `run`."""
        self._settings, self._stack_id = settings, stack_id
        self._keepers = [Keeper(service, unstarted(service, log_file(settings, service.name))) for service in kept]
        self._asked_to_stop = False

    def run(self) -> None:
        """Keep the services running until SIGTERM or SIGINT, then stop them all.

        Handlers of our own also give the children the default disposition of SIGINT after exec: started from a
        shell's `&` they would inherit "ignored", and Prefect's worker, which turns SIGTERM into SIGINT, would not stop.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)
        while not self._asked_to_stop:
            self._tick()
            time.sleep(TICK)
        self._stop_all()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked_to_stop = True

    def _tick(self) -> None:
        before = [keeper.status for keeper in self._keepers]
        stopped = held(self._settings)
        healthy = {keeper.service.name for keeper in self._keepers if keeper.healthy}
        for keeper in self._keepers:
            if self._asked_to_stop:
                return
            keeper.tick(set(keeper.service.needs) <= healthy, keeper.service.name in stopped)
        if before != [keeper.status for keeper in self._keepers]:
            self._save()

    def _stop_all(self) -> None:
        for keeper in reversed(self._keepers):
            keeper.shut_down()
            if keeper.service.name == "worker":
                self._stop_flows()
            self._save()

    def _stop_flows(self) -> None:
        """Flow processes, also orphans of an earlier worker, while the server can still record how they ended."""
        ours = {os.getpid()}
        for keeper in self._keepers:
            if keeper.status.process is not None:
                ours |= {member.pid for member in session(keeper.status.process.pid)}
        stop([process for process in marked(self._stack_id) if process.pid not in ours], 10.0)

    def _save(self) -> None:
        try:
            save_statuses(self._settings, [keeper.status for keeper in self._keepers])
        except OSError as error:  # a full disk must not end what keeps the services running
            print(f"{now().isoformat()} cannot write services.json: {error}", file=sys.stderr, flush=True)


def unstarted(service: Service, log: Path) -> ServiceStatus:
    """A service before anything was done about it."""
    return ServiceStatus(service.name, "waiting", None, 0, now(), "", service.url, log)


def main() -> None:
    """Detach from the caller, enter this process into the plan, keep the services."""
    if os.fork():
        os._exit(0)
    settings = Settings()
    state = load_stack(settings)
    if state is None:
        raise SystemExit(f"expected a stack.json under {settings.root}; start a stack with `squall up`")
    state = replace(state, supervisor=ProcessId.of(os.getpid()))
    save_state(settings, state)
    kept = services(settings, state, load_credentials(settings), environment(settings))
    Supervisor(settings, state.id, kept).run()


if __name__ == "__main__":
    main()
