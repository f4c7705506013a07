"""Trainings of deployments, one after another on this machine: two would share its device and each take far longer.

A lock that dies with its process.

Prefect's own limit is a lease of the server. A run whose process was killed and that is started again still names the
lease of the first process, which is gone, and is ended for it after seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from infra.settings import Settings

_LOOK_EVERY_S = 1.0


@contextmanager
def in_turn(settings: Settings, training: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold this machine's turn to train inside the block; wait for it, and say so, while another process holds it.

    Args:
        settings: State folder.
        training: Whose turn it is, such as `train/finland`.
        say: Is given one sentence if there is a wait, and one when it is over.
    """
    path = settings.root / "turns" / "training.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting: another training is running on this machine ({path} is held); {training} follows it")
        lock.acquire(poll_interval=_LOOK_EVERY_S)
        say(f"the other training is over: {training} begins")
    try:
        yield
    finally:
        lock.release()
