"""The local stack, started and stopped for real."""

from __future__ import annotations

import dataclasses
import os
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from builders.stack import condition_of, eventually, pid_of, running_stack
from infra import stack
from infra.attachment import attach, environment
from infra.processes import ProcessId, marked
from infra.services import PORTS, sockets
from infra.settings import Settings
from infra.stack_state import (
    StackState,
    folder,
    hold,
    load_credentials,
    load_stack,
    log_file,
    now,
    save_state,
)
from infra.stack_state import (
    running_stack as find_running,
)


def settings_at(home: Path, **values: object) -> Settings:
    return Settings(home=home, _env_file=None, **values)  # type: ignore[arg-type]


def planned(supervisor: ProcessId | None = None) -> StackState:
    return StackState("f" * 32, now(), dict(PORTS), "sqlite", (), supervisor)


def test_without_a_stack_there_is_nothing_to_see_or_stop(tmp_path: Path) -> None:
    settings = settings_at(tmp_path)
    assert load_stack(settings) is None
    assert stack.status(settings) == []
    assert stack.down(settings) is False
    assert attach(settings) == settings


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    state = dataclasses.replace(planned(ProcessId(1, 2.5)), notes=("mlflow: port 5000 is in use",))
    save_state(settings_at(tmp_path), state)
    assert load_stack(settings_at(tmp_path)) == state


def test_a_plan_whose_supervisor_is_gone_costs_no_stranger_its_life(
    tmp_path: Path,
) -> None:
    settings = settings_at(tmp_path)
    stranger = ProcessId(os.getpid(), ProcessId.of(os.getpid()).created - 3600)
    save_state(settings, planned(stranger))
    assert find_running(settings) is None
    assert attach(settings).s3_endpoint is None
    assert stack.down(settings) is True
    assert load_stack(settings) is None


def test_credentials_are_made_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    settings = settings_at(tmp_path)
    first = load_credentials(settings)
    assert load_credentials(settings) == first
    assert len(first.s3_secret) == 40
    assert (folder(settings) / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert load_credentials(settings_at(tmp_path / "other")) != first


def test_holds_are_set_and_released_one_by_one(tmp_path: Path) -> None:
    from infra.stack_state import held

    settings = settings_at(tmp_path)
    hold(settings, {"weed": True, "mlflow": True})
    hold(settings, {"weed": False})
    assert held(settings) == {"mlflow"}


def test_what_was_set_wins_over_what_is_found(tmp_path: Path) -> None:
    save_state(settings_at(tmp_path), planned(ProcessId.of(os.getpid())))
    found = attach(settings_at(tmp_path))
    assert (found.s3_endpoint, found.store, found.mlflow_uri, found.prefect_url) == (
        "http://127.0.0.1:8333",
        "s3://squall",
        "http://127.0.0.1:5000",
        "http://127.0.0.1:4200/api",
    )
    kept = attach(settings_at(tmp_path, s3_endpoint="http://elsewhere:9000", store="s3://mine", mlflow_uri="http://ml"))
    assert (kept.s3_endpoint, kept.store, kept.mlflow_uri) == ("http://elsewhere:9000", "s3://mine", "http://ml")
    assert kept.prefect_url == "http://127.0.0.1:4200/api"


def test_a_store_of_the_users_own_on_s3_keeps_its_place_and_keys(tmp_path: Path) -> None:
    save_state(settings_at(tmp_path), planned(ProcessId.of(os.getpid())))
    own = settings_at(tmp_path, store="s3://mine", s3_key="key", s3_secret="secret")
    found = attach(own)
    assert (found.store, found.s3_endpoint) == ("s3://mine", None)
    assert found.storage_options("s3://mine") == {"key": "key", "secret": "secret"}
    assert found.mlflow_uri == "http://127.0.0.1:5000"
    variables = environment(own)
    assert (variables["SQUALL_S3_KEY"], variables["SQUALL_S3_SECRET"]) == ("key", "secret")
    assert "SQUALL_S3_ENDPOINT" not in variables


def test_a_store_in_a_folder_stays_there_and_reaches_the_stacks_buckets(tmp_path: Path) -> None:
    save_state(settings_at(tmp_path), planned(ProcessId.of(os.getpid())))
    found = attach(settings_at(tmp_path, store=str(tmp_path / "store")))
    assert (found.store, found.s3_endpoint) == (str(tmp_path / "store"), "http://127.0.0.1:8333")
    assert found.storage_options("s3://squall")["key"] == load_credentials(found).s3_key


def test_the_environment_leads_another_process_to_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_at(tmp_path, threads=3, stack_ports={"mlflow": 5055}, active_domains=("finland",))
    save_state(settings, planned(ProcessId.of(os.getpid())))
    variables = environment(settings)
    assert variables["SQUALL_HOME"] == str(tmp_path)
    assert variables["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    there = Settings(_env_file=None)
    attached = attach(settings)
    for name in ("s3_endpoint", "s3_key", "s3_secret", "store", "mlflow_uri", "prefect_url", "threads", "stack_ports"):
        assert getattr(there, name) == getattr(attached, name), name
    assert there.active_domains == ("finland",)


def test_without_a_stack_the_environment_names_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SQUALL_THREADS", raising=False)
    assert set(environment(settings_at(tmp_path))) == {"SQUALL_HOME", "SQUALL_DATA"}


def test_a_wanted_port_that_is_taken_is_refused_and_named(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(stack.StackError, match=f"mlflow {port}"):
            stack.up(settings_at(tmp_path), ports={"mlflow": port})


def test_an_unknown_service_has_no_port(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got minio"):
        stack.up(settings_at(tmp_path), ports={"minio": 9000})


def test_random_ports_are_all_different() -> None:
    ports = stack.random_ports()
    assert set(ports) == set(PORTS)
    assert len(set(ports.values())) == len(PORTS)


@pytest.mark.stack
@pytest.mark.slow
def test_a_stack_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    settings = settings_at(tmp_path)
    folder(settings).mkdir()
    (folder(settings) / "weed").touch()
    with pytest.raises(stack.StackError, match="NotADirectoryError"):
        stack.up(settings, ports=stack.random_ports())
    assert load_stack(settings) is None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, StackState]]:
    with running_stack(tmp_path_factory.mktemp("home"), stack_database="postgres") as (settings, state):
        yield settings, state
    assert marked(state.id) == []
    assert not (folder(settings) / "stack.json").exists()
    assert not any(path.exists() for path in sockets(state))


@pytest.mark.stack
@pytest.mark.slow
class TestRunning:
    """One stack, looked at and ill-treated; the order matters only to the clock."""

    def test_every_service_is_healthy_and_answers(self, running: tuple[Settings, StackState]) -> None:
        settings, state = running
        for service in ("weed", "prefect", "mlflow", "worker"):
            eventually(
                lambda service=service: condition_of(settings, service) == "healthy", 30, f"{service} is healthy"
            )
        for url in (state.url("prefect"), state.url("mlflow"), f"{state.prefect_api}/health"):
            with urllib.request.urlopen(url, timeout=10) as reply:
                assert reply.status == 200

    def test_a_database_that_cannot_be_used_is_replaced_and_that_is_said(
        self, running: tuple[Settings, StackState]
    ) -> None:
        state = running[1]
        assert (state.database == "postgres") != any("SQLite instead of PostgreSQL" in note for note in state.notes)

    def test_starting_a_running_stack_changes_nothing(self, running: tuple[Settings, StackState]) -> None:
        settings, state = running
        assert stack.up(settings) == state

    def test_nothing_listens_beyond_this_machine(self, running: tuple[Settings, StackState]) -> None:
        listening = {
            connection.laddr.ip
            for process in marked(running[1].id)
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}

    def test_the_store_takes_our_keys_and_no_others(self, running: tuple[Settings, StackState]) -> None:
        import fsspec

        settings = running[0]
        options = settings.storage_options("s3://squall")
        files = fsspec.filesystem("s3", **options, skip_instance_cache=True)
        files.pipe_file("squall/probe/here", b"rain")
        assert files.cat_file("squall/probe/here") == b"rain"
        with pytest.raises(FileNotFoundError):
            files.pipe_file("no-such-bucket/here", b"rain")
        stranger = fsspec.filesystem("s3", **{**options, "secret": "wrong"}, skip_instance_cache=True)
        with pytest.raises(PermissionError):
            stranger.cat_file("squall/probe/here")

    def test_an_artifact_logged_through_mlflow_lies_in_the_store(self, running: tuple[Settings, StackState]) -> None:
        import fsspec
        from mlflow import MlflowClient

        settings = running[0]
        client = MlflowClient(settings.tracking_uri)
        run = client.create_run(client.create_experiment("probe"))
        client.log_text(run.info.run_id, "0.42", "csi.txt")
        files = fsspec.filesystem("s3", **settings.storage_options("s3://squall"), skip_instance_cache=True)
        assert [path for path in files.find("squall/mlflow") if path.endswith("csi.txt")]

    @pytest.mark.parametrize("service", ["weed", "mlflow"])
    def test_a_killed_service_comes_back_on_its_port_with_what_it_held(
        self, running: tuple[Settings, StackState], service: str
    ) -> None:
        import fsspec

        settings, state = running
        files = fsspec.filesystem("s3", **settings.storage_options("s3://squall"), skip_instance_cache=True)
        files.pipe_file(f"squall/probe/{service}", b"held")
        first = pid_of(settings, service)
        assert first is not None
        psutil.Process(first).kill()
        eventually(lambda: pid_of(settings, service) not in (None, first), 60, "another process")
        eventually(lambda: condition_of(settings, service) == "healthy", 180, f"{service} is healthy again")
        assert files.cat_file(f"squall/probe/{service}") == b"held"
        assert state.ports == load_stack(settings).ports  # type: ignore[union-attr]

    def test_a_held_service_stays_down_until_released(self, running: tuple[Settings, StackState]) -> None:
        settings, state = running
        hold(settings, {"weed": True})
        eventually(lambda: condition_of(settings, "weed") == "held", 30, "held")
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(state.url("s3"), timeout=2)
        hold(settings, {"weed": False})
        eventually(lambda: condition_of(settings, "weed") == "healthy", 90, "healthy")

    def test_survivors_of_a_killed_supervisor_are_seen_and_stopped(self, running: tuple[Settings, StackState]) -> None:
        settings, state = running
        supervisor = load_stack(settings).supervisor  # type: ignore[union-attr]
        assert supervisor is not None
        psutil.Process(supervisor.pid).kill()
        eventually(lambda: condition_of(settings, "weed") == "unsupervised", 10, "seen")
        assert stack.down(settings) is True
        assert marked(state.id) == []
        assert stack.status(settings) == []
        assert log_file(settings, "weed").exists()
