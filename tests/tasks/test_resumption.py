"""A request that is repeated goes on with its own training, and gives up where that gets no further."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import Timeout

from infra.settings import Settings
from infra.tracking import Tracking
from tasks.training.resumption import (
    REQUEST_TAG,
    STARTS,
    Starts,
    TrainingStuck,
    alone,
    experiment_of,
    find_begun,
    find_interrupted,
    keep_to,
    read_starts,
    training_folder,
)

TOLD = {"preset": "earthformer/small-64", "seed": 3, "max_steps": 40, "from_model": "/models/parent"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, _env_file=None)


def begin(settings: Settings, request: str, *, described: bool = True) -> str:
    with Tracking(settings.tracking_uri).run(experiment_of("hill"), "small", tags={REQUEST_TAG: request}) as log:
        folder = training_folder(settings, log.run_id)
    folder.mkdir(parents=True)
    if described:
        (folder / "training.json").write_text(json.dumps({"config": TOLD, "archive_snapshot": "S"}))
    return log.run_id


def advance(settings: Settings, run_id: str, step: int) -> None:
    (training_folder(settings, run_id) / "states" / f"step-{step:09d}").mkdir(parents=True)


def test_a_request_finds_the_training_that_it_began_and_no_other(settings: Settings) -> None:
    mine, other = begin(settings, "first"), begin(settings, "second")
    assert find_begun(settings, "hill", "first") == mine
    assert find_begun(settings, "hill", "second") == other
    assert find_begun(settings, "hill", "third") is None
    assert find_begun(settings, "hill", None) is None


def test_a_training_that_was_killed_before_it_described_itself_is_begun_anew(settings: Settings) -> None:
    begin(settings, "early", described=False)
    assert find_begun(settings, "hill", "early") is None


def test_a_training_that_is_killed_at_one_step_every_time_is_given_up(settings: Settings) -> None:
    run_id = begin(settings, "heavy")
    for _ in range(STARTS):
        assert find_begun(settings, "hill", "heavy") == run_id
    with pytest.raises(TrainingStuck, match="killed 4 times at step 0"):
        find_begun(settings, "hill", "heavy")


def test_a_request_that_is_killed_before_it_trains_is_given_up_too(settings: Settings) -> None:
    for _ in range(STARTS):
        assert find_begun(settings, "hill", "never") is None
    with pytest.raises(TrainingStuck):
        find_begun(settings, "hill", "never")


def test_getting_on_by_a_step_gives_a_training_its_starts_back(settings: Settings) -> None:
    run_id = begin(settings, "slow")
    for step in (0, 5, 10):
        advance(settings, run_id, step)
        for _ in range(STARTS):
            assert find_begun(settings, "hill", "slow") == run_id
    assert read_starts(settings, "slow") == Starts(10, STARTS)


def test_half_a_state_counts_as_none(settings: Settings) -> None:
    run_id = begin(settings, "partial")
    advance(settings, run_id, 5)
    (training_folder(settings, run_id) / "states" / "step-000000010.part").mkdir()
    find_begun(settings, "hill", "partial")
    assert read_starts(settings, "partial") == Starts(5, 1)


def test_an_interrupted_training_says_what_it_was_told(settings: Settings) -> None:
    told = find_interrupted(settings, begin(settings, "one"))
    assert (told.preset, told.seed, told.archive_snapshot, told.max_steps) == ("earthformer/small-64", 3, "S", 40)
    assert told.from_model == Path("/models/parent")
    with pytest.raises(ValueError, match=r"expected a training of .*; got 'nonsense'"):
        find_interrupted(settings, "nonsense")


def test_a_training_goes_on_as_it_was_told_and_never_silently_otherwise() -> None:
    told = {"preset": "earthformer/small-64", "max_steps": None, "seed": 3}
    keep_to(told, preset=None, max_steps=None, window=None)
    keep_to(told, preset="earthformer/small-64", seed=3)
    with pytest.raises(ValueError, match="as it was told; got ") as refused:
        keep_to(told, preset="earthformer/large", max_steps=9, window="13:12:64x64", seed=3)
    assert str(refused.value).partition("; got ")[2] == (
        "preset earthformer/large (was earthformer/small-64), max_steps 9 (was not given), window 13:12:64x64 (is kept)"
    )


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    with alone(tmp_path / "training"), pytest.raises(Timeout):
        alone(tmp_path / "training").acquire(timeout=0.1)
