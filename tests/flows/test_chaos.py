"""Processes, worker, store and server are killed while frames are archived, products published and models trained.

Nothing may be lost, nothing doubled, and no reader may ever see half of anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import xarray as xr

from builders import chaos
from builders.stack import condition_of, eventually, flow_processes, flow_runs, pid_of, running_stack
from infra.automations import ensure_trainings_go_on, ensure_zombies_crash
from infra.clock import Clock
from infra.deployments import deploy_domain, prefect_client, prefect_server
from infra.objects import open_filesystem
from infra.settings import Domain, Settings, load_domain
from infra.stack_state import StackState, hold
from infra.tracking import Tracking
from tasks.cycle import ingest_frames
from tasks.learning import fit_model, sample_data
from tasks.training.resumption import REQUEST_TAG, experiment_of, read_starts

pytestmark = [pytest.mark.stack, pytest.mark.slow]
NAMES = (
    "a-ingest",
    "a-create",
    "a-publish",
    "b-worker",
    "c-both",
    "d-ingest",
    "d-publish",
    "d-server",
    "e-train",
    "e-calm",
)


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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("home")
    for name in NAMES:
        chaos.declare(home / "domains", name)
    expected = chaos.truth(tmp_path_factory.mktemp("calm"))
    with running_stack(home, domains=home / "domains") as (settings, state):
        chaos.fill(settings, load_domain(NAMES[0], settings))
        yield Place(settings, state, expected)


@contextmanager
def away(place: Place, service: str, seconds: float) -> Iterator[None]:
    """SIGKILL a service and keep it from coming back for a while."""
    process = pid_of(place.settings, service)
    assert process is not None
    psutil.Process(process).kill()
    hold(place.settings, {service: True})
    try:
        eventually(lambda: condition_of(place.settings, service) == "held", 30, "the service is gone")
        time.sleep(seconds)
        yield
    finally:
        hold(place.settings, {service: False})


def assert_whole(place: Place, name: str, reader: chaos.Reader) -> None:
    """Every frame is there, ingesting again finds nothing to do, and the reader saw nothing but whole states."""
    domain = place.domain(name)
    chaos.assert_same_frames(chaos.archived(domain, place.settings), place.expected)
    again = ingest_frames(domain, place.settings, Clock(), chaos.START, chaos.END)
    assert (again.found, again.skipped, again.written, again.corrected) == (chaos.FRAMES, chaos.FRAMES, 0, 0)
    assert reader.faults == []
    assert reader.looks > 0


def archive_it(place: Place, name: str) -> None:
    ingest_frames(place.domain(name), place.settings, Clock(), chaos.START, chaos.END)


def started(place: Place, deployment: str, **parameters: object) -> Any:
    from prefect.deployments import run_deployment

    with prefect_server(place.settings):
        return run_deployment(deployment, parameters=parameters, timeout=0)


def test_an_ingest_killed_at_any_moment_loses_and_doubles_nothing(place: Place) -> None:
    name = "a-ingest"
    domain = place.domain(name)

    def more_objects() -> Callable[[], bool]:
        before = chaos.listed(domain, place.settings, f"archives/{name}")
        return lambda: chaos.listed(domain, place.settings, f"archives/{name}") > before + 5

    with place.reader(name) as reader:
        killed = [
            chaos.kill_when(chaos.ingest_everything(place.settings, name), more_objects(), after)
            for after in (0.0, 0.1)
        ]
        assert any(killed)
        chaos.outcome(chaos.ingest_everything(place.settings, name))
    assert_whole(place, name, reader)


def test_an_ingest_killed_while_the_archive_is_made_can_be_repeated(place: Place) -> None:
    """What SIGKILL inside `Repository.create` leaves: everything but the reference to the branch."""
    name = "a-create"
    domain = place.domain(name)
    archive_it(place, name)
    files, root = open_filesystem(domain.archive.url, place.settings.storage_options(domain.archive.url))
    for path in files.find(root):
        if "/snapshots/1CECHNKREP0F1RSTCMT0" not in path:
            files.rm_file(path)
    archive_it(place, name)
    chaos.assert_same_frames(chaos.archived(domain, place.settings), place.expected)


def test_a_publication_killed_at_any_moment_is_seen_whole_or_not_at_all(place: Place) -> None:
    name = "a-publish"
    archive_it(place, name)
    domain = place.domain(name)

    def uploads(more_than: int) -> bool:
        return chaos.listed(domain, place.settings, f"{name}/products") > more_than

    with place.reader(name) as reader:
        killed = [
            chaos.kill_when(chaos.nowcast_at_the_end(place.settings, name), lambda least=least: uploads(least))
            for least in (0, 40)
        ]
        assert any(killed)
        chaos.outcome(chaos.nowcast_at_the_end(place.settings, name))
        eventually(lambda: reader.products_seen, 30, "the product is seen")
    assert reader.faults == []
    assert len(chaos.complete_products(domain, place.settings)) == 1
    assert reader.products_seen == set(chaos.complete_products(domain, place.settings))


def test_a_worker_killed_alone_leaves_an_orphan_that_may_run_beside_its_replacement(place: Place) -> None:
    name = "b-worker"
    deploy_domain(place.settings, place.domain(name))
    period = {"start": chaos.START.isoformat(), "end": chaos.END.isoformat()}
    with place.reader(name) as reader:
        run = started(place, f"ingest/{name}", **period)
        eventually(lambda: flow_processes(place.state), 60, "the flow process")
        worker = pid_of(place.settings, "worker")
        psutil.Process(worker).kill()
        replacement = chaos.ingest_everything(place.settings, name)
        eventually(lambda: pid_of(place.settings, "worker") not in (None, worker), 30, "a new worker")
        chaos.outcome(replacement)
        eventually(lambda: state_of(place, run) in ("Completed", "Crashed"), 90, "the orphan has ended")
        eventually(lambda: not flow_processes(place.state), 60, "no flow process is left")
    assert_whole(place, name, reader)


def test_worker_and_flow_killed_together_are_healed_by_the_next_run(place: Place) -> None:
    name = "c-both"
    domain = place.domain(name)
    deploy_domain(place.settings, domain)
    period = {"start": chaos.START.isoformat(), "end": chaos.END.isoformat()}
    with place.reader(name) as reader:
        started(place, f"ingest/{name}", **period)
        eventually(lambda: chaos.listed(domain, place.settings, f"archives/{name}"), 90, "the archive appears")
        worker = pid_of(place.settings, "worker")
        for process in (psutil.Process(worker), *flow_processes(place.state)):
            process.kill()
        chaos.outcome(chaos.ingest_everything(place.settings, name))
    assert_whole(place, name, reader)


@pytest.mark.parametrize("service", ["weed", "prefect"])
def test_an_ingest_outlives_the_loss_of_a_server(place: Place, service: str) -> None:
    name = {"weed": "d-ingest", "prefect": "d-server"}[service]
    domain = place.domain(name)
    with place.reader(name) as reader:
        process = chaos.ingest_everything(place.settings, name)
        eventually(lambda: chaos.listed(domain, place.settings, f"archives/{name}"), 60, "the archive appears")
        assert process.poll() is None
        with away(place, service, 8.0):
            pass
        text = process.communicate(timeout=180)[0].decode(errors="replace")
        if service == "weed":
            assert process.returncode == 0, text[-3000:]
        if process.returncode != 0:
            eventually(lambda: pid_of(place.settings, "prefect"), 60, "the server is back")
            chaos.outcome(chaos.ingest_everything(place.settings, name))
    assert_whole(place, name, reader)


def test_a_publication_outlives_the_loss_of_the_store(place: Place) -> None:
    name = "d-publish"
    archive_it(place, name)
    domain = place.domain(name)
    with place.reader(name) as reader:
        process = chaos.nowcast_at_the_end(place.settings, name)
        eventually(lambda: chaos.listed(domain, place.settings, f"{name}/products"), 60, "the upload has begun")
        with away(place, "weed", 8.0):
            pass
        chaos.outcome(process)
        eventually(lambda: reader.products_seen, 30, "the product is seen")
    assert reader.faults == []
    assert len(chaos.complete_products(domain, place.settings)) == 1


def test_a_training_killed_alone_and_with_its_worker_goes_on_to_the_same_bits(place: Place) -> None:
    name, steps = "e-train", 14
    settings, domain = place.settings, place.domain(name)
    for each in (name, "e-calm"):
        archive_it(place, each)
    deploy_domain(settings, domain)
    with prefect_client(settings) as client:
        ensure_zombies_crash(client)
        ensure_trainings_go_on(client)
    tracking = Tracking(settings.tracking_uri)
    run = started(place, f"train/{name}", max_steps=steps)
    run_id = eventually(
        lambda: tracking.find_tagged(experiment_of(name), REQUEST_TAG, str(run.id)), 240, "the training has begun"
    )

    def reaches(step: int) -> None:
        eventually(lambda: chaos.training_step(settings, run_id) >= step, 180, f"step {step}")

    reaches(2)
    kill_flow(place)
    eventually(lambda: state_of(place, run, "train") != "Running", 120, "the worker has noticed")
    reaches(6)
    assert read_starts(settings, str(run.id)).step >= 2
    worker = pid_of(settings, "worker")
    psutil.Process(worker).kill()
    kill_flow(place)
    calm = fit_calmly(place, "e-calm", steps)
    eventually(lambda: state_of(place, run, "train") == "Completed", 400, "the training has ended")
    assert read_starts(settings, str(run.id)).step >= 6
    assert chaos.parameters(settings, run_id) == chaos.parameters(settings, calm)
    (version,) = tracking.versions(f"{name}-earthformer")
    assert version.run_id == run_id


def state_of(place: Place, run: Any, flow: str = "ingest") -> str:
    return next(str(seen.state_name) for seen in flow_runs(place.settings, flow) if seen.id == run.id)


def kill_flow(place: Place) -> None:
    """SIGKILL whatever process runs a flow."""
    processes = flow_processes(place.state)
    assert processes
    for process in processes:
        process.kill()


def fit_calmly(place: Place, name: str, steps: int) -> str:
    """The same training, undisturbed; its MLflow run."""
    domain = place.domain(name)
    data = sample_data(domain, place.settings)
    return fit_model(domain, place.settings, data, max_steps=steps).run_id
