"""What `squall doctor` sees and recommends."""

from __future__ import annotations

import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from infra.health import VERSION_TRAPS, Check, doctor, version_trouble
from infra.settings import Settings


def checks(**values: Any) -> dict[str, Check]:
    return {check.name: check for check in doctor(Settings(_env_file=None, **values))}


def test_a_good_machine_passes_and_a_good_check_has_no_remedy(tmp_path: Path) -> None:
    found = checks(home=tmp_path / "home", data=tmp_path)
    assert {name for name, check in found.items() if not check.ok} == set()
    assert {check.remedy for check in found.values()} == {""}
    assert found["object store"].detail.endswith("two conditional writes raced, one won")


def test_the_doctor_leaves_nothing_behind(tmp_path: Path) -> None:
    doctor(Settings(home=tmp_path / "home", data=tmp_path, _env_file=None))
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file() and "lock" not in str(path)] == []


def test_a_state_folder_that_is_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = checks(home=tmp_path / "file" / "home", data=tmp_path)["state folder"]
    assert not found.ok
    assert "SQUALL_HOME" in found.remedy


def test_an_absent_data_folder_is_found(tmp_path: Path) -> None:
    found = checks(home=tmp_path, data=tmp_path / "nowhere")["data folder"]
    assert not found.ok
    assert "SQUALL_DATA" in found.remedy


def test_a_taken_port_is_a_fault_only_where_it_was_asked_for(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        asked = checks(home=tmp_path, data=tmp_path, stack_ports={"mlflow": port})["ports"]
    assert not asked.ok
    assert f"mlflow {port}" in asked.remedy


def test_an_object_store_that_does_not_answer_is_found(tmp_path: Path) -> None:
    found = checks(
        home=tmp_path, data=tmp_path, store="s3://squall", s3_endpoint="http://127.0.0.1:9", s3_key="k", s3_secret="s"
    )
    assert not found["object store"].ok
    assert not found["clock"].ok


def test_a_demanded_gpu_that_is_absent_is_found(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert not checks(home=tmp_path, data=tmp_path, device="cuda")["gpu"].ok


@pytest.mark.parametrize("name", VERSION_TRAPS)
def test_the_installed_versions_are_the_tested_ones(name: str) -> None:
    assert version_trouble(name, *VERSION_TRAPS[name]) is None


def test_a_version_outside_its_range_says_what_will_happen() -> None:
    found = version_trouble("fastapi", "<0.1", "the Prefect server dies at import")
    assert found == f"fastapi {version('fastapi')} is outside <0.1: the Prefect server dies at import"


def test_a_missing_package_is_named() -> None:
    assert version_trouble("no-such-package-anywhere", ">=1", "x") == "no-such-package-anywhere is not installed"


def test_the_ranges_agree_with_what_the_project_declares() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = {"".join(entry.split()) for entry in project["dependencies"]}
    assert {name + allowed for name, (allowed, _) in VERSION_TRAPS.items()} <= declared
