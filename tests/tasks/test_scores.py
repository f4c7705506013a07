"""Statistics that add up: degenerate fields, tables counted by hand, additivity, and two independent libraries."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tasks.verification.fractions import fractions, window_cells
from tasks.verification.scores import Contingency, contingency, errors, is_wet, stack_windows

THRESHOLDS = (0.5, 1.0, 5.0)
rain = st.one_of(st.just(np.nan), st.floats(0, 16, width=32), st.sampled_from([0.0, 0.5, 1.0, 5.0]))
fields = hnp.arrays(np.float32, (2, 6, 5), elements=rain)


def test_a_table_counted_by_hand() -> None:
    forecast = np.array([[[2.0, 0.0, 1.0], [1.0, 0.2, np.nan]]], np.float32)
    observed = np.array([[[1.0, 3.0, 0.0], [1.5, 0.9, 9.0]]], np.float32)
    table = contingency(forecast, observed, (1.0,))
    assert (table.hits, table.misses, table.false_alarms, table.correct_negatives) == (2, 1, 1, 1)
    assert table.csi == pytest.approx(2 / 4)
    assert table.pod == pytest.approx(2 / 3)
    assert table.far == pytest.approx(1 / 3)
    assert table.bias == pytest.approx(3 / 3)
    sums = errors(forecast, observed)
    assert sums.count == 5
    assert sums.mean_error == pytest.approx((1 - 3 + 1 - 0.5 - 0.7) / 5)
    assert sums.mae == pytest.approx((1 + 3 + 1 + 0.5 + 0.7) / 5)
    assert sums.mse == pytest.approx((1 + 9 + 1 + 0.25 + 0.49) / 5)


def test_every_threshold_of_the_histogram_equals_a_pass_of_its_own() -> None:
    random = np.random.default_rng(1)
    forecast, observed = random.gamma(0.5, 4, (2, 3, 20, 30)).astype(np.float32)
    forecast[0, :3], observed[:, 5] = np.nan, np.nan
    table = contingency(forecast, observed, THRESHOLDS)
    known = ~(np.isnan(forecast) | np.isnan(observed))
    for index, level in enumerate(THRESHOLDS):
        ours, theirs = forecast >= level, observed >= level
        np.testing.assert_array_equal(table.hits[:, index], (known & ours & theirs).sum((1, 2)))
        np.testing.assert_array_equal(table.misses[:, index], (known & ~ours & theirs).sum((1, 2)))
        np.testing.assert_array_equal(table.false_alarms[:, index], (known & ours & ~theirs).sum((1, 2)))
        np.testing.assert_array_equal(table.total[:, index], known.sum((1, 2)))


def test_a_perfect_forecast_has_every_best_score() -> None:
    field = np.array([[[0.0, 1.0], [6.0, np.nan]]], np.float32)
    table = contingency(field, field, THRESHOLDS)
    np.testing.assert_array_equal(table.csi, np.ones((1, 3)))
    np.testing.assert_array_equal(table.far, np.zeros((1, 3)))
    assert errors(field, field).mse == 0
    np.testing.assert_array_equal(fractions(field, field, THRESHOLDS, (1, 3), 1000.0).fss, np.ones((1, 2, 3)))


def test_a_dry_world_is_no_evidence_rather_than_a_perfect_score() -> None:
    dry = np.zeros((1, 4, 4), np.float32)
    table = contingency(dry, dry, THRESHOLDS)
    for score in (table.csi, table.pod, table.far, table.bias):
        assert np.isnan(score).all()
    assert np.isnan(fractions(dry, dry, THRESHOLDS, (1,), 1000.0).fss).all()
    assert not is_wet(table)


def test_nothing_observed_counts_nothing() -> None:
    unseen, wet = np.full((1, 4, 4), np.nan, np.float32), np.full((1, 4, 4), 9, np.float32)
    assert contingency(wet, unseen, THRESHOLDS).total.sum() == 0
    assert errors(wet, unseen).count == 0
    assert np.isnan(errors(wet, unseen).mae)
    assert fractions(wet, unseen, THRESHOLDS, (1, 3), 1000.0).reference.sum() == 0


def test_a_window_is_wet_from_one_percent_of_its_observed_cells() -> None:
    observed = np.zeros((2, 10, 10), np.float32)
    observed[0, 0, :2] = 0.5
    assert is_wet(contingency(np.zeros_like(observed), observed, THRESHOLDS))
    observed[0, 0, 0] = 0.4
    assert not is_wet(contingency(np.zeros_like(observed), observed, THRESHOLDS))


@given(fields, fields, fields, fields)
@settings(max_examples=60, deadline=None)
def test_the_state_of_two_sets_is_the_sum_of_their_states(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray
) -> None:
    forecast, observed = np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)
    apart, together = (
        contingency(a, c, THRESHOLDS) + contingency(b, d, THRESHOLDS),
        contingency(forecast, observed, THRESHOLDS),
    )
    for name in ("hits", "misses", "false_alarms", "correct_negatives"):
        np.testing.assert_array_equal(getattr(apart, name), getattr(together, name))
    np.testing.assert_allclose((errors(a, c) + errors(b, d)).squared, errors(forecast, observed).squared, rtol=1e-12)
    np.testing.assert_array_equal((errors(a, c) + errors(b, d)).count, errors(forecast, observed).count)


@given(fields, fields, fields, fields)
@settings(max_examples=30, deadline=None)
def test_fraction_sums_add_in_any_order_bit_for_bit(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> None:
    one, two = (fractions(f, o, THRESHOLDS, (1, 3, 5), 1000.0) for f, o in ((a, c), (b, d)))
    np.testing.assert_array_equal((one + two).error, (two + one).error)
    both = fractions(np.concatenate([a, b]), np.concatenate([c, d]), THRESHOLDS, (1, 3, 5), 1000.0)
    np.testing.assert_array_equal((one + two).error, both.error[:2] + both.error[2:])
    known = (one + two).fss[np.isfinite((one + two).fss)]
    assert ((known >= 0) & (known <= 1)).all()


@given(fields, fields)
@settings(max_examples=60, deadline=None)
def test_a_cell_with_a_nan_on_either_side_changes_nothing(forecast: np.ndarray, observed: np.ndarray) -> None:
    hidden = np.where(np.isnan(observed), np.float32(9), forecast)
    ours, theirs = (contingency(field, observed, THRESHOLDS) for field in (forecast, hidden))
    np.testing.assert_array_equal(ours.hits, theirs.hits)
    np.testing.assert_array_equal(ours.false_alarms, theirs.false_alarms)
    pair = (fractions(field, observed, THRESHOLDS, (3,), 1000.0).error for field in (forecast, hidden))
    np.testing.assert_array_equal(*pair)


def test_fractions_of_one_displaced_cell_counted_by_hand() -> None:
    forecast, observed = np.zeros((2, 1, 5, 5), np.float32)
    forecast[0, 2, 2], observed[0, 2, 3] = 1.0, 1.0
    sums = fractions(forecast, observed, (1.0,), (1, 3), 1000.0)
    np.testing.assert_array_equal(
        sums.error[0, :, 0], [2, 6]
    )  # 3x3: columns 1 and 4 of three rows see only one of the two
    np.testing.assert_array_equal(sums.reference[0, :, 0], [2, 18])
    np.testing.assert_allclose(sums.fss[0, :, 0], [0, 1 - 6 / 18])


def test_windows_have_the_nearest_odd_number_of_cells() -> None:
    assert [window_cells(km, 1000.0) for km in (0.2, 1, 5, 6.5, 20)] == [1, 1, 5, 7, 21]
    assert window_cells(20, 2000.0) == 9


def test_contingency_equals_the_library_scores() -> None:
    import xarray as xr
    from scores.categorical import BinaryContingencyManager

    random = np.random.default_rng(2)
    forecast, observed = random.gamma(0.5, 4, (2, 1, 40, 50)).astype(np.float32)
    forecast[0, 0, :9], observed[0, 3:6] = np.nan, np.nan
    table = contingency(forecast, observed, THRESHOLDS)
    for index, level in enumerate(THRESHOLDS):
        events = (xr.DataArray((field[0] >= level) * 1.0).where(~np.isnan(field[0])) for field in (forecast, observed))
        theirs = BinaryContingencyManager(*events)
        assert table.csi[0, index] == pytest.approx(float(theirs.critical_success_index()))
        assert table.pod[0, index] == pytest.approx(float(theirs.probability_of_detection()))
        assert table.far[0, index] == pytest.approx(float(theirs.false_alarm_ratio()))
        assert table.bias[0, index] == pytest.approx(float(theirs.frequency_bias()))


def test_errors_equal_the_library_scores() -> None:
    import xarray as xr
    from scores.continuous import mae, mse

    forecast, observed = np.random.default_rng(3).gamma(0.5, 4, (2, 1, 40, 50)).astype(np.float64)
    observed[0, 3:6] = np.nan
    pair = [xr.DataArray(field[0]) for field in (forecast, observed)]
    assert errors(forecast, observed).mae == pytest.approx(float(mae(*pair)))
    assert errors(forecast, observed).mse == pytest.approx(float(mse(*pair)))


def test_fractions_equal_pysteps_and_the_library_scores_where_all_is_observed() -> None:
    from scores.spatial import fss_2d_single_field

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pysteps.verification.spatialscores import fss

    forecast, observed = np.random.default_rng(4).gamma(0.3, 4, (2, 1, 60, 47)).astype(np.float32)
    ours = fractions(forecast, observed, THRESHOLDS, (1, 5, 21), 1000.0).fss[0]
    for row, width in enumerate((1, 5, 21)):
        for column, level in enumerate(THRESHOLDS):
            assert ours[row, column] == pytest.approx(fss(forecast[0], observed[0], level, width), abs=1e-9)
            if width < 21:
                padded = fss_2d_single_field(
                    forecast[0], observed[0], event_threshold=level, window_size=(width, width), zero_padding=True
                )
                assert ours[row, column] == pytest.approx(padded, abs=0.02)


def test_tables_of_other_thresholds_do_not_add() -> None:
    field = np.ones((1, 3, 3), np.float32)
    with pytest.raises(ValueError, match="thresholds"):
        contingency(field, field, (1.0,)) + contingency(field, field, (2.0,))
    with pytest.raises(ValueError, match="ascending"):
        contingency(field, field, (2.0, 1.0))
    with pytest.raises(ValueError, match="one shape"):
        contingency(field, field[:, :2], (1.0,))


def test_windows_stack_to_arrays_with_their_wet_flags() -> None:
    wet, dry = np.full((2, 4, 4), 3, np.float32), np.zeros((2, 4, 4), np.float32)
    tables = [contingency(wet, observed, THRESHOLDS) for observed in (wet, dry)]
    times = np.array(["2020-01-01T00:00", "2020-01-01T00:05"], "datetime64[ns]")
    windows = stack_windows(tables, (5, 10), times, ["a", "a"])
    assert windows.hits.shape == (2, 2, 3)
    assert windows.wet.tolist() == [True, False]
    with pytest.raises(ValueError, match="at least one"):
        stack_windows([], (5, 10), times[:0], [])
    assert isinstance(tables[0].over_leads(), Contingency)
    assert tables[0].over_leads().hits.tolist() == [32, 32, 0]
