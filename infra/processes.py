"""Processes of the local stack: a session of their own, named by (pid, start time), stopped without leftovers."""

from __future__ import annotations

import os
import pwd
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import psutil

STACK_MARK = "SQUALL_STACK_ID"
_LOG_LIMIT = 20 * 2**20


@dataclass(frozen=True)
class ProcessId:
    """One process, told apart from a later one that got the same number.

    Attributes:
        pid: Number given by the kernel.
        created: Start time, seconds since 1970, as psutil reports it.
    """

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this number now."""
        return cls(pid, psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The running process, or None when it has ended (a zombie has)."""
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < 0.05
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def start(
    command: Sequence[str], env: Mapping[str, str], log: Path, user: str | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` in a new session, both streams appended to `log` (rotated once beyond 20 MiB)."""
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as stream:
        return subprocess.Popen(
            list(command),
            env=dict(env),
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **privileges(user),
        )


class Privileges(TypedDict, total=False):
    """Arguments of subprocess that drop root's rights."""

    user: str
    group: int
    extra_groups: list[int]


def privileges(user: str | None) -> Privileges:
    """Run as `user` with its own group and no other; nothing for the caller's own account."""
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def session(leader: int) -> list[psutil.Process]:
    """Live members of the session that process `leader` opened, itself included."""
    return [process for process in psutil.process_iter() if _session_of(process) == leader]


def _session_of(process: psutil.Process) -> int | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):
        return None


def marked(stack_id: str) -> list[psutil.Process]:
    """Live processes that carry this stack's mark in their environment: services, flows, orphans of a dead worker."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if process.environ().get(STACK_MARK) == stack_id:
                found.append(process)
    return found


def stop(processes: Iterable[psutil.Process], grace: float, how: signal.Signals = signal.SIGTERM) -> list[int]:
    """Signal the processes, wait up to `grace` seconds, then SIGKILL; the numbers of those that had to be killed."""
    remaining = list(processes)
    for process in remaining:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    _, remaining = psutil.wait_procs(remaining, timeout=grace)
    for process in remaining:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(remaining, timeout=5)
    return [process.pid for process in remaining]


def lower_priority(nice: int) -> None:
    """Let other processes of this machine go first; at 10 they leave about a tenth of a core that they want too.

    Holds for the calling thread and every thread and process it starts from now on. Linux may share the processor among
    sessions before it looks at processes, so a process with a session of its own lowers that too.
    """
    if nice <= os.getpriority(os.PRIO_PROCESS, 0):
        return
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # no such file: this system does not group by session
            Path("/proc/self/autogroup").write_text(str(nice))


def port_is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:`port` now (a listener in TIME_WAIT does not count as taken)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def next_free_port(preferred: int, taken: Iterable[int] = ()) -> int:
    """`preferred`, or the next higher port that is neither in `taken` nor in use.

    Raises:
        OSError: none of the 200 ports from `preferred` on is free.
    """
    for port in range(preferred, min(preferred + 200, 65536)):
        if port not in set(taken) and port_is_free(port):
            return port
    raise OSError(f"expected a free port from {preferred} on; the next 200 are all in use")


def random_free_port(taken: Iterable[int] = ()) -> int:
    """A free port below the kernel's ephemeral range, so that no outgoing connection takes it during a restart."""
    return next_free_port(random.randint(12000, 31000), taken)


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log, empty when there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 16_384))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-lines:])


def wait_gone(identity: ProcessId, timeout: float) -> bool:
    """Whether the process ended within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while identity.process() is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
