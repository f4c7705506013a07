"""Deployments, schedules and automations on a real server with a real worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import yaml

from builders.probe_flows import trace_folder
from builders.stack import eventually, flow_processes, flow_runs, pid_of, running_stack
from infra import automations, deployments
from infra.attachment import environment
from infra.clock import replaying
from infra.deployments import EPOCH, PLANS, FlowPlan, prefect_client
from infra.settings import ClockSettings, Domain, Settings, load_domain
from infra.stack_state import StackState

PROBES = {
    "probe": FlowPlan("builders.probe_flows.probe", 1, 0.0, "CANCEL_NEW", ("probe",)),
    "lasting": FlowPlan("builders.probe_flows.lasting", None, 0.0, "CANCEL_NEW", ("probe",)),
    "train": FlowPlan("builders.probe_flows.train", None, 0.0, None, ("probe",)),
}
ROOT = Path(__file__).parents[2]


def named(name: str, settings: Settings) -> Domain:
    """The shipped domain of simulated rain under another name: schedules of the tests do not meet."""
    return load_domain("simulated", settings).model_copy(update={"name": name})


def test_without_a_server_nothing_is_deployed_to_a_private_one(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, _env_file=None)
    with pytest.raises(RuntimeError, match="squall up"):
        deployments.deploy_domain(settings, named("simulated", settings))


def test_prefect_yaml_says_what_the_plans_say(tmp_path: Path) -> None:
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    assert declared["pull"] == []
    settings = Settings(home=tmp_path, _env_file=None)
    seen = set()
    for entry in declared["deployments"]:
        flow = entry["entrypoint"].rsplit(".", 1)[1]
        plan, domain = PLANS[flow], load_domain(entry["name"], settings)
        assert entry["entrypoint"] == plan.entrypoint
        assert entry["parameters"] == {"domain": domain.name}
        assert entry["tags"] == ["squall", domain.name, *plan.tags]
        assert entry["work_pool"] == {"name": "squall"}
        assert entry.get("concurrency_limit", {}).get("collision_strategy") == plan.when_busy
        assert declared_schedule(entry) == planned_schedule(plan, domain)
        seen.add((flow, domain.name))
    assert seen == {(flow, domain) for flow in PLANS for domain in ("finland", "simulated")}


def test_the_schedule_follows_a_replay_that_the_domains_file_declares(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, _env_file=None)
    past = datetime(2016, 9, 28, 14, 45, tzinfo=UTC)
    plain = named("declared", settings)
    domain = plain.model_copy(update={"clock": ClockSettings(replay_from=past, speed=10.0)})
    latency = timedelta(seconds=90)
    assert deployments._cycles(settings, domain, False, latency) == (plain.feed.cadence, EPOCH + latency)
    assert replaying(settings) == {}
    step, start = deployments._cycles(settings, domain, True, latency)
    started = replaying(settings)["declared"].started_at
    assert started is not None
    assert (step, start) == (plain.feed.cadence / 10, started + latency / 10)
    assert deployments._cycles(settings, plain.model_copy(update={"name": "x"}), True, latency)[1] == EPOCH + latency


def declared_schedule(entry: dict[str, Any]) -> tuple[timedelta, datetime] | None:
    found = [(timedelta(seconds=s["interval"]), datetime.fromisoformat(s["anchor_date"])) for s in entry["schedules"]]
    return found[0] if found else None


def planned_schedule(plan: FlowPlan, domain: Domain) -> tuple[timedelta, datetime] | None:
    if plan.every is None:
        return None
    assert domain.clock.latency is not None
    return domain.feed.cadence * plan.every, EPOCH + domain.clock.latency + domain.feed.cadence * plan.delay


def start_run(settings: Settings, name: str, **parameters: object) -> Any:
    from prefect.deployments import run_deployment

    with deployments.prefect_server(settings):
        return run_deployment(name, parameters=parameters, timeout=0)


def state_of(settings: Settings, run: Any) -> str:
    return next(str(seen.state_name) for seen in flow_runs(settings, "lasting") if seen.id == run.id)


@dataclass(frozen=True)
class Running:
    """A stack, and a run on it whose worker and process were killed together at the start."""

    settings: Settings
    abandoned: Any


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_stack(tmp_path_factory.mktemp("home")) as (settings, state):
        yield Running(settings, abandon_a_run(settings, state))


def abandon_a_run(settings: Settings, state: StackState) -> Any:
    with prefect_client(settings) as client:
        automations.ensure_zombies_crash(client)
    deployments.deploy_domain(settings, named("zombie", settings), plans=PROBES)
    run = start_run(settings, "lasting/zombie", seconds=600.0)
    eventually((trace_folder(settings, "zombie") / "began").exists, 120, "the run has begun")
    eventually(lambda: state_of(settings, run) == "Running", 20, "the server knows")
    time.sleep(10)  # without a first heartbeat none is missed
    worker = psutil.Process(pid_of(settings, "worker"))
    doomed = [worker, *flow_processes(state)]
    assert len(doomed) > 1
    for process in doomed:
        process.kill()
    return run


@pytest.mark.stack
@pytest.mark.slow
class TestRunning:
    """One server and one worker."""

    def test_deploying_twice_keeps_the_deployments(self, running: Running) -> None:
        settings = running.settings

        def identities() -> list[Any]:
            names = deployments.deploy_domain(settings, named("twice", settings), plans=PROBES)
            with prefect_client(settings) as client:
                automations.ensure_retraining(client, "twice")
                found = [client.read_deployment_by_name(name) for name in names]
                kept = client.read_automations_by_name("squall: retrain twice")
                return [(one.id, len(one.schedules)) for one in found] + [(one.id, 0) for one in kept]

        first = identities()
        assert len(first) == 4
        assert identities() == first

    def test_a_training_deployed_with_a_limit_by_an_earlier_version_loses_it(self, running: Running) -> None:
        def limit(when_busy: Literal["CANCEL_NEW"] | None) -> int | None:
            plan = replace(PROBES["train"], when_busy=when_busy)
            (name,) = deployments.deploy_domain(running.settings, named("limited", running.settings), plans={"t": plan})
            with prefect_client(running.settings) as client:
                found = client.read_deployment_by_name(name).global_concurrency_limit
            return found.limit if found else None

        assert [limit(when_busy) for when_busy in ("CANCEL_NEW", None, None)] == [1, None, None]

    def test_scheduled_runs_are_created_and_run_in_the_stacks_environment(self, running: Running) -> None:
        settings = running.settings
        soon = datetime.now(UTC) + timedelta(seconds=3)
        domain = named("scheduled", settings)
        deployments.deploy_domain(
            settings, domain, interval=timedelta(seconds=10), anchor=soon, active=True, plans={"probe": PROBES["probe"]}
        )
        folder = trace_folder(settings, "scheduled")
        eventually(lambda: folder.exists() and len(list(folder.iterdir())) >= 2, 240, "two scheduled runs")
        assert deployments.pause_domain(settings, "scheduled") == ["scheduled"]
        done = [run for run in flow_runs(settings, "probe") if run.state_name == "Completed"]
        assert done
        assert all(run.auto_scheduled for run in done)
        for run in done:
            assert (run.expected_start_time - soon).total_seconds() % 10 == pytest.approx(0, abs=1e-3)
            assert run.start_time >= run.expected_start_time - timedelta(seconds=1)
        assert json.loads(next(folder.iterdir()).read_text())["store"] == "s3://squall"

    def test_a_run_that_comes_while_another_runs_is_cancelled_and_an_orphan_ends_well(self, running: Running) -> None:
        settings = running.settings
        deployments.deploy_domain(settings, named("busy", settings), plans=PROBES)
        first = start_run(settings, "lasting/busy", seconds=45.0)
        eventually((trace_folder(settings, "busy") / "began").exists, 120, "the first run has begun")
        second = start_run(settings, "lasting/busy", seconds=20.0)
        eventually(lambda: state_of(settings, second) == "Cancelled", 40, "the second is cancelled")
        worker = pid_of(settings, "worker")
        assert worker is not None
        psutil.Process(worker).kill()
        eventually(lambda: pid_of(settings, "worker") not in (None, worker), 60, "a new worker")
        eventually(lambda: state_of(settings, first) == "Completed", 120, "the orphan has completed")
        assert (trace_folder(settings, "busy") / "ended").exists()

    def test_degraded_skill_starts_a_training_with_typed_parameters(self, running: Running) -> None:
        settings = running.settings
        deployments.deploy_domain(settings, named("fading", settings), plans={"train": PROBES["train"]})
        with prefect_client(settings) as client:
            automations.ensure_retraining(client, "fading")
        code = (
            "from prefect.events import emit_event;"
            "emit_event('squall.skill.degraded', {'prefect.resource.id': 'squall.domain.fading'},"
            " payload={'reason': 'CSI fell'})"
        )
        home = Settings(home=settings.root, _env_file=None)
        subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment(home)}, check=True, timeout=60)
        folder = trace_folder(settings, "fading")
        trace = eventually(lambda: list(folder.glob("*.json")) if folder.exists() else None, 180, "a training")
        seen = json.loads(trace[0].read_text())
        assert seen["reason"] == "CSI fell"

    def test_a_run_whose_worker_and_process_were_killed_is_crashed_by_the_automation(self, running: Running) -> None:
        """Last, because it has to wait for missing heartbeats: at least 75 s after the kill."""
        eventually(lambda: state_of(running.settings, running.abandoned) == "Crashed", 150, "the run is crashed")
