"""Simulated rain: known motion, life cycles that balance, and the same bits from the same seed."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.simulation import (
    DRY_BELOW,
    HEAVIEST,
    NO_CELLS,
    Cells,
    Float32,
    Weather,
    Wind,
    advance,
    merge,
    render,
    simulate,
)

START = datetime(2026, 7, 1, 12, tzinfo=UTC)
STEP = timedelta(minutes=5)
SHAPE = (96, 96)


def cell(x: float = 0.0, y: float = 0.0, age: float = 900.0, **changes: float) -> Cells:
    values = {"lifetime": 3600.0, "peak": 20.0, "radius": 4000.0, "stretch": 1.0, "angle": 0.0, **changes}
    return Cells(x=np.array([x]), y=np.array([y]), age=np.array([age]), **{k: np.array([v]) for k, v in values.items()})


def frames(weather: Weather | None = None, steps: int = 6, seed: int = 1) -> list[Float32]:
    return [rain for _, rain in simulate(START, steps, STEP, SHAPE, 1000.0, seed, weather)]


def centre(rain: Float32) -> tuple[float, float]:
    """Centre of mass in cells: (row, column)."""
    observed = np.nan_to_num(rain.astype(np.float64))
    rows, columns = np.indices(rain.shape)
    return float((observed * rows).sum() / observed.sum()), float((observed * columns).sum() / observed.sum())


def volume(cells: Cells) -> float:
    return float((2 * math.pi * cells.intensity * cells.width**2 * cells.stretch).sum())


@pytest.mark.parametrize(("east", "north"), [(10.0, 0.0), (0.0, 10.0), (-6.0, 8.0)])
def test_rain_moves_with_the_wind(east: float, north: float) -> None:
    first, *_, last = frames(Weather(Wind(east, north), births=0.0, cells=cell()), steps=4)
    (row, column), (then_row, then_column) = centre(first), centre(last)
    # 15 minutes at 1 m/s are 0.9 cells of 1 km; rows count southwards.
    assert then_column - column == pytest.approx(0.9 * east, abs=0.15)
    assert then_row - row == pytest.approx(-0.9 * north, abs=0.15)


def test_the_wind_turns_and_its_eddies_neither_gather_nor_spread() -> None:
    quarter = Wind(10.0, 0.0, turning=math.pi / 7200.0)
    u, v = quarter.velocity(np.zeros(1), np.zeros(1), 3600.0)
    assert (u[0], v[0]) == pytest.approx((0.0, 10.0), abs=1e-9)
    eddies, d = Wind(0.0, 0.0, eddy=3.0, phase=(0.3, 1.1)), 10.0
    x, y = np.meshgrid(np.arange(0.0, 2e5, 7e3), np.arange(0.0, 2e5, 7e3))
    along = eddies.velocity(x + d, y, 0.0)[0] - eddies.velocity(x - d, y, 0.0)[0]
    across = eddies.velocity(x, y + d, 0.0)[1] - eddies.velocity(x, y - d, 0.0)[1]
    assert np.abs(along + across).max() / (2 * d) < 1e-9


def test_a_cell_grows_then_decays_and_widens_with_age() -> None:
    ages = [cell(age=a) for a in (0.0, 900.0, 1800.0, 2700.0, 3600.0)]
    intensity = [float(c.intensity[0]) for c in ages]
    assert intensity == pytest.approx([0.0, 14.142, 20.0, 14.142, 0.0], abs=1e-3)
    assert [float(c.width[0]) for c in ages] == sorted(float(c.width[0]) for c in ages)


def test_a_cell_is_gone_after_its_lifetime() -> None:
    still = Weather(Wind(0.0, 0.0), births=0.0, cells=cell(age=3000.0))
    wet = [bool((np.nan_to_num(rain) > 0).any()) for rain in frames(still, steps=5)]
    assert wet == [True, True, False, False, False]


def test_cells_are_born_at_the_stated_rate() -> None:
    rng, reach = np.random.default_rng(4), (100_000.0, 100_000.0)
    weather = Weather(Wind(0.0, 0.0), births=12.0)
    born = [len(advance(NO_CELLS, weather, 0.0, 3600.0, reach, rng)) for _ in range(200)]
    # (200 km)^2 are 4 times 10,000 km2: 48 an hour.
    assert np.mean(born) == pytest.approx(48.0, abs=2.0)


def test_close_cells_merge_and_keep_their_rain() -> None:
    pair = cell(-1000.0, age=1200.0).join(cell(1000.0, age=1500.0, peak=10.0))
    (merged,) = (merge(pair),)
    assert len(merged) == 1
    assert volume(merged) == pytest.approx(volume(pair))
    assert -1000.0 < float(merged.x[0]) < 0.0


def test_distant_cells_stay_apart_and_newborn_ones_can_merge() -> None:
    assert len(merge(cell(-30_000.0).join(cell(30_000.0)))) == 2
    assert len(merge(cell(age=0.0).join(cell(10.0, age=0.0)))) == 1


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12))
def test_merging_conserves_rain_whatever_the_cells(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    cells = NO_CELLS
    for _ in range(count):
        place, stage = rng.uniform(-8000, 8000, 2), rng.uniform(200, 3400)
        cells = cells.join(cell(*place, age=stage, peak=rng.uniform(1, 50), stretch=rng.uniform(1, 2)))
    assert volume(merge(cells)) == pytest.approx(volume(cells), rel=1e-9)


def test_rain_of_a_cell_is_its_volume() -> None:
    lone = cell(age=1800.0, peak=50.0, stretch=1.5, angle=0.7)
    assert render(lone, SHAPE, 1000.0).sum(dtype=np.float64) * 1e6 == pytest.approx(volume(lone), rel=0.01)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    one, same, other = (frames(seed=s) for s in (5, 5, 6))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0], equal_nan=True)


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    for long, short in zip(frames(steps=8), frames(steps=3), strict=False):
        np.testing.assert_array_equal(long, short)


def test_frames_have_times_dry_cells_rain_and_one_fixed_patch_without_coverage() -> None:
    run = list(simulate(START, 5, STEP, SHAPE, seed=3))
    assert [time for time, _ in run] == [START + k * STEP for k in range(5)]
    unseen = np.isnan(run[0][1])
    assert 0 < unseen.mean() < 0.05
    for _, rain in run:
        assert rain.dtype == np.float32
        np.testing.assert_array_equal(np.isnan(rain), unseen)
        wet = rain[rain > 0]
        assert wet.min() >= np.float32(DRY_BELOW)
        assert wet.max() <= HEAVIEST
        assert (rain == 0).mean() > 0.2


def test_rain_behind_the_patch_is_hidden_not_dry() -> None:
    flooded = Weather(Wind(0.0, 0.0), births=0.0, cells=cell(radius=60_000.0, age=1800.0))
    rain = frames(flooded, steps=1)[0]
    assert np.isnan(rain).any()
    assert (rain[~np.isnan(rain)] > 0).all()


def test_older_cells_do_not_change_when_a_field_is_replaced() -> None:
    assert float(replace(cell(), x=np.array([5.0])).y[0]) == 0.0
