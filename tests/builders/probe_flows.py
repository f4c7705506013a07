"""Flows that leave a trace of having run, for tests of scheduling."""

from __future__ import annotations

import json
import time
from pathlib import Path

from prefect import flow

from infra.settings import Settings


def trace_folder(settings: Settings, domain: str) -> Path:
    """Where the probe flows of a domain leave their traces."""
    return settings.root / "traces" / domain


@flow(name="probe")
def probe(domain: str) -> str:
    """Write one trace with the time of its start and the store it was led to."""
    _leave_trace(domain, store=Settings().store)
    return domain


@flow(name="train")
def train(domain: str, reason: str | None = None) -> str:
    """Write one trace with what it was given."""
    _leave_trace(domain, reason=reason)
    return domain


def _leave_trace(domain: str, **seen: object) -> None:
    folder = trace_folder(Settings(), domain)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{time.time_ns()}"
    partial.write_text(json.dumps({"started": time.time(), **seen}))
    partial.rename(partial.with_name(partial.name[1:] + ".json"))


@flow(name="lasting")
def lasting(domain: str, seconds: float = 15.0) -> str:
    """Leave a trace at the start and another at the end."""
    folder = trace_folder(Settings(), domain)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "began").touch()
    time.sleep(seconds)
    (folder / "ended").touch()
    return domain
