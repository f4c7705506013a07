"""Steering by what came out: targets are met although commands are followed weakly, and members stay independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from builders.ensembles import forecaster, tiny_prediff
from builders.networks import rain_context
from models.prediff.constraints import AnyConstraint, DomainMass, ExceedanceArea
from models.prediff.mapping import QuantileMapping
from models.prediff.steering import steer

TARGETS = torch.tensor([0.05, 0.1, 0.4, 0.2])


class Weak:
    """A sampler that follows only a power of the command, each member another one; never below `floor`."""

    def __init__(self, power: float, floor: float = 0.0) -> None:
        self.power, self.floor, self.drawn = power, floor, list[int]()

    def draw(self, numbers: Sequence[int], commands: Tensor) -> Tensor:
        """Frames (m, 2) that all show the same value."""
        self.drawn += numbers
        own = 0.12 * (1 + 0.1 * torch.tensor(numbers))
        value = own * (commands / own) ** self.power
        return value.clamp(min=self.floor)[:, None].expand(-1, 2)


def mean(frames: Tensor) -> Tensor:
    return frames.mean(dim=1)


@pytest.mark.parametrize("power", [0.2, 0.3, 0.6, 1.0])
def test_every_member_meets_its_target_however_weakly_commands_are_followed(power: float) -> None:
    found = mean(steer(Weak(power).draw, mean, TARGETS).frames)
    assert float((found / TARGETS).log().abs().max()) < np.log(1.1)


def test_what_cannot_be_reached_comes_as_near_as_it_can() -> None:
    found = mean(steer(Weak(0.3, floor=0.08).draw, mean, TARGETS).frames)
    assert float(found[0]) == pytest.approx(0.08, rel=0.3)
    assert float((found / TARGETS).log().abs()[1:].max()) < np.log(1.1)


def test_a_member_within_a_tenth_of_its_target_is_drawn_once_and_none_depends_on_the_others() -> None:
    exact = Weak(1.0)
    steer(exact.draw, mean, TARGETS)
    assert exact.drawn == [0, 1, 2, 3]
    whole = steer(Weak(0.3).draw, mean, TARGETS).frames
    assert torch.allclose(whole[:2], steer(Weak(0.3).draw, mean, TARGETS[:2]).frames)


def test_commands_that_served_once_serve_at_the_first_draw() -> None:
    again = Weak(0.3)
    found = steer(Weak(0.3).draw, mean, TARGETS)
    repeated = steer(again.draw, mean, TARGETS, commands=found.commands)
    assert again.drawn == [0, 1, 2, 3]
    torch.testing.assert_close(repeated.frames, found.frames)


def test_more_steps_than_usual_begin_with_the_commands_that_the_usual_steps_found() -> None:
    """Here the usual steps want two draws; more steps then want one more, not two of their own."""
    usual = forecaster(intensity=2.0)
    draws = []
    for steps in (usual.sampling.steps, usual.sampling.steps + 1):
        seen = list[str]()
        told = replace(usual, steps=steps, observe=lambda stage, _, seen=seen: seen.append(stage))
        told.forecast(rain_context(4, (16, 16)), 3, seed=3)
        draws.append(seen.count("sampling"))
    assert draws == [2, 3]


@pytest.mark.parametrize("constraint", [DomainMass(), ExceedanceArea(threshold=0.1)], ids=lambda one: one.kind)
def test_members_are_steered_by_any_quantity_of_their_frames(constraint: AnyConstraint) -> None:
    config, context = tiny_prediff(constraint=constraint), rain_context(4, (16, 16))
    free, steered = (forecaster(config, intensity=n).forecast(context, 3, members=2, seed=1) for n in (None, 2.0))
    assert np.isfinite(steered).all()
    assert not np.array_equal(free, steered)
    model = forecaster(config, intensity=2.0)
    targets = model.anticipate(context).member_targets(2.0, range(2), seed=1).numpy()
    least = 0.01 * config.estimator.scale
    off = [np.abs(np.log(model.achieved(f).clip(least) / targets.clip(least))).sum() for f in (free, steered)]
    assert off[1] <= off[0]


def test_the_published_guidance_draws_once_and_only_along_a_diffusion() -> None:
    seen = list[str]()
    told = {"intensity": 2.0, "guidance": "legacy", "observe": lambda stage, _: seen.append(stage)}
    context, diffusion = rain_context(4, (16, 16)), tiny_prediff(objective="noise")
    legacy = forecaster(diffusion, **told).forecast(context, 3, members=2, seed=1)
    assert seen.count("sampling") == 1
    free = forecaster(diffusion).forecast(context, 3, members=2, seed=1)
    assert not np.array_equal(legacy, free)
    with pytest.raises(ValueError, match="expected calibrated guidance of a flow"):
        forecaster(tiny_prediff(), **told)


def test_a_mapped_ensemble_is_steered_to_what_its_finished_frames_show() -> None:
    mapping = QuantileMapping(drawn=(0.0, 0.05, 2.0), observed=(0.0, 0.0, 2.0))
    model = forecaster(tiny_prediff(mapping=mapping), intensity=0.0)
    context = rain_context(4, (16, 16))
    members = model.forecast(context, 3, members=4, seed=1)
    shown = model.config.transform.forward(torch.from_numpy(members)).mean(dim=(1, 2, 3))
    targets = model.anticipate(context).member_targets(0.0, range(4), seed=1)
    free = forecaster(model.config).forecast(context, 3, members=4, seed=1)
    unsteered = model.config.transform.forward(torch.from_numpy(free)).mean(dim=(1, 2, 3))
    assert float((shown / targets).log().abs().mean()) <= float((unsteered / targets).log().abs().mean())
