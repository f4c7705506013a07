"""The running stack as a place where work is interrupted: an ingest, a publication and a training half-way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
import xarray as xr

from builders import chaos
from builders.stack import condition_of, eventually, flow_processes, flow_runs, pid_of
from infra.automations import ensure_trainings_go_on, ensure_zombies_crash
from infra.clock import Clock
from infra.deployments import deploy_domain, prefect_client, prefect_server
from infra.settings import Domain, Settings, load_domain
from infra.stack_state import StackState, hold
from infra.tracking import Tracking
from tasks.cycle import ingest_frames
from tasks.training.resumption import REQUEST_TAG, experiment_of

STEPS = 14
OUTAGE_S = 30.0
_RUN = "PREFECT__FLOW_RUN_ID"


@dataclass(frozen=True)
class Place:
    """The running stack and what its archives have to become."""

    settings: Settings
    state: StackState
    expected: xr.Dataset

    def domain(self, name: str) -> Domain:
        return load_domain(name, self.settings)

    def reader(self, name: str) -> chaos.Reader:
        return chaos.Reader(self.domain(name), self.settings, self.expected)


@contextmanager
def away(place: Place, service: str) -> Iterator[None]:
    """SIGKILL a service; it stays away for half a minute after the block has been entered."""
    process = pid_of(place.settings, service)
    assert process is not None
    psutil.Process(process).kill()
    hold(place.settings, {service: True})
    try:
        eventually(lambda: condition_of(place.settings, service) == "held", 30, "the service is gone")
        yield
        time.sleep(OUTAGE_S)
    finally:
        hold(place.settings, {service: False})


def archive_it(place: Place, name: str) -> None:
    ingest_frames(place.domain(name), place.settings, Clock(), chaos.START, chaos.END)


def started(place: Place, deployment: str, **parameters: object) -> Any:
    from prefect.deployments import run_deployment

    with prefect_server(place.settings):
        return run_deployment(deployment, parameters=parameters, timeout=0)


@dataclass(frozen=True)
class Work:
    """An ingest and a publication, each of a domain of its own, and perhaps a training that the worker runs."""

    place: Place
    case: str
    training: chaos.Training | None

    @classmethod
    def begin(cls, place: Place, case: str, *, train: bool = False) -> Work:
        eventually(lambda: condition_of(place.settings, "prefect") == "healthy", 120, "the server is there")
        for name in (f"{case}-publish", f"{case}-train")[: 1 + train]:
            archive_it(place, name)
        return cls(place, case, start_training(place, f"{case}-train") if train else None)

    @property
    def names(self) -> tuple[str, str]:
        return f"{self.case}-ingest", f"{self.case}-publish"

    @contextmanager
    def watched(self) -> Iterator[tuple[chaos.Reader, chaos.Reader]]:
        ingested, published = self.names
        with self.place.reader(ingested) as frames, self.place.reader(published) as products:
            yield frames, products

    def by_commands(self) -> tuple[psutil.Popen, psutil.Popen]:
        ingested, published = self.names
        settings = self.place.settings
        return chaos.ingest_everything(settings, ingested), chaos.nowcast_at_the_end(settings, published)

    def by_the_worker(self) -> dict[str, Any]:
        ingested, published = self.names
        for name in self.names:
            deploy_domain(self.place.settings, self.place.domain(name))
        start, end = chaos.START.isoformat(), chaos.END.isoformat()
        return {
            "ingest": started(self.place, f"ingest/{ingested}", start=start, end=end),
            "nowcast": started(self.place, f"nowcast/{published}", at=end),
        }

    @contextmanager
    def training_stopped(self) -> Iterator[Callable[[], None]]:
        """The training, where there is one, four steps before its end; gives what lets it go on."""
        training = self.training
        steps: dict[psutil.Process, Callable[[], bool]] = {}
        if training is not None:
            steps[process_of(self.place, training.run)] = lambda: training.step() >= STEPS - 4
        with chaos.stopped_at(steps, 240) as go_on:
            yield go_on

    @contextmanager
    def both_stopped(self, ingest: psutil.Process, publication: psutil.Process) -> Iterator[Callable[[], None]]:
        """Ingest and publication when the first objects of archive and product are there."""
        ingested, published = self.names
        moments: dict[psutil.Process, Callable[[], bool]] = {
            ingest: lambda: stored(self.place, ingested, f"archives/{ingested}") > 0,
            publication: lambda: stored(self.place, published, f"{published}/products") > 0,
        }
        with chaos.stopped_at(moments, 240) as go_on:
            yield go_on


def start_training(place: Place, name: str) -> chaos.Training:
    """A training by the worker, as operations start it; its MLflow run has begun."""
    deploy_domain(place.settings, place.domain(name))
    with prefect_client(place.settings) as client:
        ensure_zombies_crash(client)
        ensure_trainings_go_on(client)
    run, tracking = started(place, f"train/{name}", max_steps=STEPS), Tracking(place.settings.tracking_uri)

    def begun() -> str | None:
        return tracking.find_tagged(experiment_of(name), REQUEST_TAG, str(run.id))

    return chaos.Training(place.settings, name, run, eventually(begun, 600, "the training has begun"))


def stored(place: Place, name: str, prefix: str) -> int:
    return chaos.listed(place.domain(name), place.settings, prefix)


def state_of(settings: Settings, run: Any, flow: str) -> str:
    """What the server says of a run."""
    return next(str(seen.state_name) for seen in flow_runs(settings, flow) if seen.id == run.id)


def process_of(place: Place, run: Any) -> psutil.Process:
    """The process that runs a flow run, as soon as there is one."""

    def is_it(process: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):
            return bool(process.environ().get(_RUN) == str(run.id))
        return False

    def found() -> psutil.Process | None:
        return next(filter(is_it, flow_processes(place.state)), None)

    process: psutil.Process = eventually(found, 300, f"the process of {run.name}")
    return process
