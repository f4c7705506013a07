"""Objectives: what is taught can be turned back into data and noise, and every step learns its own variance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.diffusion import CONTEXT, SHAPE, objective
from models.prediff.objective import DiffusionObjective
from models.prediff.schedule import DiffusionSchedule, mix

KINDS = ("noise", "velocity", "flow")


def pair(seed: int = 0, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64)
    return data, torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(st.integers(0, 999))
def test_the_right_answer_is_interpreted_as_the_data_and_noise_that_were_mixed(kind: str, step: int) -> None:
    rule, t = objective(kind), torch.full((3,), step)
    z0, noise = pair()
    prediction = rule.interpret(rule.target(z0, noise, t), mix(rule.path, z0, noise, t), t)
    torch.testing.assert_close(prediction.data, z0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(prediction.noise, noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_shifted_predictions_still_make_the_same_latent(kind: str) -> None:
    rule, t = objective(kind), torch.tensor([100, 500, 900])
    z0, noise = pair()
    z = mix(rule.path, z0, noise, t)
    prediction = rule.interpret(rule.target(z0, noise, t), z, t)
    for moved in (prediction.with_data_shift(torch.ones_like(z)), prediction.with_noise_shift(torch.ones_like(z))):
        torch.testing.assert_close(moved.alpha * moved.data + moved.sigma * moved.noise, z)
    torch.testing.assert_close(prediction.with_data_shift(torch.ones_like(z)).data, z0 + 1.0)


def test_a_perfect_network_loses_nothing_and_a_silent_one_the_variance_of_the_noise() -> None:
    rule = objective()
    z0, noise = (x.float() for x in pair())
    t = torch.tensor([0, 500, 999])
    assert float(rule(lambda z, t, context: noise, z0, CONTEXT, t, noise).total.detach()) == 0.0
    silent = rule(lambda z, t, context: torch.zeros_like(z), z0, CONTEXT, t, noise)
    torch.testing.assert_close(silent.per_sample, noise.square().flatten(1).mean(1))


def test_each_step_learns_the_logarithm_of_its_own_error() -> None:
    rule = DiffusionObjective(DiffusionSchedule(2))
    z0, t = torch.zeros(2, *SHAPE), torch.tensor([0, 1])
    noise = torch.stack([torch.full(SHAPE, 0.5), torch.full(SHAPE, 2.0)])
    descent = torch.optim.SGD([rule.log_variance], lr=0.2)
    for _ in range(400):
        descent.zero_grad()
        torch.autograd.backward(rule(lambda z, t, context: torch.zeros_like(z), z0, CONTEXT, t, noise).total)
        descent.step()
    assert rule.log_variance.tolist() == pytest.approx([math.log(0.25), math.log(4.0)], abs=1e-3)


def test_a_fixed_variance_takes_no_gradient() -> None:
    rule = DiffusionObjective(learn_log_variance=False)
    z0, noise = (x.float() for x in pair())
    scale = torch.ones((), requires_grad=True)
    torch.autograd.backward(rule(lambda z, t, context: scale * z, z0, CONTEXT, torch.tensor([1, 2, 3]), noise).total)
    assert rule.log_variance.grad is None
    assert scale.grad is not None


def test_steps_are_drawn_uniformly_and_again_from_the_same_seed() -> None:
    rule = DiffusionObjective(DiffusionSchedule(10))
    drawn = rule.draw_steps(5000, torch.Generator().manual_seed(1))
    assert torch.bincount(drawn, minlength=10).min() > 400
    assert torch.equal(drawn, rule.draw_steps(5000, torch.Generator().manual_seed(1)))
