"""Automations of the Prefect server: runs whose process vanished are crashed, degraded skill starts a training."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from infra.deployments import prefect_server
from infra.settings import Settings

if TYPE_CHECKING:
    from prefect.automations import Automation

# Prefect's least heartbeat is 30 s; two missed ones and some delay of the event pipeline.
HEARTBEAT = timedelta(seconds=30)
ZOMBIE_AFTER = timedelta(seconds=75)
_HEARTBEAT_EVENT = "prefect.flow-run.heartbeat"
_TERMINAL = ("Completed", "Failed", "Cancelled", "Crashed")


def ensure_zombies_crash(settings: Settings) -> None:
    """A run that sent heartbeats and stopped, without an end state, becomes Crashed after `ZOMBIE_AFTER`.

    It happens when worker and flow process are killed together; without this the run stays Running for ever and holds
    its deployment's concurrency slot.
    """
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    trigger = EventTrigger(
        after={_HEARTBEAT_EVENT},
        expect={_HEARTBEAT_EVENT, *(f"prefect.flow-run.{state}" for state in _TERMINAL)},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=ZOMBIE_AFTER,
    )
    crash = ChangeFlowRunState(
        name=None, state=StateType.CRASHED, force=False, message="No heartbeat: the process of this run has vanished."
    )
    _ensure(settings, Automation(name="squall: crash vanished runs", trigger=trigger, actions=[crash]))


def ensure_retraining(settings: Settings, domain: str) -> None:
    """`squall.skill.degraded` of a domain starts `train/<domain>` with the reason the event gives.

    Raises:
        RuntimeError: no Prefect server.
        ValueError: `train/<domain>` is not deployed.
    """
    from prefect.automations import Automation
    from prefect.client.orchestration import get_client
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.exceptions import ObjectNotFound

    name = f"train/{domain}"
    with prefect_server(settings), get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(name)
        except ObjectNotFound as error:
            raise ValueError(f"expected the deployment {name}; deploy the domain first") from error
    known = (deployment.parameter_openapi_schema or {}).get("properties", {})
    parameters: dict[str, object] = {"domain": domain}
    parameters |= {key: _from_payload(key) for key in ("reason", "evidence") if key in known}
    trigger = EventTrigger(
        expect={"squall.skill.degraded"},
        match=ResourceSpecification({"prefect.resource.id": [f"squall.domain.{domain}"]}),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    run = RunDeployment(source="selected", deployment_id=deployment.id, parameters=parameters, job_variables=None)
    _ensure(settings, Automation(name=f"squall: retrain {domain}", trigger=trigger, actions=[run]))


def _from_payload(key: str) -> dict[str, object]:
    """A parameter with the type it has in the event; a bare template would always be a string."""
    template = {"__prefect_kind": "jinja", "template": f"{{{{ event.payload.get('{key}') | tojson }}}}"}
    return {"__prefect_kind": "json", "value": template}


def _ensure(settings: Settings, wanted: Automation) -> None:
    """Exactly one automation of this name, as wanted; an equal one is left alone (a change resets its counters)."""
    from prefect.client.orchestration import get_client

    with prefect_server(settings):
        with get_client(sync_client=True) as client:
            found = client.read_automations_by_name(wanted.name)
            for duplicate in found[1:]:
                client.delete_automation(duplicate.id)
        if not found:
            wanted.create()
        elif _meaning(found[0]) != _meaning(wanted):
            wanted.id = found[0].id
            wanted.update()


def _meaning(automation: object) -> object:
    from pydantic import BaseModel

    if not isinstance(automation, BaseModel):
        raise TypeError(f"expected an automation; got {automation!r}")
    dumped = automation.model_dump(mode="json", include={"trigger": True, "actions": True, "enabled": True})
    dumped["trigger"].pop("id", None)
    return dumped
