"""Automations of the Prefect server: vanished runs are crashed, crashed trainings go on, degraded skill starts one."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

# Prefect's least heartbeat is 30 s; two missed ones and some delay of the event pipeline.
HEARTBEAT = timedelta(seconds=30)
ZOMBIE_AFTER = timedelta(seconds=75)
_LONGEST_TRAINING = timedelta(days=60)
_HEARTBEAT_EVENT = "prefect.flow-run.heartbeat"
# What a training is told of the event that started it, and what where the event is silent (Jinja literals).
_PASSED_ON = {"reason": "'skill has degraded'"}
_TERMINAL = ("Completed", "Failed", "Cancelled", "Crashed")


def ensure_zombies_crash(client: SyncPrefectClient) -> None:
    """A run that sent heartbeats and stopped, without an end state, becomes Crashed after `ZOMBIE_AFTER`.

    It happens when worker and flow process are killed together; without this the run stays Running for ever and holds
    its deployment's concurrency slot.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
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
    _ensure(client, AutomationCore(name="squall: crash vanished runs", trigger=trigger, actions=[crash]))


def ensure_trainings_go_on(client: SyncPrefectClient) -> None:
    """A `train` run that crashed (its process was killed, or its worker with it) is started again, as the same run.

    It goes on from its newest state and fails where it gets no further. One that failed stays failed, and so does one
    whose process dies before the flow runs at all.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification

    trigger = EventTrigger(
        after={"prefect.flow-run.Running"},
        expect={"prefect.flow-run.Crashed"},
        match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
        match_related=ResourceSpecification({"prefect.resource.role": ["flow"], "prefect.resource.name": ["train"]}),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=_LONGEST_TRAINING,  # counted from Running: with none, a crash would come too late to count
    )
    again = ChangeFlowRunState(
        name="AwaitingRetry",
        state=StateType.SCHEDULED,
        force=False,
        message="Its process has vanished: it goes on from its newest state.",
    )
    _ensure(client, AutomationCore(name="squall: go on with crashed trainings", trigger=trigger, actions=[again]))


def ensure_retraining(client: SyncPrefectClient, domain: str) -> None:
    """`squall.skill.degraded` of a domain starts `train/<domain>` with the reason the event gives.

    Raises:
        ValueError: `train/<domain>` is not deployed.
    """
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.exceptions import ObjectNotFound

    name = f"train/{domain}"
    try:
        deployment = client.read_deployment_by_name(name)
    except ObjectNotFound as error:
        raise ValueError(f"expected the deployment {name}; deploy the domain first") from error
    known = (deployment.parameter_openapi_schema or {}).get("properties", {})
    parameters: dict[str, object] = {"domain": domain}
    parameters |= {key: _from_payload(key, default) for key, default in _PASSED_ON.items() if key in known}
    trigger = EventTrigger(
        expect={"squall.skill.degraded"},
        match=ResourceSpecification({"prefect.resource.id": [f"squall.domain.{domain}"]}),
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    run = RunDeployment(source="selected", deployment_id=deployment.id, parameters=parameters, job_variables=None)
    _ensure(client, AutomationCore(name=f"squall: retrain {domain}", trigger=trigger, actions=[run]))


def _from_payload(key: str, default: str) -> dict[str, object]:
    """A parameter with the type it has in the event; a bare template would always be a string."""
    template = {"__prefect_kind": "jinja", "template": f"{{{{ event.payload.get('{key}', {default}) | tojson }}}}"}
    return {"__prefect_kind": "json", "value": template}


def _ensure(client: SyncPrefectClient, wanted: AutomationCore) -> None:
    """Exactly one automation of this name, as wanted; an equal one is left alone (a change resets its counters)."""
    found = client.read_automations_by_name(wanted.name)
    for duplicate in found[1:]:
        client.delete_automation(duplicate.id)
    if not found:
        client.create_automation(wanted)
    elif _meaning(found[0]) != _meaning(wanted):
        # An update sends only what was set explicitly, which would leave out the kinds of trigger and action.
        client.update_automation(found[0].id, type(wanted)(**wanted.model_dump()))


def _meaning(automation: AutomationCore) -> object:
    dumped = automation.model_dump(mode="json", include={"trigger": True, "actions": True, "enabled": True})
    for unordered in ("after", "expect", "for_each"):
        dumped["trigger"][unordered] = sorted(dumped["trigger"][unordered])
    return dumped
