"""STEPS beyond the contract of all forecasters: what an ensemble has to be, and worlds without anything to imitate."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.baselines.extrapolation import Extrapolation
from models.baselines.steps import Steps

Fields = NDArray[np.float32]


def showers(frames: int = 3, side: int = 64, speed: int = 1, seed: int = 0) -> Fields:
    """Smooth showers [mm h-1] (frames, side, side), a third of the area, that drift along x and change a little."""
    from scipy.ndimage import gaussian_filter

    draw = np.random.default_rng(seed)
    steady, changing = (gaussian_filter(draw.normal(size=(side, side)), 3.0, mode="wrap") for _ in range(2))
    out = []
    for frame in range(frames):
        field = np.roll(steady + 0.2 * frame * changing, speed * frame, axis=1) / steady.std()
        out.append(np.where(field > 0.5, np.expm1(np.clip(field, 0, 4)), 0.0))
    return np.stack(out).astype(np.float32)


def test_members_differ_and_rain_of_the_right_amount_spreads_with_lead_time() -> None:
    context = showers()
    forecast = Steps().forecast(context, 6, members=6, seed=1)
    spread = np.nanmean(forecast[:, :, 8:-8, 16:-16].std(axis=0), axis=(1, 2))
    assert spread[0] > 0
    assert spread[-1] > spread[0]
    assert np.nanmean(forecast) == pytest.approx(float(context[-1].mean()), rel=0.35)


def test_another_seed_is_another_ensemble_and_the_global_generator_is_left_alone() -> None:
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one, other = (Steps().forecast(showers(), 1, members=2, seed=seed) for seed in (1, 2))
    assert not np.array_equal(one, other, equal_nan=True)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_it_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Steps().forecast(showers(side=32), 1)
    assert capsys.readouterr().out == ""


def test_a_dry_world_is_dry_in_every_member_and_unobserved_cells_stay_so() -> None:
    context = np.zeros((3, 32, 32), np.float32)
    context[:, :4] = np.nan
    forecast = Steps().forecast(context, 3, members=4)
    assert np.isnan(forecast[:, :, :4]).all()
    assert (forecast[:, :, 4:] == 0).all()


def test_a_single_wet_pixel_is_clutter_and_no_rain() -> None:
    context = np.zeros((3, 64, 64), np.float32)
    context[:, 5, 5] = 20.0
    assert (Steps().forecast(context, 2, members=2) == 0).all()


@pytest.mark.parametrize("world", ["older frames dry", "oldest frame lost", "everywhere the same"])
def test_without_an_evolution_to_go_on_with_it_is_extrapolation(world: str) -> None:
    context = showers()
    if world == "older frames dry":
        context[:2] = 0.0
    elif world == "oldest frame lost":
        context[0] = np.nan
    else:
        context[:] = 3.0
    expected = Extrapolation(t_in=3).forecast(context, 2, members=3, seed=5)
    np.testing.assert_array_equal(Steps().forecast(context, 2, members=3, seed=5), expected)


def test_rain_that_only_moves_has_no_evolution_either() -> None:
    context = np.repeat(showers(1), 3, axis=0)
    forecast = Steps().forecast(context, 2, members=2)
    assert np.isfinite(forecast).any()


def test_reflectivity_without_echo_is_the_lowest_value_of_the_context() -> None:
    rain = showers()
    context = np.where(rain > 0.1, 10 * np.log10(200 * np.maximum(rain, 0.1) ** 1.6), -10.0).astype(np.float32)
    forecast = Steps("equivalent_reflectivity_factor").forecast(context, 2, members=2)
    known = forecast[np.isfinite(forecast)]
    assert known.min() == -10.0
    assert (known[known > -10.0] >= 7.0).all()


def test_a_quantity_without_a_rain_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a quantity of"):
        Steps("sea_surface_temperature")
    with pytest.raises(ValueError, match="at least 3 frames"):
        Steps(t_in=2)
