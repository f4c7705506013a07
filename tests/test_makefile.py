"""`make clean`: a running stack is stopped before the plan that leads to it is removed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose `squall` notes how it was called, and whether the stack's plan was still there."""
    shutil.copy(MAKEFILE, tmp_path)
    squall = tmp_path / ".venv/bin/squall"
    squall.parent.mkdir(parents=True)
    squall.write_text('#!/bin/sh\necho "$SQUALL_HOME: $*, $(ls .squall/stack)" >> calls\nexit $(cat outcome)\n')
    squall.chmod(0o755)
    (tmp_path / "outcome").write_text("0")
    (tmp_path / ".squall/stack").mkdir(parents=True)
    return tmp_path


def clean(checkout: Path) -> int:
    return subprocess.run(["make", "clean"], cwd=checkout, capture_output=True, timeout=60).returncode


def test_cleaning_stops_the_stack_before_its_plan_is_gone(checkout: Path) -> None:
    (checkout / ".squall/stack/stack.json").touch()
    assert clean(checkout) == 0
    assert (checkout / "calls").read_text() == ".squall: down, stack.json\n"
    assert not (checkout / ".squall").exists()


def test_a_stack_that_does_not_stop_keeps_its_plan(checkout: Path) -> None:
    (checkout / ".squall/stack/stack.json").touch()
    (checkout / "outcome").write_text("1")
    assert clean(checkout) != 0
    assert (checkout / ".squall/stack/stack.json").exists()


@pytest.mark.parametrize("lost", [".venv", ".squall", "neither"])
def test_without_a_stack_or_an_environment_cleaning_just_cleans(checkout: Path, lost: str) -> None:
    shutil.rmtree(checkout / lost, ignore_errors=True)
    assert clean(checkout) == 0
    assert not (checkout / ".squall").exists()
    assert not (checkout / "calls").exists()
