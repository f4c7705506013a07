"""How results look in a terminal, and as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from tasks.golden.cases import GoldenResult


def write_json(value: object) -> None:
    """Print JSON on standard output, and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def show(value: Mapping[str, Any], as_json: bool) -> None:
    """Print a flow's result: one line per entry, or JSON."""
    if as_json:
        write_json(value)
        return
    table = Table.grid(padding=(0, 2))
    for name, entry in value.items():
        table.add_row(f"[bold]{name}[/bold]", _text(entry))
    Console().print(table)


def show_rows(title: str, rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print rows that share their keys as a table, or as JSON."""
    if as_json:
        write_json(list(rows))
        return
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in rows[0] if rows else ("nothing",):
        table.add_column(str(name))
    for row in rows:
        table.add_row(*(_text(entry) for entry in row.values()))
    Console().print(table)


def show_golden(results: Sequence[GoldenResult], as_json: bool) -> None:
    """Print one line per golden case and a closing count."""
    rows = [
        {
            "case": r.case,
            "ok": r.ok,
            "skipped": r.skipped,
            "worst": r.worst,
            "tolerance": r.tolerance,
            "message": r.message,
        }
        for r in results
    ]
    if as_json:
        write_json(rows)
        return
    for row in rows:
        mark = "skip" if row["skipped"] else "pass" if row["ok"] else "FAIL"
        print(f"{mark}  {row['case']}  {row['worst']:.2e} (<= {row['tolerance']:.2e})  {row['message']}")
    failed, skipped = sum(not row["ok"] for row in rows), sum(bool(row["skipped"]) for row in rows)
    print(f"{len(rows) - failed - skipped} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))


def _text(entry: object) -> str:
    if isinstance(entry, float):
        return f"{entry:.4g}"
    if isinstance(entry, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in entry.items())
    if isinstance(entry, list | tuple):
        return "\n".join(_text(part) for part in entry) if entry else "none"
    return "–" if entry is None else str(entry)
