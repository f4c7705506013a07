"""One Prefect server for all tests that run flows in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A server of its own on a database of its own; its start takes 10-20 s, so it is shared."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_LOGGING_TO_API_ENABLED,
        PREFECT_SERVER_ANALYTICS_ENABLED,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    quiet = {
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
        PREFECT_LOGGING_TO_API_ENABLED: False,
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    with temporary_settings(quiet), prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module")
def own_environment() -> Iterator[None]:
    """What commands and flows write into the environment of the process does not outlive the module."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
