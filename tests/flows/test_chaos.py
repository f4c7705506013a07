"""Processes, worker, store and server are killed while frames are archived, products published and models trained.

Nothing may be lost, nothing doubled, and no reader may ever see half of anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psutil
import pytest

from builders import chaos
from builders.chaos_stack import (
    STEPS,
    Place,
    Work,
    archive_it,
    away,
    process_of,
    start_training,
    state_of,
)
from builders.stack import condition_of, eventually, flow_processes, pid_of, running_stack
from infra.clock import Clock
from infra.objects import open_filesystem
from infra.settings import load_domain
from infra.tracking import Tracking
from tasks.cycle import ingest_frames
from tasks.learning import fit_model, sample_data
from tasks.training.resumption import read_starts

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(2400)]
CALM = "e-calm"
OVER = ("Completed", "Failed", "Crashed")
NAMES = (
    "a-ingest",
    "a-create",
    "a-publish",
    *(f"{case}-{what}" for case in ("b", "c", "d-weed", "d-prefect") for what in ("ingest", "publish", "train")),
    "e-train",
    CALM,
)


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


def assert_whole(place: Place, name: str, reader: chaos.Reader) -> None:
    """Every frame is there, ingesting again finds nothing to do, and the reader saw nothing but whole states."""
    domain = place.domain(name)
    chaos.assert_same_frames(chaos.archived(domain, place.settings), place.expected)
    again = ingest_frames(domain, place.settings, Clock(), chaos.START, chaos.END)
    assert (again.found, again.skipped, again.written, again.corrected) == (chaos.FRAMES, chaos.FRAMES, 0, 0)
    assert reader.faults == []
    assert reader.looks > 0


def assert_published(place: Place, name: str, reader: chaos.Reader) -> None:
    """There is one product, and a reader saw it whole or not at all."""
    eventually(lambda: reader.products_seen, 90, "the product is seen")
    assert reader.faults == []
    complete = chaos.complete_products(place.domain(name), place.settings)
    assert reader.products_seen == set(complete)
    assert len(complete) == 1


def assert_both(work: Work, frames: chaos.Reader, products: chaos.Reader) -> None:
    ingested, published = work.names
    assert_published(work.place, published, products)
    assert_whole(work.place, ingested, frames)


def assert_trained(training: chaos.Training | None, undisturbed: dict[str, bytes]) -> None:
    """The run ends well, with the same bits as an undisturbed one, and registers one version."""
    assert training is not None
    over = ("Completed", "Failed")
    eventually(lambda: state_of(training.settings, training.run, "train") in over, 600, "the training has ended")
    assert state_of(training.settings, training.run, "train") == "Completed"
    assert chaos.parameters(training.settings, training.run_id) == undisturbed
    (version,) = Tracking(training.settings.tracking_uri).versions(f"{training.name}-earthformer")
    assert version.run_id == training.run_id


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
        assert_published(place, name, reader)


def test_a_worker_killed_alone_leaves_orphans_that_may_run_beside_their_replacements(
    place: Place, undisturbed: dict[str, bytes]
) -> None:
    work = Work.begin(place, "b", train=True)
    with work.watched() as readers, work.training_stopped() as train_on:
        runs = work.by_the_worker()
        with work.both_stopped(*(process_of(place, run) for run in runs.values())) as go_on:
            worker = pid_of(place.settings, "worker")
            psutil.Process(worker).kill()
            train_on()
            go_on()
            for replacement in work.by_commands():
                chaos.outcome(replacement)
        eventually(lambda: pid_of(place.settings, "worker") not in (None, worker), 60, "a new worker")
        for flow, run in runs.items():
            eventually(
                lambda flow=flow, run=run: state_of(place.settings, run, flow) in OVER, 300, f"the {flow} has ended"
            )
        assert_both(work, *readers)
    assert_trained(work.training, undisturbed)


def test_worker_and_flows_killed_together_are_healed_by_the_next_run(place: Place) -> None:
    work = Work.begin(place, "c")
    with work.watched() as readers:
        runs = work.by_the_worker()
        flows = [process_of(place, run) for run in runs.values()]
        with work.both_stopped(*flows):
            for process in (psutil.Process(pid_of(place.settings, "worker")), *flows):
                process.kill()
        for command in work.by_commands():
            chaos.outcome(command)
        assert_both(work, *readers)


@pytest.mark.parametrize("service", ["weed", "prefect"])
def test_a_server_away_for_half_a_minute_costs_no_frame_no_product_and_no_training(
    place: Place, undisturbed: dict[str, bytes], service: str
) -> None:
    """Ingest, publication and training are stopped half-way, the server goes, and all three go on without it."""
    work = Work.begin(place, f"d-{service}", train=True)
    with work.watched() as readers, work.training_stopped() as train_on:
        commands = work.by_commands()
        with work.both_stopped(*commands) as go_on, away(place, service):
            train_on()
            go_on()
        for command in commands:
            chaos.outcome(command)
        assert_both(work, *readers)
    assert_trained(work.training, undisturbed)


def test_a_training_killed_alone_and_with_its_worker_goes_on_to_the_same_bits(
    place: Place, undisturbed: dict[str, bytes]
) -> None:
    eventually(lambda: condition_of(place.settings, "prefect") == "healthy", 120, "the server is there")
    archive_it(place, "e-train")
    training = start_training(place, "e-train")
    training.reaches(2)
    kill_flow(place)
    eventually(lambda: state_of(place.settings, training.run, "train") != "Running", 300, "the worker has noticed")
    training.reaches(6)
    assert read_starts(place.settings, str(training.run.id)).step >= 2
    worker = pid_of(place.settings, "worker")
    psutil.Process(worker).kill()
    kill_flow(place)
    assert_trained(training, undisturbed)
    assert read_starts(place.settings, str(training.run.id)).step >= 6


def kill_flow(place: Place) -> None:
    """SIGKILL whatever process runs a flow."""
    processes = flow_processes(place.state)
    assert processes
    for process in processes:
        process.kill()
