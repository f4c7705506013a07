"""What all tests share: one thread for each process beside others, and no limit of time for examples."""

from __future__ import annotations

import os

import hypothesis
import pytest

hypothesis.settings.register_profile("squall", deadline=None)  # speed is never asserted
hypothesis.settings.load_profile("squall")


def pytest_configure(config: pytest.Config) -> None:
    """Before the workers of pytest-xdist start, whose libraries read it as they are imported."""
    if config.getoption("numprocesses", None):
        os.environ.update(OMP_NUM_THREADS="1", SQUALL_THREADS="1")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes are named by their number: compressed ones may differ from worker to worker, which ends pytest-xdist."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None
