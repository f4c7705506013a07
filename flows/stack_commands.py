"""`squall up | down | status | doctor`, and how every command finds a running stack."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Annotated

import typer

from flows import printing
from infra.attachment import attach, environment
from infra.clock import replaying
from infra.settings import Domain, Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def enter(*, needs_stack: bool = False) -> Settings:
    """Settings of this command, attached to the running stack of its state folder, if there is one.

    Prefect reads its address from the environment of the process, so it is set here, before Prefect is imported.

    Raises:
        RuntimeError: a stack is needed and none runs.
    """
    given = Settings()
    settings = attach(given)
    if needs_stack and settings.prefect_url is None:
        raise RuntimeError("this needs the running stack; start it with `squall up`")
    os.environ.update(environment(given))
    if settings.prefect_url is None:
        private = settings.root / "prefect"
        private.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("PREFECT_HOME", str(private))
    # A command says in one line what went wrong; the flow's own log is in the Prefect UI.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    return settings


def add_to(app: typer.Typer) -> None:
    """Add the four commands to the main one."""
    app.command(epilog="Example: `squall up`")(up)
    app.command(epilog="Example: `squall down`")(down)
    app.command(epilog="Example: `squall status --json`")(status)
    app.command(epilog="Example: `squall doctor`")(doctor)


def up(as_json: AsJson = False) -> None:
    """Start object store, Prefect, MLflow and a worker on 127.0.0.1, with schedules, and wait until they answer."""
    from infra import stack
    from infra.deployments import deploy_all
    from tasks import cycle

    given = Settings()
    if not as_json:
        typer.echo("starting object store, Prefect, MLflow and worker on 127.0.0.1 …")
    state = stack.up(given)
    settings = enter()

    def latency(domain: Domain) -> timedelta:
        return cycle.latency(domain, settings)

    deployed = deploy_all(settings, latency)
    if as_json:
        printing.write_json({"ports": state.ports, "notes": state.notes, "deployments": deployed})
        return
    typer.echo(f"Prefect UI  {state.url('prefect')}\nMLflow UI   {state.url('mlflow')}\nS3          {state.url('s3')}")
    typer.echo(f"{len(deployed)} deployments; `squall status` shows the services, `squall down` stops them")
    for note in state.notes:
        typer.echo(f"note: {note}")


def down() -> None:
    """Stop everything `up` started."""
    from infra import stack

    typer.echo("stopped" if stack.down(Settings()) else "nothing was running")


def status(as_json: AsJson = False) -> None:
    """Show every service of the stack, and which domains are replayed."""
    from infra import stack

    seen = stack.status(Settings())
    rows = [
        {
            "service": one.name,
            "condition": one.condition,
            "restarts": one.restarts,
            "memory_mb": one.memory // 1_000_000,
            "url": one.url,
            "detail": one.detail,
        }
        for one in seen
    ]
    if not as_json:
        _show_replays(Settings())
    if not rows and not as_json:
        typer.echo("no stack; start one with `squall up`")
        return
    printing.show_rows("stack", rows, as_json)
    raise typer.Exit(0 if all(one.condition == "healthy" for one in seen) else 1)


def _show_replays(settings: Settings) -> None:
    for domain, clock in replaying(settings).items():
        end = f" until {clock.replay_to:%Y-%m-%d %H:%M} UTC" if clock.replay_to else ""
        typer.echo(
            f"{domain} is replayed: {clock.now():%Y-%m-%d %H:%M} UTC at speed {clock.speed:g}{end}; "
            f"`squall replay {domain} --stop` returns it to now"
        )


def doctor(as_json: AsJson = False) -> None:
    """Check versions, ports, object store, disk, GPU and clock, and say what to do about what is wrong."""
    from infra.health import doctor as examine

    checks = examine(attach(Settings()))
    rows = [
        {"check": c.name, "ok": "yes" if c.ok else "NO", "detail": c.detail, "remedy": "" if c.ok else c.remedy}
        for c in checks
    ]
    printing.show_rows("doctor", rows, as_json)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)
