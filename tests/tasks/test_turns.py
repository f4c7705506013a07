"""Trainings of deployments follow one another on a machine, also when the first one's process is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from infra.settings import Settings
from tasks import steps
from tasks.training.turns import in_turn

HOLDER = """
import sys, time
from infra.settings import Settings
from tasks.training.turns import in_turn
with in_turn(Settings(home=sys.argv[1], _env_file=None), "train/hill", print):
    print("holding", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, _env_file=None)


def test_one_that_finds_nobody_says_nothing(settings: Settings) -> None:
    said: list[str] = []
    for training in ("train/hill", "train/dale"):
        with in_turn(settings, training, said.append):
            assert said == []


def test_a_turn_is_given_back_by_a_training_that_fails(settings: Settings) -> None:
    with pytest.raises(ValueError, match="no data"), in_turn(settings, "train/hill", print):
        raise ValueError("no data")
    with in_turn(settings, "train/hill", pytest.fail):
        pass


def test_the_second_one_waits_says_so_and_begins_when_the_firsts_process_is_killed(settings: Settings) -> None:
    said: list[str] = []
    waits = threading.Event()

    def say(sentence: str) -> None:
        said.append(sentence)
        waits.set()

    def follow() -> None:
        with in_turn(settings, "train-prediff/dale", say):
            said.append("its turn")

    words = [sys.executable, "-c", HOLDER, str(settings.root)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"holding\n"
        second = threading.Thread(target=follow)
        second.start()
        try:
            assert waits.wait(30)
            assert second.is_alive()
            assert len(said) == 1
        finally:
            first.kill()
        second.join(30)
    assert said[0].startswith("waiting: another training is running on this machine (")
    assert said[1:] == ["the other training is over: train-prediff/dale begins", "its turn"]


def test_runs_of_a_deployment_wait_for_each_other_and_a_command_waits_for_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = settings.root / "turns" / "training.lock"
    with steps.in_turn(settings, "train/hill"):
        assert not lock.exists()
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "a-deployment")
    with steps.in_turn(settings, "train/hill"):
        assert lock.exists()
