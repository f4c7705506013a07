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
def probe(domain: str, reason: str | None = None, evidence: float | None = None) -> str:
    """Write one trace with the time of its start and what it was given."""
    settings = Settings()
    folder = trace_folder(settings, domain)
    folder.mkdir(parents=True, exist_ok=True)
    trace = {"started": time.time(), "reason": reason, "evidence": evidence, "store": settings.store}
    (folder / f"{time.time_ns()}.json").write_text(json.dumps(trace))
    return domain


@flow(name="lasting")
def lasting(domain: str, seconds: float = 15.0) -> str:
    """Leave a trace at the start and another at the end."""
    folder = trace_folder(Settings(), domain)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "began").touch()
    time.sleep(seconds)
    (folder / "ended").touch()
    return domain
