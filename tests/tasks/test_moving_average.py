"""The average of the weights that validation and nowcasts use: by hand, limited, saved and loaded."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tasks.training.optimisation import MovingAverage


def network(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def test_the_first_updates_forget_the_start_quickly() -> None:
    layer = network(0.0)
    average = MovingAverage(layer)
    nn.init.constant_(layer.weight, 1.0)
    average.update(layer, 1)
    assert float(average.weights["weight"]) == pytest.approx(1.0 - 2.0 / 11.0)
    average.update(layer, 2)
    assert float(average.weights["weight"]) == pytest.approx(1.0 - 2.0 / 11.0 * 3.0 / 12.0)


def test_the_decay_is_never_above_its_limit() -> None:
    layer = network(0.0)
    average = MovingAverage(layer, decay=0.1)
    nn.init.constant_(layer.weight, 1.0)
    average.update(layer, 1)
    assert float(average.weights["weight"]) == pytest.approx(0.9)


def test_a_saved_average_goes_on_as_if_never_stopped() -> None:
    layer = network(0.0)
    one, other = MovingAverage(layer), MovingAverage(network(7.0))
    for updates, value in enumerate((1.0, 2.0, 3.0), start=1):
        nn.init.constant_(layer.weight, value)
        one.update(layer, updates)
    other.load({name: value.clone() for name, value in one.weights.items()})
    nn.init.constant_(layer.weight, 4.0)
    for average in (one, other):
        average.update(layer, 4)
    assert torch.equal(one.weights["weight"], other.weights["weight"])
    with pytest.raises(ValueError, match="these differ: bias"):
        other.load({**one.weights, "bias": torch.zeros(1)})


def test_an_average_that_never_moves_is_refused() -> None:
    with pytest.raises(ValueError, match="decay < 1"):
        MovingAverage(network(0.0), decay=1.0)
