"""The supervisor with small real processes: order, restarts after growing pauses, holds, stops without leftovers."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from builders.stack import eventually
from infra.processes import ProcessId, next_free_port, port_is_free, random_free_port, session, start, stop, tail
from infra.services import NotReady, Service
from infra.supervisor import Keeper, unstarted

LASTING = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {LASTING!r}]).wait()"
SPEAKS_OF_SIGINT = "import signal; print('interrupt is', signal.getsignal(signal.SIGINT))"


def always_ready() -> None:
    """A probe that is content."""


def never_ready() -> None:
    raise NotReady("nobody answers")


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[..., Keeper]]:
    keepers: list[Keeper] = []

    def make(code: str, probe: Callable[[], None] = always_ready, **options: float) -> Keeper:
        service = Service("probe", (sys.executable, "-c", code), {}, probe, needs=("other",), **options)  # type: ignore[arg-type]
        keepers.append(Keeper(service, unstarted(service, tmp_path / "probe.log")))
        return keepers[-1]

    yield make
    for keeper in keepers:
        keeper.shut_down()


def tick_until(keeper: Keeper, condition: str, within: float = 15.0) -> None:
    def look() -> bool:
        keeper.tick(may_start=True, keep_stopped=False)
        return keeper.status.condition == condition

    eventually(look, within, condition)


def test_a_service_waits_for_what_it_needs(keep: Callable[..., Keeper]) -> None:
    keeper = keep(LASTING)
    keeper.tick(may_start=False, keep_stopped=False)
    assert (keeper.status.condition, keeper.status.detail) == ("waiting", "waits for other")
    tick_until(keeper, "healthy")


def test_a_service_that_ends_is_started_again_after_a_growing_pause(keep: Callable[..., Keeper]) -> None:
    keeper = keep("raise SystemExit(3)", never_ready)
    tick_until(keeper, "unhealthy")
    assert keeper.status.detail == "ended with status 3; next start in 0.5 s"
    tick_until(keeper, "starting")
    tick_until(keeper, "unhealthy")
    assert keeper.status.detail == "ended with status 3; next start in 1.0 s"
    assert keeper.status.restarts == 2


def test_a_program_that_does_not_exist_is_a_reason_and_not_the_end(keep: Callable[..., Keeper]) -> None:
    keeper = keep(LASTING)
    keeper.service = dataclasses.replace(keeper.service, command=("/no/such/program",))
    tick_until(keeper, "unhealthy")
    assert "cannot be started" in keeper.status.detail
    keeper.service = dataclasses.replace(keeper.service, command=(sys.executable, "-c", LASTING))
    tick_until(keeper, "healthy")


def test_a_killed_service_is_started_again(keep: Callable[..., Keeper]) -> None:
    keeper = keep(LASTING)
    tick_until(keeper, "healthy")
    assert keeper.status.process is not None
    first = keeper.status.process
    psutil.Process(first.pid).kill()
    tick_until(keeper, "unhealthy")
    tick_until(keeper, "healthy")
    assert keeper.status.process != first


def test_a_service_that_never_answers_is_given_its_time_and_no_more(keep: Callable[..., Keeper]) -> None:
    keeper = keep(LASTING, never_ready, patience=0.5)
    began = time.monotonic()
    tick_until(keeper, "unhealthy")
    assert time.monotonic() - began > 0.5
    assert "nobody answers" in keeper.status.detail
    assert keeper.status.process is None


def test_a_held_service_is_stopped_until_it_is_released(keep: Callable[..., Keeper]) -> None:
    keeper = keep(LASTING)
    tick_until(keeper, "healthy")
    keeper.tick(may_start=True, keep_stopped=True)
    assert (keeper.status.condition, keeper.status.process) == ("held", None)
    tick_until(keeper, "healthy")


def test_a_service_deaf_to_sigterm_is_killed(keep: Callable[..., Keeper]) -> None:
    keeper = keep(DEAF, grace=0.5)
    tick_until(keeper, "healthy")
    eventually(lambda: tail(keeper.status.log), 10, "the process is up")
    assert keeper.status.process is not None
    running = keeper.status.process
    keeper.shut_down()
    assert running.process() is None


def test_what_a_dead_service_started_goes_with_it(keep: Callable[..., Keeper]) -> None:
    keeper = keep(PARENT)
    tick_until(keeper, "healthy")
    assert keeper.status.process is not None
    leader = keeper.status.process.pid
    eventually(lambda: len(session(leader)) == 2, 10, "parent and child")
    psutil.Process(leader).kill()
    tick_until(keeper, "unhealthy")
    assert session(leader) == []


def test_a_child_can_be_interrupted_although_its_starter_ignores_interrupts(tmp_path: Path) -> None:
    """What the supervisor does in `run`: a handler of its own, so that exec resets the disposition."""
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        start([sys.executable, "-c", SPEAKS_OF_SIGINT], {}, tmp_path / "log").wait(20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "default_int_handler" in tail(tmp_path / "log")


def test_a_process_number_that_was_given_away_again_is_not_ours(tmp_path: Path) -> None:
    child = start([sys.executable, "-c", LASTING], {}, tmp_path / "log")
    identity = ProcessId.of(child.pid)
    assert identity.process() is not None
    assert ProcessId(identity.pid, identity.created - 100).process() is None
    assert stop([psutil.Process(child.pid)], 5.0) == []
    child.wait(5)
    assert identity.process() is None


def test_a_long_log_is_put_aside_once(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    log.write_bytes(b"x" * (20 * 2**20 + 1))
    start([sys.executable, "-c", "print('fresh')"], {}, log).wait(20)
    assert log.read_text() == "fresh\n"
    assert (tmp_path / "service.log.1").stat().st_size > 20 * 2**20


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("\n".join(map(str, range(9000))))
    assert tail(tmp_path / "log", 2) == "8998\n8999"
    assert tail(tmp_path / "none") == ""


def test_a_taken_port_is_passed_over() -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", random_free_port()))
        listener.listen()
        port = listener.getsockname()[1]
        assert not port_is_free(port)
        assert next_free_port(port) > port
    assert next_free_port(port, taken=[port]) > port
