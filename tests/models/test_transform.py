"""Transforms: back and forth on observed cells, NaN kept, hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.transform import Transform

RAIN = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=1, max_dims=4, max_side=5),
    elements=st.one_of(st.just(np.nan), st.just(0.0), st.floats(0.0078125, 500, width=32)),
)


@settings(deadline=None)
@given(RAIN)
def test_rain_comes_back_where_it_was_observed_and_nan_stays_nan(rain: np.ndarray) -> None:
    transform = Transform()
    u = transform.forward(rain)
    back = transform.inverse(u)
    assert u.dtype == back.dtype == np.float32
    assert np.array_equal(np.isnan(rain), np.isnan(u))
    np.testing.assert_allclose(back, rain, rtol=2e-5)
    assert np.array_equal(back == 0, rain == 0)


@settings(deadline=None)
@given(RAIN)
def test_tensors_and_arrays_give_the_same(rain: np.ndarray) -> None:
    transform = Transform()
    np.testing.assert_array_equal(transform.forward(torch.from_numpy(rain)).numpy(), transform.forward(rain))


def test_one_millimetre_an_hour_is_23_decibels_of_55() -> None:
    assert Transform().forward(np.array([1.0]))[0] == pytest.approx(10 * np.log10(201) / 55)


@pytest.mark.parametrize(
    ("quantity", "value", "expected"),
    [
        ("equivalent_reflectivity_factor", -32.0, -32 / 55),
        ("vil", 127.5, 0.5),
        ("sea_surface_temperature", 10.198975563049316, 1.0),
    ],
)
def test_linear_quantities_are_scaled_and_come_back(quantity: str, value: float, expected: float) -> None:
    transform = Transform.of_quantity(quantity)
    u = transform.forward(torch.tensor([value], dtype=torch.float64), quantity)
    assert u.item() == pytest.approx(expected, abs=1e-6)
    assert transform.inverse(u).item() == pytest.approx(value)


def test_what_a_network_invents_below_zero_is_dry() -> None:
    assert Transform().inverse(np.array([-0.3, 0.0], np.float32)).tolist() == [0.0, 0.0]


def test_a_network_gets_zeros_and_the_mask_beside() -> None:
    u, observed = Transform().encode(torch.tensor([[1.0, float("nan")], [0.0, 2.0]]))
    assert observed.tolist() == [[True, False], [True, True]]
    assert u[0, 1] == 0.0
    assert torch.isfinite(u).all()


def test_another_quantity_is_refused() -> None:
    with pytest.raises(ValueError, match="this transform is for rainfall_rate; got vil"):
        Transform().forward(np.zeros(2), "vil")
    with pytest.raises(ValueError, match="expected a quantity of"):
        Transform.of_quantity("snow_depth")


def test_a_transform_survives_its_json() -> None:
    transform = Transform(scale=60.0, a=300.0, b=1.4)
    assert Transform.model_validate_json(transform.model_dump_json()) == transform
