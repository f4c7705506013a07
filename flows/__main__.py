"""The `squall` command: run a flow, look at an archive, a product or a model, start and stop the local stack."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import (
    archive_commands,
    benchmark_commands,
    feed_commands,
    model_commands,
    printing,
    product_commands,
    stack_commands,
)

app = typer.Typer(
    name="squall",
    help="Radar frames to archive, to trained model, to scheduled, published and verified nowcasts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.add_typer(archive_commands.app, name="archive")
app.add_typer(product_commands.app, name="product")
app.add_typer(model_commands.app, name="model")
app.add_typer(benchmark_commands.app, name="benchmark")
stack_commands.add_to(app)
app.command(epilog="Example: `squall decode radolan DE1200_RV2210180700.tar.bz2`")(feed_commands.decode)

DomainName = Annotated[str, typer.Argument(help="A domain, such as finland.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
From = Annotated[str | None, typer.Option("--from", help="ISO 8601 UTC, such as 2016-09-28T14:45Z.")]
To = Annotated[str | None, typer.Option("--to", help="ISO 8601 UTC.")]


def _run(flow: Callable[..., Any], as_json: bool, **parameters: Any) -> None:
    printing.show(flow(**parameters), as_json)


@app.command(epilog="Example: `squall ingest finland --from 2016-09-28T14:45Z --to 2016-09-28T18:00Z`")
def ingest(domain: DomainName, start: From = None, end: To = None, as_json: AsJson = False) -> None:
    """Bring the newest frames of a feed, or those of a past period, into the archive."""
    stack_commands.enter()
    from flows.ingest import ingest as flow

    _run(flow, as_json, domain=domain, start=start, end=end)


@app.command(epilog="Example: `squall nowcast finland --at 2016-09-28T16:00Z`")
def nowcast(
    domain: DomainName,
    at: Annotated[str | None, typer.Option(help="Use only what had been received by this time.")] = None,
    as_of: Annotated[str | None, typer.Option(help="Archive snapshot to read.")] = None,
    model: Annotated[str | None, typer.Option(help="NAME@ALIAS, NAME/VERSION, or a rung of the ladder.")] = None,
    members: Annotated[
        int | None, typer.Option(min=1, help="Ensemble members, where the rung has any; default: the domain's.")
    ] = None,
    intensity: Annotated[
        str | None,
        typer.Option(help="A what-if: average intensity at +2sigma, -1sigma, ... of the expected. Not in latest."),
    ] = None,
    deadline: Annotated[str | None, typer.Option(help="Time budget, such as 60s.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Issue one nowcast and publish it."""
    stack_commands.enter()
    from flows.nowcast import nowcast as flow

    _run(
        flow,
        as_json,
        domain=domain,
        at=at,
        as_of=as_of,
        model=model,
        members=members,
        deadline=deadline,
        seed=seed,
        intensity=intensity,
    )


@app.command(epilog="Example: `squall verify finland`")
def verify(domain: DomainName, start: From = None, end: To = None, as_json: AsJson = False) -> None:
    """Score the issued products whose valid time has come, next to extrapolation and persistence."""
    stack_commands.enter()
    from flows.verify import verify as flow

    found = flow(domain=domain, start=start, end=end)
    tables = {} if as_json else {name: found.pop(name) for name in ("csi", "csi_wet")}
    printing.show(found, as_json)
    for name, rows in tables.items():
        printing.show_rows("CSI, wet products only" if name == "csi_wet" else "CSI, all products", rows, as_json)


@app.command(epilog="Example: `squall train trentino --model earthformer --preset small-64 --budget 10min`")
def train(
    domain: DomainName,
    model: Annotated[str, typer.Option(help="Model family.")] = "earthformer",
    preset: Annotated[
        str | None, typer.Option(help="Preset, such as small-64; default: the parent's or domain's.")
    ] = None,
    from_model: Annotated[
        str | None,
        typer.Option(help="NAME@ALIAS to fine-tune; of a PreDiff, the Earthformer inside (no shipped preset has one)."),
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="Frames in, frames out, cells other than the model's: 13:12:64x64.")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="Time budget, such as 10min.")] = None,
    resume: Annotated[str | None, typer.Option(help="MLflow run id to go on with.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="PreDiff, with --resume: autoencoder, latents, denoiser or alignment again.")
    ] = None,
    autoencoder: Annotated[str | None, typer.Option(help="PreDiff: NAME@ALIAS of an imported one to keep.")] = None,
    denoiser: Annotated[str | None, typer.Option(help="PreDiff: the same of the denoiser.")] = None,
    alignment: Annotated[str | None, typer.Option(help="PreDiff: the same of the alignment network.")] = None,
    constraint: Annotated[
        str | None,
        typer.Option(help="PreDiff: steered by average_intensity, domain_mass or exceedance_area:THRESHOLD."),
    ] = None,
    perceptual: Annotated[
        str | None, typer.Option(help="PreDiff: file with LPIPS weights for the autoencoder's loss.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of order, draws and weights; default: 0.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a challenger, compare it with the champion and both baselines, promote it or not."""
    stack_commands.enter()
    from flows.train import train as flow
    from flows.train_prediff import train_prediff

    parts = {"autoencoder": autoencoder, "denoiser": denoiser, "alignment": alignment}
    imported = {part: reference for part, reference in parts.items() if reference is not None}
    options = {"stage": stage, "constraint": constraint, "perceptual": perceptual}
    of_prediff = {option: value for option, value in options.items() if value is not None}
    name = preset if preset is None or "/" in preset else f"{model}/{preset}"
    if name is not None and name.startswith("prediff/"):
        if window is not None:
            raise ValueError(
                f"expected no --window with {name}, whose preset says its frames and cells; got {window!r}"
            )
        told = {"from_model": from_model, "budget": budget, "resume": resume, "seed": seed, **of_prediff}
        _run(train_prediff, as_json, domain=domain, preset=name, imported=imported or None, **told)
        return
    if model != "earthformer" and (name is None or not name.startswith(f"{model}/")):
        raise ValueError(f"expected --preset with --model {model}; `squall model list` shows all presets")
    if lost := of_prediff | imported:
        option, value = next(iter(lost.items()))
        raise ValueError(f"expected --{option} with --model prediff and its --preset; got {value!r} for an Earthformer")
    _run(
        flow,
        as_json,
        domain=domain,
        preset=name,
        from_model=from_model,
        window=window,
        budget=budget,
        resume=resume,
        seed=seed,
    )


@app.command(epilog="Example: `squall replay finland --from 2016-09-28T14:45Z --to 2016-09-28T18:00Z --speed 10`")
def replay(
    domain: DomainName,
    start: Annotated[str | None, typer.Option("--from", help="ISO 8601 UTC: where the domain's clock starts.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="ISO 8601 UTC: where it stands still.")] = None,
    speed: Annotated[float, typer.Option(min=0.1, help="Domain seconds per second.")] = 60.0,
    model: Annotated[str | None, typer.Option(help="NAME@ALIAS for the nowcasts instead of the ladder.")] = None,
    follow: Annotated[bool, typer.Option(help="Wait until the replay is over.")] = True,
    stop: Annotated[bool, typer.Option("--stop", help="End a replay: back to the live clock.")] = False,
) -> None:
    """Run a past period as if live, on the running stack: frames become visible at valid time + latency."""
    settings = stack_commands.enter(needs_stack=not stop)
    from flows import replay as module

    if stop:
        module.stop(settings, domain)
        return
    if start is None or end is None:
        raise ValueError("expected --from and --to, or --stop")
    module.replay(settings, domain, start, end, speed, follow=follow, model=model)


@app.command(epilog="Example: `squall demo`")
def demo() -> None:
    """Run the main job on embedded defaults: simulated rain, archive, training, nowcasts, products, scores."""
    settings = stack_commands.enter()
    from flows.demo import demo as run

    run(settings)


@app.command(epilog="Example: `squall golden ../shared/golden/earthformer`")
def golden(
    path: Annotated[
        str | None,
        typer.Argument(help="A folder of reference numbers; default: SQUALL_GOLDEN, else the project's own."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the models with reference numbers; in a named folder a file that nothing can check fails."""
    from infra.settings import Settings
    from tasks.golden.discovery import check_selection, default_folders, discover

    named = path or Settings().golden
    folders = [Path(named)] if named else list(default_folders(Path(__file__).resolve().parents[1]))
    cases = discover(folders)
    if not cases:
        raise ValueError(f"expected golden files under {', '.join(map(str, folders)) or 'SQUALL_GOLDEN'}; found none")
    results = check_selection(cases, lenient=named is None)
    printing.show_golden(results, as_json)
    raise typer.Exit(0 if all(result.ok for result in results) else 1)


def main() -> None:
    """Entry point: errors a user can act on are one line, not a traceback (set SQUALL_TRACEBACK=1 to see it)."""
    try:
        app()
    except (ValueError, RuntimeError, OSError, LookupError) as error:
        if os.environ.get("SQUALL_TRACEBACK"):
            raise
        sys.stderr.write(f"squall: {error}\n")
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
