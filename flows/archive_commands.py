"""`squall archive info | gaps | rejections | snapshots | export`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import printing
from flows.stack_commands import enter
from infra.clock import parse_time
from infra.settings import load_domain

if TYPE_CHECKING:
    from tasks.archive.archive import Archive

app = typer.Typer(help="Look at a domain's archive.", no_args_is_help=True)
DomainName = Annotated[str, typer.Argument(help="A domain, such as finland.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
From = Annotated[str | None, typer.Option("--from", help="ISO 8601 UTC.")]
To = Annotated[str | None, typer.Option("--to", help="ISO 8601 UTC.")]
_EVER = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)  # the future is among the reasons


def _open(domain: str) -> Archive:
    settings = enter()
    from tasks.cycle import open_archive

    return open_archive(load_domain(domain, settings), settings)


@app.command(epilog="Example: `squall archive info finland`")
def info(domain: DomainName, as_json: AsJson = False) -> None:
    """Show period, counts by status, gaps, size and snapshots."""
    found = asdict(_open(domain).info())
    gaps = found.pop("gaps")
    found["gaps"] = len(gaps) if not as_json else [[str(first), str(last)] for first, last in gaps]
    printing.show(found, as_json)


@app.command(epilog="Example: `squall archive gaps finland --from 2016-09-28T14:00Z --to 2016-09-28T19:00Z`")
def gaps(domain: DomainName, start: From = None, end: To = None, as_json: AsJson = False) -> None:
    """List runs of slots without a frame, first and last slot of each."""
    archive = _open(domain)
    first, last = parse_time(start) or archive.earliest(), parse_time(end) or archive.latest()
    found = archive.gaps(first, last) if first and last else []
    printing.show_rows("gaps", [{"first": str(a), "last": str(b)} for a, b in found], as_json)


@app.command(epilog="Example: `squall archive rejections finland --from 2016-09-28T14:00Z --to 2016-09-28T19:00Z`")
def rejections(domain: DomainName, start: From = None, end: To = None, as_json: AsJson = False) -> None:
    """List what the feed sent and the archive turned away, and why, in order of arrival."""
    found = _open(domain).rejections(parse_time(start) or _EVER[0], parse_time(end) or _EVER[1])
    rows = [
        {"time": one.time and str(one.time), "key": one.source_key, "reason": one.reason, "message": one.message}
        for one in found
    ]
    printing.show_rows("rejections", rows, as_json)


@app.command(epilog="Example: `squall archive snapshots finland`")
def snapshots(
    domain: DomainName,
    limit: Annotated[int, typer.Option(min=1, help="Newest so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the newest snapshots: what training runs and products quote."""
    rows = [
        {"id": one.id, "written_at": str(one.written_at), "message": one.message}
        for one in _open(domain).snapshots(limit)
    ]
    printing.show_rows("snapshots", rows, as_json)


@app.command(epilog="Example: `squall archive export finland --out finland.zarr`")
def export(
    domain: DomainName,
    out: Annotated[Path, typer.Option(help="Folder of the new Zarr store; it must not exist.")],
    start: From = None,
    end: To = None,
) -> None:
    """Write a period as one plain CF Zarr store that opens with xarray alone."""
    archive = _open(domain)
    from tasks.archive.export import export_archive

    first, last = parse_time(start) or archive.earliest(), parse_time(end) or archive.latest()
    if first is None or last is None:
        raise ValueError(f"expected frames in the archive of {domain}; it is empty")
    export_archive(archive, out, first, last)
    typer.echo(str(out))
