"""Deployments of the flows, one set per domain: `<flow>/<domain>`, scheduled by the domain's cadence.

Flows are named by module entrypoints and found in the installed package, so nothing is pulled and no path is stored.
`prefect.yaml` declares the same for `prefect deploy`; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from infra.attachment import attach
from infra.services import POOL
from infra.settings import Domain, Settings, domain_files, load_domain

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class FlowPlan:
    """How one flow is deployed.

    Attributes:
        entrypoint: Module path of the flow.
        every: Cycles from one scheduled run to the next; None for a flow that is only triggered.
        delay: Part of the schedule's first cycle that it starts later, so that not everything starts at once.
        when_busy: What happens to a run that is due while the previous one still runs: a later cycle makes an earlier
            one worthless, a training does not.
        tags: For filtering in the UI.
    """

    entrypoint: str
    every: int | None
    delay: float
    when_busy: Literal["CANCEL_NEW", "ENQUEUE"]
    tags: tuple[str, ...]


PLANS = {
    "ingest": FlowPlan("flows.ingest.ingest", 1, 0.0, "CANCEL_NEW", ("archive",)),
    "nowcast": FlowPlan("flows.nowcast.nowcast", 1, 0.0, "CANCEL_NEW", ("product",)),
    "verify": FlowPlan("flows.verify.verify", 6, 0.5, "CANCEL_NEW", ("skill",)),
    "train": FlowPlan("flows.train.train", None, 0.0, "ENQUEUE", ("model",)),
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


def deploy_all(settings: Settings) -> list[str]:
    """Deploy every known domain and the automations; only the schedules of `active_domains` run. Gives the names.

    Raises:
        RuntimeError: no Prefect server.
    """
    from infra.automations import ensure_retraining, ensure_zombies_crash

    ensure_zombies_crash(settings)
    names: list[str] = []
    for name in domain_files(settings):
        names += deploy_domain(settings, load_domain(name, settings), active=name in settings.active_domains)
        ensure_retraining(settings, name)
    return names


def deploy_domain(
    settings: Settings,
    domain: Domain,
    *,
    interval: timedelta | None = None,
    anchor: datetime | None = None,
    active: bool = False,
    plans: dict[str, FlowPlan] | None = None,
) -> list[str]:
    """Create or update the deployments of one domain; doing it twice changes nothing.

    Args:
        settings: Which Prefect server.
        domain: The domain.
        interval: Wall time of one cycle; default: the feed's cadence. A replay at speed s passes cadence / s.
        anchor: Wall time at which a cycle's frame can be there; default: full cadence steps plus the feed's latency.
        active: Whether the schedules run.
        plans: Flow plans by name; default: Squall's flows.

    Returns:
        Names `<flow>/<domain>`.

    Raises:
        RuntimeError: no Prefect server.
    """
    step = interval or domain.feed.cadence
    start = anchor or EPOCH + (domain.clock.latency or timedelta(0))
    with prefect_server(settings):
        _ensure_pool()
        chosen = plans or PLANS
        return [_deploy(plan, domain.name, step, start, active) for plan in chosen.values()]


def pause_domain(settings: Settings, domain: str) -> list[str]:
    """Stop the schedules of one domain (runs under way go on); the names of the deployments."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    with prefect_server(settings), get_client(sync_client=True) as client:
        found = client.read_deployments(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[domain])))
        for deployment in found:
            for schedule in deployment.schedules:
                client.update_deployment_schedule(deployment.id, schedule.id, active=False)
        return [deployment.name for deployment in found]


def _ensure_pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))


def _deploy(plan: FlowPlan, domain: str, step: timedelta, start: datetime, active: bool) -> str:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.deployments.runner import RunnerDeployment
    from prefect.schedules import Interval

    schedules = []
    if plan.every is not None:
        schedules = [Interval(step * plan.every, anchor_date=start + step * plan.delay, active=active)]
    deployment = RunnerDeployment.from_entrypoint(
        plan.entrypoint,
        name=domain,
        schedules=schedules,
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy(plan.when_busy), grace_period_seconds=60
        ),
        parameters={"domain": domain},
        tags=["squall", domain, *plan.tags],
        work_pool_name=POOL,
    )
    deployment._path = None
    deployment.apply()
    return deployment.full_name
