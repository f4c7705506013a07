"""The average of the weights: by hand, in and out of the network, saved and loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.prediff.ema import WeightAverage


def network(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_the_first_updates_forget_the_start_quickly() -> None:
    layer = network(0.0)
    average = WeightAverage(layer)
    nn.init.constant_(layer.weight, 1.0)
    average.update(layer)
    assert float(average.weights["weight"]) == pytest.approx(1.0 - 2.0 / 11.0)
    average.update(layer)
    assert float(average.weights["weight"]) == pytest.approx(1.0 - 2.0 / 11.0 * 3.0 / 12.0)


def test_the_decay_is_never_above_its_limit() -> None:
    layer = network(0.0)
    average = WeightAverage(layer, decay=0.1)
    nn.init.constant_(layer.weight, 1.0)
    average.update(layer)
    assert float(average.weights["weight"]) == pytest.approx(0.9)


def test_the_network_has_the_average_inside_and_its_own_weights_again_after_a_failure() -> None:
    layer = network(1.0)
    average = WeightAverage(layer)
    nn.init.constant_(layer.weight, 5.0)
    with average.averaged(layer):
        assert layer.weight.item() == 1.0
    with pytest.raises(RuntimeError, match="sampling"), average.averaged(layer):
        raise RuntimeError("sampling")
    assert layer.weight.item() == 5.0
    average.copy_to(layer)
    assert layer.weight.item() == 1.0


def test_a_saved_average_goes_on_as_if_never_stopped() -> None:
    layer = network(0.0)
    one, other = WeightAverage(layer), WeightAverage(network(7.0))
    for value in (1.0, 2.0, 3.0):
        nn.init.constant_(layer.weight, value)
        one.update(layer)
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    nn.init.constant_(layer.weight, 4.0)
    for average in (one, other):
        average.update(layer)
    assert torch.equal(one.weights["weight"], other.weights["weight"])
    with pytest.raises(ValueError, match="these differ: bias"):
        other.load_state_dict({**one.state_dict(), "bias": torch.zeros(1)})


def test_an_average_that_never_moves_is_refused() -> None:
    with pytest.raises(ValueError, match="decay < 1"):
        WeightAverage(network(0.0), decay=1.0)
