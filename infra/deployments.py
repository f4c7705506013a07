"""Deployments of the flows, one set per domain: `<flow>/<domain>`, scheduled by the domain's cadence.

Flows are named by module entrypoints and found in the installed package, so nothing is pulled and no path is stored.
`prefect.yaml` declares the same for `prefect deploy`; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from infra.attachment import attach
from infra.clock import read_clock
from infra.services import POOL
from infra.settings import Domain, Settings, domain_files, load_domain

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import ConcurrencyOptions

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class FlowPlan:
    """How one flow is deployed.

    Attributes:
        entrypoint: Module path of the flow.
        every: Cycles from one scheduled run to the next; None for a flow that is only triggered.
        delay: Part of the schedule's first cycle that it starts later, so that not everything starts at once.
        when_busy: What happens to a run that is due while the previous one still runs: a later cycle makes an earlier
            one worthless. None: Prefect limits nothing, as the flow waits for its turn by itself; a limit is a lease
            of the server, without which a run that is started again in a new process would be ended.
        tags: For filtering in the UI.
        parameters: Of the scheduled runs, beside the domain.
    """

    entrypoint: str
    every: int | None
    delay: float
    when_busy: Literal["CANCEL_NEW"] | None
    tags: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)


PLANS = {
    "ingest": FlowPlan("flows.ingest.ingest", 1, 0.0, "CANCEL_NEW", ("archive",)),
    "nowcast": FlowPlan("flows.nowcast.nowcast", 1, 0.0, "CANCEL_NEW", ("product",)),
    "verify": FlowPlan("flows.verify.verify", 6, 0.5, "CANCEL_NEW", ("skill",)),
    "train": FlowPlan("flows.train.train", None, 0.0, None, ("model",)),
}


@contextmanager
def prefect_server(settings: Settings) -> Iterator[str]:
    """Talk to the configured Prefect server (or to that of the running stack) inside the block; gives its address.

    Raises:
        RuntimeError: there is none. Prefect would silently start a private one that nobody sees.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    address = attach(settings).prefect_url
    if address is None:
        raise RuntimeError("expected a Prefect server; start the stack with `squall up` or set SQUALL_PREFECT_URL")
    with temporary_settings({PREFECT_API_URL: address}):
        yield address


@contextmanager
def prefect_client(settings: Settings) -> Iterator[SyncPrefectClient]:
    """A connection to that server. Raises RuntimeError where there is none."""
    from prefect.client.orchestration import get_client

    with prefect_server(settings), get_client(sync_client=True) as client:
        yield client


def deploy_all(settings: Settings, latency: Callable[[Domain], timedelta] | None = None) -> list[str]:
    """Deploy every known domain and the automations; only the schedules of `active_domains` run. Gives the names.

    Args:
        settings: Which Prefect server, and where domain files are.
        latency: Of a domain; default: what its file says.

    Raises:
        RuntimeError: no Prefect server.
    """
    from infra.automations import ensure_retraining, ensure_trainings_go_on, ensure_zombies_crash

    names: list[str] = []
    with prefect_client(settings) as client:
        ensure_zombies_crash(client)
        ensure_trainings_go_on(client)
        for name in domain_files(settings):
            domain, active = load_domain(name, settings), name in settings.active_domains
            delay = latency(domain) if latency else None
            names += deploy_domain(settings, domain, active=active, latency=delay, client=client)
            ensure_retraining(client, name)
    return names


def deploy_domain(
    settings: Settings,
    domain: Domain,
    *,
    interval: timedelta | None = None,
    anchor: datetime | None = None,
    active: bool = False,
    latency: timedelta | None = None,
    plans: Mapping[str, FlowPlan] = MappingProxyType(PLANS),
    client: SyncPrefectClient | None = None,
) -> list[str]:
    """Create or update the deployments of one domain; doing it twice changes nothing.

    Args:
        settings: Which Prefect server.
        domain: The domain.
        interval: Wall time of one cycle; default: the feed's cadence, in a replay at speed s cadence / s.
        anchor: Wall time at which a cycle's frame can be there; default: full cadence steps, in a replay those since
            its start, plus the latency.
        active: Whether the schedules run. Only then is the clock read, which starts a replay that the domain's file
            declares.
        latency: From a frame's time to its being there; default: what the domain's file says, else none.
        plans: Flow plans by name; default: Squall's flows.
        client: An open connection, where there is one.

    Returns:
        Names `<flow>/<domain>`.

    Raises:
        RuntimeError: no Prefect server.
    """
    if client is None:
        with prefect_client(settings) as opened:
            return deploy_domain(
                settings,
                domain,
                interval=interval,
                anchor=anchor,
                active=active,
                latency=latency,
                plans=plans,
                client=opened,
            )
    due = _cycles(settings, domain, active, latency or domain.clock.latency or timedelta(0))
    step, start = interval or due[0], anchor or due[1]
    _ensure_pool(client)
    return [_deploy(client, plan, domain.name, step, start, active) for plan in plans.values()]


def _cycles(settings: Settings, domain: Domain, active: bool, latency: timedelta) -> tuple[timedelta, datetime]:
    """Wall time of one cycle, and of one moment at which a cycle's frame can be there."""
    clock = read_clock(domain, settings) if active else None
    if clock is None or clock.replay_from is None:
        return domain.feed.cadence, EPOCH + latency
    return domain.feed.cadence / clock.speed, clock.wall(clock.replay_from + latency)


def pause_domain(settings: Settings, domain: str) -> list[str]:
    """Stop the schedules of one domain (runs under way go on); the names of the deployments."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    with prefect_client(settings) as client:
        found = client.read_deployments(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[domain])))
        for deployment in found:
            for schedule in deployment.schedules:
                client.update_deployment_schedule(deployment.id, schedule.id, active=False)
        return [deployment.name for deployment in found]


def _ensure_pool(client: SyncPrefectClient) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))


def _deploy(
    client: SyncPrefectClient, plan: FlowPlan, domain: str, step: timedelta, start: datetime, active: bool
) -> str:
    """One request that creates or replaces: schedules and the runs already scheduled are those of the last call."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import IntervalSchedule
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    flow: Any = load_flow_from_entrypoint(plan.entrypoint, use_placeholder_flow=False)
    schedules = []
    if plan.every is not None:
        schedule = IntervalSchedule(interval=step * plan.every, anchor_date=start + step * plan.delay, timezone="UTC")
        schedules = [DeploymentScheduleCreate(schedule=schedule, active=active)]
    client.create_deployment(
        client.create_flow_from_name(flow.name),
        domain,
        schedules=schedules,
        concurrency_limit=1 if plan.when_busy else None,  # None takes away a limit that an earlier deployment had
        concurrency_options=_when_busy(plan),
        parameters={"domain": domain, **plan.parameters},
        description=flow.description,
        work_pool_name=POOL,
        tags=["squall", domain, *plan.tags],
        entrypoint=plan.entrypoint,
        parameter_openapi_schema=parameter_schema(flow).model_dump(exclude_unset=True),
        paused=False,
        pull_steps=[],
        enforce_parameter_schema=True,
        job_variables={},
    )
    return f"{flow.name}/{domain}"


def _when_busy(plan: FlowPlan) -> ConcurrencyOptions | None:
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions

    if plan.when_busy is None:
        return None
    return ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(plan.when_busy), grace_period_seconds=60)
