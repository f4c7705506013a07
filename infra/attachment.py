"""Using a running stack: the settings and the environment that lead a process to its services."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import SecretStr

from infra.settings import Settings
from infra.stack_state import BUCKET, folder, load_credentials, running_stack


def attach(settings: Settings) -> Settings:
    """Settings with the endpoints of this state folder's running stack; unchanged when none runs.

    What was set explicitly wins: an endpoint of another object store, tracking server or Prefect server stays, and so
    does a store of the user's own on S3, with the keys to it.
    """
    return settings.model_copy(update=_found(settings))


def running_settings() -> Settings:
    """Settings of this process, attached to the running stack of its state folder, if there is one."""
    return attach(Settings())


def _found(settings: Settings) -> dict[str, object]:
    state = running_stack(settings)
    if state is None:
        return {}
    found: dict[str, object] = {}
    if settings.s3_endpoint is None and not _own_bucket(settings):
        secret = load_credentials(settings)
        found |= {
            "s3_endpoint": state.url("s3"),
            "s3_key": SecretStr(secret.s3_key),
            "s3_secret": SecretStr(secret.s3_secret),
        }
        if "store" not in settings.model_fields_set:
            found["store"] = f"s3://{BUCKET}"
    if settings.mlflow_uri is None:
        found["mlflow_uri"] = state.url("mlflow")
    if settings.prefect_url is None:
        found["prefect_url"] = state.prefect_api
    return found


def _own_bucket(settings: Settings) -> bool:
    return "store" in settings.model_fields_set and settings.store.startswith("s3://")


def environment(settings: Settings) -> dict[str, str]:
    """Variables with which a process started anywhere uses the same places, services and credentials.

    Only what was set or found is passed on, so that a default stays a default. Paths are absolute: flow processes
    run in temporary working folders.
    """
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    found = _found(settings)
    values = {**given, "home": settings.root, "data": settings.data.resolve(), **found}
    variables = {f"SQUALL_{name.upper()}": _text(value) for name, value in values.items() if value is not None}
    api = found.get("prefect_url", settings.prefect_url)
    return variables if api is None else {**variables, **_prefect_client(settings, str(api))}


def _prefect_client(settings: Settings, api: str) -> dict[str, str]:
    return {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder(settings) / "prefect"),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_CLI_PROMPT": "false",
    }


def _text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value.resolve())
    return value if isinstance(value, str) else json.dumps(value)
