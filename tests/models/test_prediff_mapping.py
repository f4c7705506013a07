"""Quantile mapping: dry air becomes dry, cores keep their strength, ranks stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from builders.ensembles import forecaster, tiny_prediff
from builders.networks import rain_context
from models.prediff.mapping import QuantileMapping, fit_mapping


def observed_and_drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Half dry with exponential rain; drawn with faint noise in the dry half and cores too weak by a fifth."""
    generator = torch.Generator().manual_seed(0)
    rain = torch.empty(20_000).exponential_(4.0, generator=generator)
    dry = torch.rand(20_000, generator=generator) < 0.5
    noise = 0.05 * torch.rand(20_000, generator=generator)
    return torch.where(dry, 0.0, rain), torch.where(dry, noise, 0.05 + 0.8 * rain)


def test_drawn_values_get_the_distribution_of_observed_ones() -> None:
    observed, drawn = observed_and_drawn()
    mapped = fit_mapping(drawn[::2], observed[1::2]).apply(drawn)
    assert float((drawn == 0).double().mean()) < 0.01
    assert float((mapped < 1e-3).double().mean()) == pytest.approx(0.5, abs=0.02)
    levels = torch.tensor([0.6, 0.8, 0.95, 0.99])
    torch.testing.assert_close(mapped.quantile(levels), observed.quantile(levels), rtol=0.08, atol=0.01)


def test_ranks_stay_and_what_is_not_known_stays_unknown() -> None:
    observed, drawn = observed_and_drawn()
    mapping = fit_mapping(drawn, observed)
    ordered = torch.linspace(-0.1, 3.0, 500)
    mapped = mapping.apply(ordered)
    assert bool((mapped.diff() >= 0).all())
    assert float(mapped.min()) == 0.0
    assert float(mapped[-1] - mapped[-2]) == pytest.approx(float(ordered[-1] - ordered[-2]), rel=1e-3)
    assert mapping.apply(torch.tensor([[0.2, torch.nan]])).isnan().tolist() == [[False, True]]


@pytest.mark.parametrize(("drawn", "seen"), [((0.0, 0.0), (0.0, 1.0)), ((0.0, 1.0), (1.0, 0.0)), ((0.0,), (0.0,))])
def test_pairs_that_do_not_rise_are_refused(drawn: tuple[float, ...], seen: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        QuantileMapping(drawn=drawn, observed=seen)
    with pytest.raises(ValueError, match="got none"):
        fit_mapping(torch.empty(0), torch.empty(0))


def test_a_forecaster_maps_every_member_by_its_configuration() -> None:
    plain = forecaster()
    mapping = QuantileMapping(drawn=(0.0, 0.2, 1.0), observed=(0.0, 0.0, 1.0))
    mapped = forecaster(tiny_prediff(mapping=mapping))
    context = rain_context(4, (16, 16))
    raw, found = (one.forecast(context, 3, members=2, seed=3) for one in (plain, mapped))
    transform = plain.config.transform
    by_hand = transform.inverse(mapping.apply(transform.forward(torch.from_numpy(raw))))
    np.testing.assert_allclose(found, by_hand.numpy(), rtol=1e-3, atol=1e-4)
    assert (found == 0).mean() > (raw == 0).mean()
