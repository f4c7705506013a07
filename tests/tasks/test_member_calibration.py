"""How members are calibrated: the fewest sampler steps that do, a spread that fits the error."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.prediff.configuration import PreDiffConfig
from models.prediff.presets import preset
from tasks.training.stages.member_calibration import calibrate_members, choose_steps

CONTEXT, LEADS = 4, 3


def windows(count: int, seed: int = 5) -> list[NDArray[np.float32]]:
    """Fields (context + leads, y, x) in which every cell drizzles about a steady rate [mm/h]."""
    random = np.random.default_rng(seed)
    steady = random.gamma(2.0, 1.0, (count, 1, 16, 16))
    return list((steady + random.normal(0, 0.5, (count, CONTEXT + LEADS, 16, 16))).clip(0).astype(np.float32))


def samples() -> Any:
    reader = SimpleNamespace(read=lambda chosen: np.stack(chosen))
    return SimpleNamespace(t_in=CONTEXT, t_out=LEADS, reader=lambda: reader)


def config(**changes: object) -> PreDiffConfig:
    return preset("tiny").config("prediff/tiny", None, quantity="rainfall_rate", **changes)


@dataclass
class Drawn:
    """Stands for a PreDiff: the context's mean plus noise, more of it for few steps and a wide spread."""

    config: PreDiffConfig
    noise: dict[int, float]
    steps: int | None = None
    network: Any = field(default_factory=lambda: SimpleNamespace(floor=torch.tensor(0.0)))

    @property
    def sampling(self) -> Any:
        return SimpleNamespace(steps=self.steps or self.config.sampler.steps)

    def forecast(self, context: NDArray[np.float32], leads: int, *, members: int, seed: int) -> NDArray[np.float32]:
        random = np.random.default_rng(seed)
        own = random.normal(0, self.noise[self.sampling.steps], (members, leads, *context.shape[1:]))
        return cast("NDArray[np.float32]", (context.mean(axis=0) + self.config.spread * own).clip(0).astype(np.float32))


def forecaster(noise: dict[int, float], **changes: object) -> Any:
    return Drawn(config(**changes), noise)


def test_the_fewest_steps_within_two_percent_of_the_best_are_the_models_own() -> None:
    found, trials = choose_steps(forecaster({20: 0.5, 10: 1.5}), samples(), windows(3))
    assert [trial.steps for trial in trials] == [20, 10]
    assert found.sampler.steps == 20


@pytest.mark.parametrize(("objective", "steps"), [("flow", 4), ("velocity", 10)])
def test_four_steps_are_tried_of_flows_alone(objective: str, steps: int) -> None:
    even = dict.fromkeys((20, 10, 4), 0.5)
    found, _ = choose_steps(forecaster(even, objective=objective), samples(), windows(3))
    assert found.sampler.steps == steps


def test_members_that_spread_too_little_get_more_noise_at_the_steps_they_take() -> None:
    narrow = forecaster({10: 0.4}, sampler={"steps": 10})
    found, trials = calibrate_members(narrow, samples(), windows(4))
    assert {trial.steps for trial in trials} == {10}
    assert found.spread > 1
    assert found.mapping is not None
    by_factor = {trial.spread: trial.spread_skill for trial in trials}
    assert abs(np.log(by_factor[found.spread])) < abs(np.log(by_factor[1.0]))


def test_without_windows_nothing_is_chosen() -> None:
    with pytest.raises(ValueError, match="validation windows"):
        choose_steps(forecaster({20: 0.5, 10: 0.5}), samples(), [])
