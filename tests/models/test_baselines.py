"""Persistence and extrapolation: worlds whose motion is known exactly, and real radar."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.nowcasts import Frames, moving_rain
from models.baselines import ContextTooShort
from models.baselines.extrapolation import Extrapolation, between
from models.baselines.motion import estimate_motion
from models.baselines.persistence import Persistence


def csi(forecast: Frames, observed: Frames, threshold: float = 1.0) -> float:
    """Critical success index over the cells that both know."""
    known = np.isfinite(forecast) & np.isfinite(observed)
    event, said = observed >= threshold, forecast >= threshold
    return float((event & said & known).sum() / ((event | said) & known).sum())


def test_persistence_repeats_the_newest_frame_for_every_member_and_lead() -> None:
    newest = np.array([[0, 1.5], [np.nan, 3]], np.float32)
    forecast = Persistence().forecast(newest[None], 3, members=2)
    assert forecast.shape == (2, 3, 2, 2)
    assert all(np.array_equal(field, newest, equal_nan=True) for field in forecast.reshape(-1, 2, 2))


@pytest.mark.parametrize(("u", "v"), [(2.0, 1.0), (-3.0, 0.0), (0.5, -1.5)])
def test_uniform_motion_is_recovered_from_three_frames(u: float, v: float) -> None:
    rain = moving_rain(3, (96, 96), (u, v), origin=(25, 20))
    motion = estimate_motion(rain)
    assert motion.tracked > 0
    assert motion.velocity[0] == pytest.approx(u, abs=0.1)
    assert motion.velocity[1] == pytest.approx(v, abs=0.1)


def test_rain_in_uniform_motion_is_forecast_where_it_will_be() -> None:
    truth = moving_rain(9)
    forecast = Extrapolation(t_in=3).forecast(truth[:3], 6)[0]
    for lead in range(6):
        observed, known = truth[3 + lead], np.isfinite(forecast[lead])
        assert np.abs(forecast[lead] - observed)[known].max() < 1.5  # of a peak of 30 mm h-1
        assert csi(forecast[lead], observed) > 0.93
        assert csi(truth[2], observed) < csi(forecast[lead], observed)


def test_without_motion_extrapolation_is_persistence() -> None:
    frame = moving_rain(1)[0]
    forecast = Extrapolation().forecast(np.stack([frame] * 3), 12)
    assert np.allclose(forecast[0], frame, atol=1e-3)


def test_a_dry_world_stays_dry_and_known() -> None:
    forecast = Extrapolation().forecast(np.zeros((3, 40, 50), np.float32), 4)
    assert np.array_equal(forecast, np.zeros((1, 4, 40, 50), np.float32))


def test_what_comes_from_outside_or_from_unobserved_cells_is_nan_and_never_dry() -> None:
    rain = moving_rain(3, (64, 72), (4.0, 0.0)) + np.float32(2.0)  # wet everywhere
    rain[:, :, :10] = np.nan
    forecast = Extrapolation().forecast(rain, 3)[0]
    assert np.nanmin(forecast) > 1.9
    for lead, expected in enumerate((14, 18, 22)):
        unknown = np.isnan(forecast[lead]).all(axis=0)
        assert int(unknown.sum()) == pytest.approx(expected, abs=1)
        assert unknown[: expected - 1].all()
    gone = Extrapolation().forecast(moving_rain(3, (64, 72), (6.0, 0.0)), 12)[0]
    assert np.isnan(gone[-1][:, :60]).all()  # 72 cells have passed: only the inflow from outside is left


def test_a_missing_middle_frame_halves_no_speed() -> None:
    truth = moving_rain(9, velocity=(2.0, 1.0))
    context = truth[:3].copy()
    context[1] = np.nan
    motion = estimate_motion(context)
    assert motion.velocity[0] == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("empty", [[2], [0, 1]], ids=["newest", "all but the newest"])
def test_too_few_observed_frames_are_refused(empty: list[int]) -> None:
    rain = moving_rain(3)
    rain[empty] = np.nan
    with pytest.raises(ContextTooShort):
        Extrapolation().forecast(rain, 3)


def test_requests_beyond_the_contract_are_refused() -> None:
    rain = moving_rain(3)
    for forecaster in (Extrapolation(t_out=4), Persistence(t_in=3, t_out=4)):
        with pytest.raises(ValueError, match="lead times"):
            forecaster.forecast(rain, 5)
        with pytest.raises(ValueError, match="member"):
            forecaster.forecast(rain, 2, members=0)
        with pytest.raises(ValueError, match="context"):
            forecaster.forecast(rain[1:], 2)


def test_members_spread_with_lead_time_and_repeat_with_their_seed() -> None:
    rain = moving_rain(3, (96, 128))
    one, same, other = (Extrapolation().forecast(rain, 12, members=4, seed=seed) for seed in (7, 7, 8))
    assert np.array_equal(one, same, equal_nan=True)
    assert not np.array_equal(one, other, equal_nan=True)
    assert np.array_equal(one[0], Extrapolation().forecast(rain, 12)[0], equal_nan=True)
    spread = np.nan_to_num(one).std(axis=0).mean(axis=(1, 2))
    assert spread[-1] > 2 * spread[0] > 0


def test_a_frame_between_two_is_where_the_rain_was() -> None:
    truth = moving_rain(3, velocity=(6.0, 3.0))
    filled = between(truth[0], truth[2], 0.5, quantity="rainfall_rate")
    assert csi(filled, truth[1]) > 0.9
    assert csi((truth[0] + truth[2]) / 2, truth[1]) < csi(filled, truth[1])


def test_a_frame_between_two_is_unknown_only_where_neither_knows() -> None:
    before, _, after = moving_rain(3)
    before, after = before.copy(), after.copy()
    before[:20], after[:10] = np.nan, np.nan
    filled = between(before, after, 0.5, quantity="rainfall_rate")
    assert np.isnan(filled[:6]).all()
    assert np.isfinite(filled[24:, 8:-8]).all()


@settings(max_examples=25, deadline=None)
@given(
    rain=st.integers(0, 2**32 - 1),
    hole=st.tuples(st.integers(0, 24), st.integers(0, 24)),
    quantity=st.sampled_from(["rainfall_rate", "equivalent_reflectivity_factor", "vil"]),
)
def test_forecasts_stay_within_the_newest_frame_s_range(rain: int, hole: tuple[int, int], quantity: str) -> None:
    context = np.random.default_rng(rain).gamma(0.3, 8.0, (3, 32, 32)).astype(np.float32)
    context[:, hole[0] : hole[0] + 8, hole[1] : hole[1] + 8] = np.nan
    forecast = Extrapolation(quantity).forecast(context, 3)
    assert np.isfinite(forecast).any()
    assert np.nanmin(forecast) >= np.nanmin(context[-1]) - 1e-3
    assert np.nanmax(forecast) <= np.nanmax(context[-1]) * (1 + 1e-5)


@pytest.mark.data
@pytest.mark.slow
def test_extrapolation_reaches_the_known_skill_on_real_finnish_rain() -> None:
    from datetime import UTC, datetime, timedelta

    from infra.settings import Settings
    from tasks.feeds import FeedSource, open_feed

    folder = Settings().data / "radar" / "fmi_pgm"
    if not folder.is_dir():
        pytest.skip(f"no real observations at {folder}; set SQUALL_DATA")
    feed = open_feed(FeedSource("fmi", str(folder), "rainfall_rate", timedelta(minutes=5)))
    items = feed.list(datetime(2016, 9, 28, tzinfo=UTC), datetime(2016, 9, 29, tzinfo=UTC))[:27]
    frames = np.stack([feed.decode(feed.read(item), item.key)[0].values for item in items])
    found = {1: [], 6: []}  # type: dict[int, list[float]]
    for start in range(2, 15, 6):
        forecast = Extrapolation().forecast(frames[start - 2 : start + 1], 6)[0]
        for lead, scores in found.items():
            observed = frames[start + lead]
            scores.append(csi(forecast[lead - 1], observed))
            assert scores[-1] > csi(frames[start], observed) + 0.05
    assert np.mean(found[1]) > 0.64
    assert np.mean(found[6]) > 0.37
