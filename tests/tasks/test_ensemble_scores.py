"""Ensemble scores: by hand, against `scores` and the definitions written out, and as sums that add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from infra.settings import Settings
from tasks.golden.cases import run_golden
from tasks.golden.prediff_metrics import EnsembleMetricLoader
from tasks.verification.ensemble_frechet import feature_moments, frechet_distance
from tasks.verification.ensemble_pooling import block_maximum, pooled_counts
from tasks.verification.ensemble_reliability import reliability
from tasks.verification.ensemble_scores import crps_gaussian, crps_of_cells, ensemble_sums
from tasks.verification.ensemble_spectrum import spectra

Array = NDArray[np.float64]
METRICS = (Settings().golden or Settings().data.resolve().parent / "golden") / "prediff" / "metrics"


def ensemble(members: int = 5, leads: int = 2, side: int = 8, seed: int = 0) -> tuple[Array, Array]:
    """Members and an observation, half dry, with one cell not observed and one that one member does not forecast."""
    draw = np.random.default_rng(seed)
    forecast = np.maximum(draw.normal(0.0, 3.0, (members, leads, side, side)), 0.0)
    observed = np.maximum(draw.normal(0.0, 3.0, (leads, side, side)), 0.0)
    forecast[0, 0, 1, 1] = observed[1, 2, 2] = np.nan
    return forecast, observed


def written_out(forecast: Array, observed: float, fair: bool) -> float:
    """CRPS of one cell by its double sum."""
    members = len(forecast)
    pairs = np.abs(forecast[:, None] - forecast[None, :]).sum()
    return float(np.abs(forecast - observed).mean() - pairs / (2 * members * (members - fair)))


@pytest.mark.skipif(not METRICS.is_dir(), reason="the golden metrics are not here (SQUALL_GOLDEN)")
def test_the_recorded_metrics_are_reproduced() -> None:
    (result,) = run_golden(METRICS, known=[EnsembleMetricLoader()])
    assert result.ok, result.message


def test_an_entry_that_nothing_computes_fails_the_golden_case(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.numpy import save_file

    save_file({"ensemble": np.zeros((2, 1, 1, 4, 4, 1), np.float32)}, tmp_path / "inputs.safetensors")
    (tmp_path / "expected.json").write_text('{"crps_fair_mean": 0.0, "sharpness": 1.0}')
    (result,) = run_golden(tmp_path, known=[EnsembleMetricLoader()])
    assert not result.ok
    assert "sharpness" in result.message


def test_crps_of_two_members_by_hand() -> None:
    forecast, observed = np.array([1.0, 3.0]).reshape(2, 1, 1, 1), np.full((1, 1, 1), 2.0)
    # mean distance 1; mean distance between members 2: halves of 4/4 and of 4/2
    assert crps_of_cells(forecast, observed, "ecdf").item() == pytest.approx(0.5)
    assert crps_of_cells(forecast, observed, "fair").item() == pytest.approx(0.0)


@pytest.mark.parametrize("fair", [False, True])
def test_crps_is_the_double_sum_in_every_known_cell_and_nan_elsewhere(fair: bool) -> None:
    forecast, observed = ensemble()
    found = crps_of_cells(forecast, observed, "fair" if fair else "ecdf")
    assert np.isnan(found[0, 1, 1])
    assert np.isnan(found[1, 2, 2])
    assert np.isnan(found).sum() == 2
    for cell in np.argwhere(np.isfinite(found)):
        place = tuple(cell)
        expected = written_out(forecast[(slice(None), *place)], observed[place], fair)
        assert found[place] == pytest.approx(expected, abs=1e-12)


def test_crps_of_equal_members_is_the_absolute_error() -> None:
    forecast, observed = ensemble(members=1)
    sums = ensemble_sums(np.repeat(forecast, 4, axis=0), observed, 0.5)
    known = np.isfinite(forecast[0]) & np.isfinite(observed)
    error = np.abs(np.where(known, forecast[0] - observed, 0.0)).sum(axis=(1, 2))
    np.testing.assert_allclose(sums.crps_fair, error)
    np.testing.assert_allclose(sums.crps_ecdf, error)
    np.testing.assert_allclose(sums.spread, 0.0)


def test_the_fair_crps_of_one_member_does_not_exist() -> None:
    forecast, observed = ensemble(members=1)
    with pytest.raises(ValueError, match="2 members"):
        crps_of_cells(forecast, observed, "fair")
    assert np.isnan(ensemble_sums(forecast, observed, 0.5).crps).all()


def test_gaussian_crps_at_its_centre_and_without_spread() -> None:
    forecast = np.array([[1.0, 5.0], [3.0, 5.0]]).reshape(2, 1, 1, 2)
    observed = np.array([[[2.0, 7.0]]])
    centre, certain = crps_gaussian(forecast, observed, ddof=0)[0, 0]
    assert centre == pytest.approx(2 / np.sqrt(2 * np.pi) - 1 / np.sqrt(np.pi))  # sigma (2 phi(0) - 1 / sqrt(pi))
    assert certain == pytest.approx(2.0)


def test_an_ensemble_that_holds_the_truth_among_its_members_has_ratio_one_and_flat_ranks() -> None:
    draw = np.random.default_rng(1)
    centre = draw.normal(0.0, 2.0, (3, 80, 80))
    drawn = np.maximum(centre + draw.normal(0.0, 1.0, (9, 3, 80, 80)), -1.0)  # ties at -1, as at dry cells
    sums = ensemble_sums(drawn[1:], drawn[0], 0.5)
    np.testing.assert_allclose(sums.spread_skill, 1.0, atol=0.03)
    np.testing.assert_allclose(sums.rank_shares(wet=False), 1 / 9, atol=0.01)
    np.testing.assert_allclose(sums.rank_shares(wet=True), 1 / 9, atol=0.01)
    mean = drawn[1:].mean(axis=0)
    wide = ensemble_sums(mean + 2 * (drawn[1:] - mean), drawn[0], 0.5)
    np.testing.assert_allclose(wide.spread_skill, 2 * sums.spread_skill)


def test_spread_skill_by_hand_says_the_correction_for_the_members() -> None:
    forecast, observed = np.array([1.0, 3.0]).reshape(2, 1, 1, 1), np.full((1, 1, 1), 4.0)
    # variance 2, error (2 - 4)^2 = 4, corrected by 3/2
    assert ensemble_sums(forecast, observed, 0.5).mean_spread_skill == pytest.approx(np.sqrt(1.5 * 2 / 4))


def test_ranks_share_a_tie_and_leave_out_what_is_not_known() -> None:
    forecast = np.array([[0.0, 1.0, np.nan], [0.0, 2.0, 1.0]]).reshape(2, 1, 1, 3)
    observed = np.array([[[0.0, 5.0, 1.0]]])
    sums = ensemble_sums(forecast, observed, 0.5)
    np.testing.assert_allclose(sums.ranks, [[1 / 3, 1 / 3, 1 / 3 + 1]])
    np.testing.assert_allclose(sums.wet_ranks, [[0, 0, 1]])
    np.testing.assert_array_equal(sums.count, [2])
    np.testing.assert_allclose(sums.intensity_bias, [(0.0 + 1.5 - 5.0) / 2])


def test_a_window_without_any_known_cell_counts_nothing() -> None:
    forecast, observed = ensemble()
    sums = ensemble_sums(forecast, np.full_like(observed, np.nan), 0.5)
    assert (sums.count == 0).all()
    assert np.isnan(sums.crps).all()
    assert np.isnan(sums.mean_spread_skill)
    assert np.isnan(sums.rank_shares()).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6))
def test_sums_of_two_windows_are_the_sums_of_both_together(seed: int, members: int) -> None:
    one, other = ensemble(members, seed=seed), ensemble(members, seed=seed + 1)
    both = np.concatenate([one[0], other[0]], axis=-1), np.concatenate([one[1], other[1]], axis=-1)
    added, whole = ensemble_sums(*one, 0.5) + ensemble_sums(*other, 0.5), ensemble_sums(*both, 0.5)
    for name in ("count", "crps_ecdf", "crps_fair", "variance", "squared", "forecast", "observed", "ranks"):
        np.testing.assert_allclose(getattr(added, name), getattr(whole, name), rtol=1e-9, atol=1e-9)
    levels = (0.5, 2.0)
    tables = reliability(*one, levels) + reliability(*other, levels), reliability(*both, levels)
    np.testing.assert_array_equal(tables[0].forecasts, tables[1].forecasts)
    np.testing.assert_array_equal(tables[0].events, tables[1].events)


@pytest.mark.parametrize("fair", [False, True])
def test_brier_score_is_that_of_the_scores_library(fair: bool) -> None:
    from scores.probability import brier_score_for_ensemble
    from xarray import DataArray

    forecast, observed = ensemble()
    known = np.isfinite(forecast).all(axis=0) & np.isfinite(observed)
    expected = brier_score_for_ensemble(
        DataArray(np.where(known, forecast, np.nan), dims=("member", "lead", "y", "x")),
        DataArray(np.where(known, observed, np.nan), dims=("lead", "y", "x")),
        "member",
        [0.5, 2.0],
        preserve_dims=["lead"],
        fair_correction=fair,
    ).transpose("lead", "threshold")
    np.testing.assert_allclose(reliability(forecast, observed, (0.5, 2.0)).brier(fair=fair), expected.values)


def test_reliability_counts_by_hand() -> None:
    forecast = np.array([[0.0, 2.0, 2.0], [0.0, 0.0, 2.0]]).reshape(2, 1, 1, 3)
    observed = np.array([[[0.0, 2.0, 0.0]]])
    table = reliability(forecast, observed, (1.0,))
    np.testing.assert_array_equal(table.forecasts[0, 0], [1, 1, 1])
    np.testing.assert_array_equal(table.events[0, 0], [0, 1, 0])
    np.testing.assert_allclose(table.probabilities, [0.0, 0.5, 1.0])
    assert table.brier(fair=False).item() == pytest.approx((0.0 + 0.25 + 1.0) / 3)
    assert table.brier().item() == pytest.approx((0.0 + 0.25 - 0.25 + 1.0) / 3)


def test_a_certain_and_right_ensemble_has_full_brier_skill() -> None:
    _, observed = ensemble()
    table = reliability(np.repeat(observed[None], 3, axis=0), observed, (0.5,)).over_leads()
    assert table.brier().item() == 0.0
    assert table.brier_skill().item() == 1.0


def test_pooled_csi_forgives_a_shift_within_the_block() -> None:
    observed, forecast = np.zeros((1, 8, 8)), np.zeros((2, 1, 8, 8))
    observed[0, 0, 0] = forecast[0, 0, 1, 1] = forecast[1, 0, 5, 5] = 4.0
    counts = pooled_counts(forecast, observed, (1.0,), (1, 4, 16))
    assert counts.pools == (1, 4)  # no 16 x 16 block fits
    assert counts.csi(1, members=True) == 0.0
    assert counts.csi(4, members=True) == pytest.approx(1 / 3)  # a hit, then a miss and a false alarm
    assert counts.csi(4) == pytest.approx(1 / 2)  # of the mean: a hit and a false alarm


def test_a_block_less_than_half_known_is_not_known() -> None:
    field = np.arange(16.0).reshape(4, 4)
    field[:2, :2] = np.nan
    field[2, 2:] = np.nan
    np.testing.assert_array_equal(block_maximum(field, 2), [[np.nan, 7.0], [13.0, 15.0]])
    assert block_maximum(np.zeros((5, 7)), 2).shape == (2, 3)


def test_the_power_ratio_of_half_the_amplitude_is_a_quarter() -> None:
    draw = np.random.default_rng(3)
    observed = draw.normal(0.0, 1.0, (2, 32, 32))
    observed -= observed.min()
    found = spectra(np.repeat(0.5 * observed[None], 3, axis=0), observed)
    assert found.power_ratio() == pytest.approx(0.25)
    np.testing.assert_allclose(found.band_ratio(mean=True), 0.25)
    assert found.count.tolist() == [1, 1]


def test_averaging_independent_members_blurs_the_mean_and_not_the_members() -> None:
    draw = np.random.default_rng(4)
    members, observed = draw.normal(0.0, 1.0, (8, 1, 64, 64)), draw.normal(0.0, 1.0, (1, 64, 64))
    found = spectra(members, observed) + spectra(members[::-1], observed)
    assert found.power_ratio() == pytest.approx(1.0, abs=0.1)
    assert found.power_ratio(mean=True) == pytest.approx(1 / 8, abs=0.03)
    wavelengths = 1 / np.array(found.frequencies)[found.shortest_decade()]
    assert wavelengths.max() / wavelengths.min() <= 10


def test_a_window_mostly_unknown_gives_no_spectrum() -> None:
    forecast, observed = ensemble(side=16)
    observed[0, :9] = np.nan
    assert spectra(forecast, observed).count.tolist() == [0, 1]


def test_the_frechet_distance_of_shifted_and_scaled_features() -> None:
    draw = np.random.default_rng(5)
    features = draw.normal(size=(50, 4))
    one = feature_moments(features[:20]) + feature_moments(features[20:])
    assert frechet_distance(one, feature_moments(features)) == pytest.approx(0.0, abs=1e-9)
    shifted = frechet_distance(one, feature_moments(features + np.array([3.0, 4.0, 0.0, 0.0])))
    assert shifted == pytest.approx(25.0)
    centred = features - features.mean(axis=0)
    scaled = frechet_distance(feature_moments(centred), feature_moments(2 * centred))
    assert scaled == pytest.approx(np.trace(np.cov(centred.T)))  # (2 - 1)^2 tr C
    with pytest.raises(ValueError, match="at least 2 clips"):
        frechet_distance(one, feature_moments(features[:1]))


def test_shapes_that_do_not_fit_are_told() -> None:
    forecast, observed = ensemble()
    with pytest.raises(ValueError, match="members"):
        ensemble_sums(forecast[:, 0], observed, 0.5)
    with pytest.raises(ValueError, match="5 members on both sides; got 3"):
        _ = ensemble_sums(forecast, observed, 0.5) + ensemble_sums(forecast[:3], observed, 0.5)
