"""Units: published values, round trips, and dry and NaN that stay what they are."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.units import (
    NO_ECHO,
    dbz_to_rain,
    decibels,
    depth_to_rate,
    linear,
    profile_to_vil,
    rain_to_dbz,
    rate_to_depth,
    sevir_to_vil,
    vil_to_sevir,
)


def test_marshall_palmers_published_pairs() -> None:
    # Z = 200 R^1.6: 1 mm/h is 23.01 dBZ, 10 mm/h 39.01 dBZ, 100 mm/h 55.01 dBZ.
    np.testing.assert_allclose(rain_to_dbz([1, 10, 100]), [23.0103, 39.0103, 55.0103], atol=1e-4)


def test_finlands_relation_is_a_parameter() -> None:
    # Z = 223 R^1.53 at 1 mm/h is 10 log10(223).
    assert rain_to_dbz(1.0, 223.0, 1.53) == pytest.approx(23.4830, abs=1e-4)


def test_dry_is_no_echo_both_ways_and_nan_stays_nan() -> None:
    dbz = rain_to_dbz([0.0, np.nan, 5.0])
    assert dbz[0] == NO_ECHO
    assert np.isnan(dbz[1])
    rain = dbz_to_rain([NO_ECHO, np.nan, -40.0, 20.0])
    assert rain[0] == 0.0 == rain[2]
    assert np.isnan(rain[1])
    assert rain[3] > 0


def test_a_no_echo_that_float32_rounds_is_still_dry() -> None:
    assert dbz_to_rain(np.float32(-32.1), no_echo=-32.1) == 0.0
    assert dbz_to_rain(np.float32(-31.9), no_echo=-31.9) == 0.0


@given(st.floats(0.01, 300.0))
def test_rain_survives_the_round_trip(rain: float) -> None:
    assert float(dbz_to_rain(rain_to_dbz(rain))) == pytest.approx(rain, rel=2e-6)


@given(st.floats(-32.0, 80.0))
def test_decibels_invert_linear(dbz: float) -> None:
    assert float(decibels(linear(dbz))) == pytest.approx(dbz, abs=1e-4)


def test_negative_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="rain >= 0"):
        rain_to_dbz([-3.0])
    with pytest.raises(ValueError, match="Z >= 0"):
        decibels([-1.0])


def test_depths_and_rates() -> None:
    assert depth_to_rate(0.5, timedelta(minutes=5)) == 6.0
    assert rate_to_depth(6.0, timedelta(minutes=5)) == 0.5
    assert np.isnan(depth_to_rate(np.nan, timedelta(minutes=5)))


def test_vil_of_a_uniform_column() -> None:
    # Z = 1e4 (40 dBZ) over 5 km: 3.44e-6 * (1e4)^(4/7) * 5000 = 3.3202 kg m-2.
    assert profile_to_vil([40.0, 40.0, 40.0], [0.0, 2000.0, 5000.0]) == pytest.approx(3.3202, abs=1e-3)


def test_vil_caps_hail_knows_dry_and_keeps_nan() -> None:
    height = [0.0, 1000.0]
    columns = profile_to_vil([[70.0, NO_ECHO, np.nan], [70.0, NO_ECHO, 10.0]], height)
    assert columns[0] == profile_to_vil([56.0, 56.0], height)
    assert columns[1] == 0.0
    assert np.isnan(columns[2])


def test_sevirs_published_code() -> None:
    # x <= 5: 0; (x - 2) / 90.66 up to 18; exp((x - 83.9) / 38.9) up to 254; 255 missing.
    vil = sevir_to_vil([0, 5, 6, 18, 19, 254, 255])
    np.testing.assert_allclose(vil[:6], [0, 0, 0.044121, 0.176483, 0.188552, 79.2614], rtol=2e-5)
    assert np.isnan(vil[6])


def test_every_sevir_code_comes_back() -> None:
    codes = np.array([0, *range(6, 256)], np.uint8)
    np.testing.assert_array_equal(vil_to_sevir(sevir_to_vil(codes)), codes)
    assert vil_to_sevir(500.0) == 254
