"""`squall decode`: what a feed makes of one file, observation or forecast."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import printing


def decode(
    kind: Annotated[str, typer.Argument(help="A feed, such as fmi or radolan.")],
    file: Annotated[Path, typer.Argument(help="A file of that feed.", exists=True, dir_okay=False)],
    quantity: Annotated[str, typer.Option(help="CF-style name of what is wanted.")] = "rainfall_rate",
    option: Annotated[list[str] | None, typer.Option(help="Feed option NAME=VALUE, as under [feed.options].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")] = False,
) -> None:
    """Show the frames in one file: time, lead, member, shape, unobserved and wet share, maximum."""
    from tasks.feeds import FeedSource, open_feed

    options = dict(entry.split("=", 1) for entry in option or [])
    source = FeedSource(kind, str(file.parent), quantity, timedelta(minutes=5), options=options)
    frames = open_feed(source).decode(file.read_bytes(), file.name)
    printing.show_rows(f"{len(frames)} frames of {file.name}", [_row(frame) for frame in frames], as_json)


def _row(frame: Any) -> dict[str, object]:
    known = frame.notnull()
    return {
        "time": str(frame["time"].values)[:19],
        "lead_min": int(frame["lead_time"].values / 60_000_000_000),
        "member": int(frame["member"]),
        "shape": "x".join(map(str, frame.shape)),
        "unobserved": f"{1 - float(known.mean()):.1%}",
        "wet": f"{float((frame > 0).sum() / known.sum().clip(1)):.1%}",
        "max": f"{float(frame.max()):.2f} {frame.attrs['units']}",
        "clipped_cells": int(frame.attrs.get("clipped_cells", 0)),
    }
