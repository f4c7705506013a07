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
OUTAGE_S = 30.0
STEPS = 14
CALM = "e-calm"
NAMES = (
    "a-ingest",
    "a-create",
    "a-publish",
    "b-worker",
    "c-both",
    *(f"d-{service}-{what}" for service in ("weed", "prefect") for what in ("ingest", "publish", "train")),
    "e-train",
    CALM,
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


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> dict[str, bytes]:
    """Parameters of a training that nothing happens to."""
    archive_it(place, CALM)
    domain = place.domain(CALM)
    fitted = fit_model(domain, place.settings, sample_data(domain, place.settings), max_steps=STEPS)
    return chaos.parameters(place.settings, fitted.run_id)


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
def test_a_server_away_for_half_a_minute_costs_no_frame_no_product_and_no_training(
    place: Place, undisturbed: dict[str, bytes], service: str
) -> None:
    """Ingest, publication and training are stopped half-way, the server goes, and all three go on without it."""
    ingested, published, trained = (f"d-{service}-{what}" for what in ("ingest", "publish", "train"))
    settings = place.settings
    for name in (published, trained):
        archive_it(place, name)
    training = start_training(place, trained)
    with place.reader(ingested) as frames, place.reader(published) as products:
        ingest, publication = chaos.ingest_everything(settings, ingested), chaos.nowcast_at_the_end(settings, published)
        (flow,) = eventually(lambda: flow_processes(place.state), 60, "the training's process")
        moments = {
            psutil.Process(ingest.pid): lambda: stored(place, ingested, f"archives/{ingested}") > 0,
            psutil.Process(publication.pid): lambda: stored(place, published, f"{published}/products") > 0,
            flow: lambda: training.step() >= STEPS - 4,
        }
        with chaos.stopped_at(moments, 240) as go_on, away(place, service):
            go_on()
        chaos.outcome(ingest)
        chaos.outcome(publication)
        eventually(lambda: products.products_seen, 30, "the product is seen")
    assert_whole(place, ingested, frames)
    assert products.faults == []
    assert len(chaos.complete_products(place.domain(published), settings)) == 1
    assert_trained(place, training, undisturbed)


def test_a_training_killed_alone_and_with_its_worker_goes_on_to_the_same_bits(
    place: Place, undisturbed: dict[str, bytes]
) -> None:
    archive_it(place, "e-train")
    training = start_training(place, "e-train")
    training.reaches(2)
    kill_flow(place)
    eventually(lambda: state_of(place, training.run, "train") != "Running", 120, "the worker has noticed")
    training.reaches(6)
    assert read_starts(place.settings, str(training.run.id)).step >= 2
    worker = pid_of(place.settings, "worker")
    psutil.Process(worker).kill()
    kill_flow(place)
    assert_trained(place, training, undisturbed)
    assert read_starts(place.settings, str(training.run.id)).step >= 6


def start_training(place: Place, name: str) -> chaos.Training:
    """A training by the worker, as operations start it; its MLflow run has begun."""
    deploy_domain(place.settings, place.domain(name))
    with prefect_client(place.settings) as client:
        ensure_zombies_crash(client)
        ensure_trainings_go_on(client)
    run, tracking = started(place, f"train/{name}", max_steps=STEPS), Tracking(place.settings.tracking_uri)

    def begun() -> str | None:
        return tracking.find_tagged(experiment_of(name), REQUEST_TAG, str(run.id))

    return chaos.Training(place.settings, name, run, eventually(begun, 240, "the training has begun"))


def assert_trained(place: Place, training: chaos.Training, undisturbed: dict[str, bytes]) -> None:
    """The run ends well, with the same bits as an undisturbed one, and registers one version."""
    over = ("Completed", "Failed")
    eventually(lambda: state_of(place, training.run, "train") in over, 400, "the training has ended")
    assert state_of(place, training.run, "train") == "Completed"
    assert chaos.parameters(place.settings, training.run_id) == undisturbed
    (version,) = Tracking(place.settings.tracking_uri).versions(f"{training.name}-earthformer")
    assert version.run_id == training.run_id


def stored(place: Place, name: str, prefix: str) -> int:
    return chaos.listed(place.domain(name), place.settings, prefix)


def state_of(place: Place, run: Any, flow: str = "ingest") -> str:
    return next(str(seen.state_name) for seen in flow_runs(place.settings, flow) if seen.id == run.id)


def kill_flow(place: Place) -> None:
    """SIGKILL whatever process runs a flow."""
    processes = flow_processes(place.state)
    assert processes
    for process in processes:
        process.kill()
