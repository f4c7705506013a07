"""`squall benchmark ensembles` and `squall benchmark alignment`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows import printing
from flows.stack_commands import enter
from tasks.forecasting.ensemble import parse_intensity

app = typer.Typer(help="Models side by side on one split.", no_args_is_help=True)
_SHOWN = ("name", "crps", "spread_skill", "brier", "csi_pool16", "power_ratio", "rank_error", "seconds", "against")


@app.callback()
def benchmark() -> None:
    """Models side by side on one split."""


@app.command(epilog="Example: `squall benchmark ensembles trentino --models prediff,dressed,steps --steps 50,20,10`")
def ensembles(
    domain: Annotated[str, typer.Argument(help="A domain, such as trentino.")],
    models: Annotated[str, typer.Option(help="Comma-separated: family, NAME@ALIAS, steps, dressed[:MODEL].")] = "",
    windows: Annotated[int, typer.Option(min=1, help="Wet windows of the test split, at most.")] = 64,
    members: Annotated[int, typer.Option(min=2, help="Members of each ensemble.")] = 8,
    steps: Annotated[str, typer.Option(help="Sampler settings to tabulate, such as 50,20 or ddim:20.")] = "",
    reference: Annotated[str | None, typer.Option(help="Model to take differences against; default: best.")] = None,
    i3d: Annotated[str | None, typer.Option(help="File with I3D weights, for the Fréchet video distance.")] = None,
    calibrated: Annotated[
        bool, typer.Option(help="Variants of --steps keep what was fitted at the model's own steps, or are as drawn.")
    ] = True,
    as_of: Annotated[str | None, typer.Option(help="Archive snapshot to read.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")] = False,
) -> None:
    """Score ensembles on the same wet held-out windows: CRPS with its interval, calibration, sharpness, cost."""
    enter()
    from flows.benchmark import benchmark_ensembles as flow

    found = flow(
        domain=domain,
        models=_listed(models),
        windows=windows,
        members=members,
        sampler_steps=_listed(steps),
        reference=reference,
        i3d=i3d,
        calibrated=calibrated,
        as_of=as_of,
        seed=seed,
    )
    if as_json:
        printing.write_json(found)
        return
    rows, tabulated = found.pop("ensembles"), found.pop("steps")
    printing.show(found, as_json)
    title = f"{found['windows']} wet held-out windows, {members} members"
    printing.show_rows(title, [{name: row[name] for name in _SHOWN} for row in rows], as_json)
    if tabulated:
        printing.show_rows("sampler steps: the fewest within 2 % of the best CRPS", tabulated, as_json)


@app.command(epilog="Example: `squall benchmark alignment trentino --intensities -2,0,2 --steps 10,50`")
def alignment(
    domain: Annotated[str, typer.Argument(help="A domain, such as trentino.")],
    model: Annotated[str, typer.Option(help="A PreDiff: family, NAME@ALIAS or NAME/VERSION.")] = "prediff",
    intensities: Annotated[str, typer.Option(help="n of mu + n sigma to steer to.")] = "-4,-2,0,2,4",
    windows: Annotated[int, typer.Option(min=1, help="Wet windows of the test split, at most.")] = 16,
    members: Annotated[int, typer.Option(min=1, help="Members of each ensemble; a single one has no CRPS.")] = 8,
    steps: Annotated[str, typer.Option(help="Sampler settings, such as 50,20 or ddim:20; default: its own.")] = "",
    guidance: Annotated[str, typer.Option(help="calibrated, or legacy: as published, of a diffusion.")] = "calibrated",
    as_of: Annotated[str | None, typer.Option(help="Archive snapshot to read.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")] = False,
) -> None:
    """Steer ensembles to several average intensities: what was asked for, what came out, what it costs in CRPS."""
    asked = [parse_intensity(word) for word in _listed(intensities) or ()]
    enter()
    from flows.benchmark import benchmark_alignment as flow

    found = flow(
        domain=domain,
        model=model,
        intensities=asked,
        windows=windows,
        members=members,
        sampler_steps=_listed(steps),
        guidance=guidance,
        as_of=as_of,
        seed=seed,
    )
    if as_json:
        printing.write_json(found)
        return
    rows = found.pop("rows")
    printing.show(found, as_json)
    title = f"{found['windows']} wet held-out windows, {members} members; intensities in network units"
    printing.show_rows(title, rows, as_json)


def _listed(text: str) -> list[str] | None:
    """Comma-separated words; None for nothing."""
    return [word.strip() for word in text.split(",") if word.strip()] or None
