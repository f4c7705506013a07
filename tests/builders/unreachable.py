"""An S3 store that is away: its port is free, and a client asks it only once before it gives up."""

from __future__ import annotations

import socket

import pytest

from builders.weed import storage_options


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def store_away(monkeypatch: pytest.MonkeyPatch, port: int | None = None) -> dict[str, object]:
    """fsspec options of a store that is away, or of whoever listens on `port` later."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore would go on for many seconds
    return storage_options(f"http://127.0.0.1:{port or free_port()}")
