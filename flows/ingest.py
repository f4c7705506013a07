"""Newest frames of a feed, or a past period, into the archive."""

from __future__ import annotations

from typing import Any

from prefect import flow

from infra.attachment import running_settings
from infra.clock import parse_time, read_clock
from infra.settings import load_domain
from tasks import steps


@flow(name="ingest", flow_run_name="ingest {domain}", log_prints=True)
def ingest(domain: str, start: str | None = None, end: str | None = None) -> dict[str, Any]:
    """Bring the frames of a window into the archive and say what came.

    Args:
        domain: A domain's name.
        start: ISO 8601 UTC; a named period is a backfill; default: what is new, and what an outage left open.
        end: ISO 8601 UTC; default: the domain's clock.
    """
    settings = running_settings()
    place = load_domain(domain, settings)
    clock = read_clock(place, settings)
    report = steps.ingest_frames(place, settings, clock, parse_time(start), parse_time(end))
    for rejection in report.rejected:
        steps.announce("frame.rejected", domain, key=rejection.source_key, reason=rejection.reason)
    if report.written:
        steps.announce("frames.archived", domain, archive_snapshot=report.snapshot, frames=report.written)
    return {
        "domain": domain,
        "found": report.found,
        "known": report.skipped,
        "written": report.written,
        "corrected": report.corrected,
        "late": report.late,
        "missing": report.missing,
        "rejected": [f"{item.source_key}: {item.reason}: {item.message}" for item in report.rejected],
        "failed": list(report.failed),
        "first": report.first and report.first.isoformat(),
        "last": report.last and report.last.isoformat(),
        "archive_snapshot": report.snapshot,
        "seconds": dict(report.seconds),
    }
