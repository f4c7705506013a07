"""`squall model list | show | import | promote | rollback | history`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows import printing
from flows.stack_commands import enter

if TYPE_CHECKING:
    from infra.tracking import Tracking

app = typer.Typer(help="Presets and registered models.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A registered model, such as trentino-earthformer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def _registry() -> Tracking:
    settings = enter()
    from infra.tracking import Tracking

    return Tracking(settings.tracking_uri)


@app.command(name="list", epilog="Example: `squall model list`")
def list_models(as_json: AsJson = False) -> None:
    """List every preset with its size and cost, and every registered model with its champion."""
    from models.earthformer.presets import list_presets
    from models.prediff.presets import preset_names, summarise

    sizes = [(one.name, one.parameters, one.gmac) for one in list_presets()]
    parts = [part for name in preset_names() for part in summarise(name)]
    sizes += [(f"{part.preset} {part.network}", part.parameters, part.gmac) for part in parts]
    presets = [{"preset": name, "parameters": f"{count:,}", "GMAC": f"{gmac:.2f}"} for name, count, gmac in sizes]
    registry = _registry()
    models = [
        {
            "model": name,
            "version": one.version,
            "aliases": ", ".join(one.aliases),
            "created": f"{one.created_at:%Y-%m-%d %H:%M}",
        }
        for name in registry.models()
        for one in registry.versions(name)
    ]
    if as_json:
        printing.write_json({"presets": presets, "models": models})
        return
    printing.show_rows("presets", presets, as_json)
    printing.show_rows("registered models", models, as_json)


@app.command(epilog="Example: `squall model show trentino-earthformer`")
def show(
    name: Name, which: Annotated[str, typer.Option(help="Alias or version.")] = "champion", as_json: AsJson = False
) -> None:
    """Show one registered version: where it comes from and what the gate said."""
    version = _registry().version(name, which)
    entries = {
        "name": version.name,
        "version": version.version,
        "aliases": list(version.aliases),
        "run": version.run_id,
    }
    printing.show({**entries, "created": f"{version.created_at:%Y-%m-%d %H:%M} UTC", **version.tags}, as_json)


@app.command(name="import", epilog="Example: `squall model import earthformer-sevir earthformer_sevir.pt`")
def import_model(
    kind: Annotated[str, typer.Argument(help="earthformer-{sevir,enso,earthnet} or prediff-{vae,denoiser,alignment}.")],
    file: Annotated[Path, typer.Argument(help="A published file: torch.save, Lightning or safetensors.")],
    name: Annotated[str | None, typer.Option(help="Registered name; default: the kind.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn a published checkpoint into a registered version, once every name, shape and index is right."""
    settings = enter()
    from tasks.training.importing import import_published

    version = import_published(kind, file, settings.tracking_uri, name=name)
    entries = {"name": version.name, "version": version.version, "aliases": list(version.aliases), **version.tags}
    printing.show(entries, as_json)


@app.command(epilog="Example: `squall model promote trentino-earthformer 3 --reason 'checked by hand'`")
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(help="Version to make champion.")],
    reason: Annotated[str, typer.Option(help="Kept in the model's history.")],
) -> None:
    """Make a version champion by hand; the gate's verdict is not asked."""
    _registry().promote(name, version, f"by hand: {reason}")
    typer.echo(f"{name} version {version} is champion")


@app.command(epilog="Example: `squall model rollback trentino-earthformer --reason 'seams over the lake'`")
def rollback(name: Name, reason: Annotated[str, typer.Option(help="Kept in the model's history.")]) -> None:
    """Return to the champion before the present one."""
    back = _registry().rollback(name, f"by hand: {reason}")
    typer.echo(f"{name} version {back.version} is champion again")


@app.command(epilog="Example: `squall model history trentino-earthformer`")
def history(name: Name, as_json: AsJson = False) -> None:
    """List who was champion when, and why."""
    rows = [
        {
            "at": f"{one.at:%Y-%m-%d %H:%M:%S}",
            "event": one.event,
            "version": one.version,
            "replaced": one.replaced,
            "reason": one.reason,
        }
        for one in _registry().history(name)
    ]
    printing.show_rows(f"history of {name}", rows, as_json)
