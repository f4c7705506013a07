"""Seconds from entering the ingest flow to `latest.json` swapped, stage by stage, without the model's own time.

    python tests/bench/bench_cycle.py out.json [--quick]

Cycles follow one another as live ones do: one new frame, then one nowcast. Real FMI frames where they are, else
simulated ones of the same size. The flows run in this process; what a scheduler and a fresh process add is measured
on the running stack (`start_delay` in every report.json).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

CYCLES, QUICK = 20, 3
TARGET = 10.0
_MODEL = ("forecast.load", "forecast.forecast")


def _simulated(home: Path) -> tuple[str, datetime]:
    """A bucket of simulated frames as large as FMI's."""
    from tasks.feeds.simulated import simulated_objects

    start = datetime(2026, 1, 1, tzinfo=UTC)
    for _, key, data in simulated_objects(start, 40, timedelta(minutes=5), (1226, 760), seed=3):
        path = home / "store" / "feeds" / "simulated" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return "simulated", start


def _prepare(home: Path) -> tuple[str, datetime]:
    from infra.settings import Settings

    os.environ["SQUALL_HOME"] = str(home)
    from flows.stack_commands import enter

    enter()
    real = Settings().data / "radar" / "fmi_pgm" / "20160928"
    return ("finland", datetime(2016, 9, 28, 14, 45, tzinfo=UTC)) if real.exists() else _simulated(home)


def _cycle(domain: str, moment: datetime) -> dict[str, float]:
    from flows.ingest import ingest
    from flows.nowcast import nowcast

    began = time.perf_counter()
    report = ingest(domain=domain, start=moment.isoformat(), end=moment.isoformat())
    archived = time.perf_counter()
    issued = nowcast(domain=domain, at=(moment + timedelta(minutes=2)).isoformat())
    ended = time.perf_counter()
    stages: dict[str, Any] = issued["seconds"]
    model = sum(stages.get(name, 0.0) for name in _MODEL)
    return {
        "total_without_model": ended - began - model,
        "model": model,
        "ingest_flow": archived - began,
        "nowcast_flow_without_model": ended - archived - model,
        **{f"ingest.{name}": value for name, value in report["seconds"].items()},
        **{name: value for name, value in stages.items() if name not in _MODEL},
    }


def main(out: Path, quick: bool = False) -> list[dict[str, object]]:
    """Measure, write the rows to `out` as JSON and return them."""
    with tempfile.TemporaryDirectory(prefix="squall-bench-") as folder:
        domain, start = _prepare(Path(folder))
        from flows.ingest import ingest

        cadence = timedelta(minutes=5)
        first = start + 13 * cadence
        ingest(domain=domain, start=start.isoformat(), end=(first - cadence).isoformat())
        cycles = [_cycle(domain, first + step * cadence) for step in range(QUICK if quick else CYCLES)]
    rows: list[dict[str, object]] = []
    for name in cycles[0]:
        values = [cycle.get(name, 0.0) for cycle in cycles]
        rows.append({"what": f"cycle.{name}", "domain": domain, "median_s": median(values), "worst_s": max(values)})
    rows[0]["target"] = f"<= {TARGET:g} s"
    out.write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--quick" in sys.argv)
    sys.stdout.write(Path(sys.argv[1]).read_text() + "\n")
