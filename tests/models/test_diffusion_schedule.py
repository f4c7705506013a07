"""Paths from data to noise: their vectors agree with their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.prediff.schedule import DiffusionSchedule, StraightPath, mix

SCHEDULE = DiffusionSchedule()


def test_the_published_schedule_ends_with_a_little_signal_left() -> None:
    assert SCHEDULE.steps == 1000
    assert float(SCHEDULE.betas[0]) == pytest.approx(1e-4, rel=1e-12)
    assert float(SCHEDULE.betas[-1]) == pytest.approx(2e-2, rel=1e-12)
    assert float(SCHEDULE.alphas_cumprod[-1]) == pytest.approx(7.334e-4, rel=1e-3)


def test_one_step_back_from_clean_data_has_no_variance() -> None:
    assert float(SCHEDULE.posterior_variance[0]) == 0.0
    data, noisy = SCHEDULE.posterior_mean_weights
    assert float(data[0]) == pytest.approx(1.0)
    assert float(noisy[0]) == 0.0


@settings(deadline=None)
@given(st.integers(1, 999))
def test_posterior_and_transition_compose_to_the_marginal(t: int) -> None:
    """Drawing z_{t-1} from its posterior given z_t = alpha z_0 + sigma e leaves alpha_{t-1} z_0 and sigma_{t-1}."""
    data, noisy = (weights[t] for weights in SCHEDULE.posterior_mean_weights)
    alpha, sigma = SCHEDULE.coefficients(torch.tensor([t - 1, t]))
    assert float(data + noisy * alpha[1]) == pytest.approx(float(alpha[0]))
    variance = noisy**2 * sigma[1] ** 2 + SCHEDULE.posterior_variance[t]
    assert float(variance) == pytest.approx(float(sigma[0] ** 2))


@settings(deadline=None)
@given(st.integers(0, 999))
def test_a_step_is_found_again_from_its_ratio_of_data_to_noise(t: int) -> None:
    alpha, sigma = SCHEDULE.coefficients(torch.tensor(t))
    assert SCHEDULE.nearest_step(float(alpha.float()), float(sigma.float())) == t
    assert SCHEDULE.nearest_step(3.0 * float(alpha), 3.0 * float(sigma)) == t


def test_pure_noise_is_the_last_step_and_clean_data_the_first() -> None:
    assert SCHEDULE.nearest_step(0.0, 1.0) == 999
    assert SCHEDULE.nearest_step(1.0, 0.0) == 0


def test_a_straight_path_ends_in_pure_noise() -> None:
    alpha, sigma = StraightPath(4).coefficients(torch.arange(4))
    assert alpha.tolist() == [0.75, 0.5, 0.25, 0.0]
    assert sigma.tolist() == [0.25, 0.5, 0.75, 1.0]


def test_every_sample_is_mixed_at_its_own_step() -> None:
    z0, noise = torch.ones(2, 1, 1, 1, 1), torch.zeros(2, 1, 1, 1, 1)
    mixed = mix(StraightPath(4), z0, noise, torch.tensor([0, 3]))
    assert mixed.flatten().tolist() == [0.75, 0.0]
    assert mixed.dtype == torch.float32


@pytest.mark.parametrize(("steps", "first", "last"), [(0, 1e-4, 2e-2), (10, 0.0, 2e-2), (10, 2e-2, 1e-4)])
def test_an_impossible_schedule_is_refused(steps: int, first: float, last: float) -> None:
    with pytest.raises(ValueError, match="expected at least one step"):
        DiffusionSchedule(steps, first, last)


def test_a_schedule_of_one_step_has_finite_vectors() -> None:
    schedule = DiffusionSchedule(1)
    assert torch.isfinite(schedule.bound_weights).all()
    assert torch.isfinite(schedule.posterior_variance).all()
