"""Constraints and what is anticipated of them: by hand, with gaps, and learnt from a context."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from models.prediff.constraints import (
    AnyConstraint,
    AverageIntensity,
    DomainMass,
    ExceedanceArea,
    parse_constraint,
)
from models.prediff.intensity_estimator import (
    AnticipatedIntensity,
    IntensityEstimator,
    IntensityEstimatorConfig,
    from_link,
    to_link,
)
from models.transform import Transform

FRAMES = torch.tensor([[0.0, 0.2], [0.4, torch.nan]])[None, None, ..., None]  # one frame, a cell not observed


def test_a_frames_average_is_that_of_its_observed_cells() -> None:
    assert float(AverageIntensity().values(FRAMES)) == pytest.approx(0.2)
    assert AverageIntensity().values(FRAMES).shape == (1, 1, 1)
    assert AverageIntensity().values(torch.full_like(FRAMES, torch.nan)).isnan().all()


def test_intensity_counts_from_a_dry_cell_where_that_is_not_zero() -> None:
    reflectivity = Transform.of_quantity("equivalent_reflectivity_factor")
    frames = reflectivity.forward(torch.tensor([-33.0, -33.0, 22.0, torch.nan])).view(1, 1, 2, 2, 1)
    rule = parse_constraint("average_intensity", reflectivity, no_echo=-33.0)
    assert float(rule.values(frames)) == pytest.approx(1.0 / 3.0)
    assert parse_constraint("average_intensity", Transform()) == AverageIntensity()


def test_constraints_are_read_from_a_word_and_a_threshold_in_physical_units() -> None:
    rain, reflectivity = Transform(), Transform.of_quantity("equivalent_reflectivity_factor")
    assert parse_constraint("exceedance_area:5", rain) == ExceedanceArea.of_physical(5.0, rain)
    assert parse_constraint("domain_mass", rain) == DomainMass(transform=rain)
    with pytest.raises(ValueError, match="expected a quantity that adds up"):
        parse_constraint("domain_mass", reflectivity)


def test_the_exceedance_area_is_a_share_of_the_observed_cells_with_the_threshold_itself() -> None:
    assert float(ExceedanceArea(threshold=0.2).values(FRAMES)) == pytest.approx(2.0 / 3.0)
    assert ExceedanceArea(threshold=0.2).values(torch.full_like(FRAMES, torch.nan)).isnan().all()
    rain = Transform()
    area = ExceedanceArea.of_physical(5.0, rain)
    rates = torch.tensor([4.9, 5.1, 0.0, 50.0]).view(1, 1, 2, 2, 1)
    assert float(area.values(rain.forward(rates))) == 0.5


def test_the_domains_mass_is_the_mean_in_physical_units() -> None:
    rain = Transform()
    rates = torch.tensor([2.0, 4.0, 0.0, torch.nan]).view(1, 1, 2, 2, 1)
    assert float(DomainMass(transform=rain).values(rain.forward(rates))) == pytest.approx(2.0, rel=1e-4)
    assert float(DomainMass(transform=rain, reference=4.0).values(rain.forward(rates))) == pytest.approx(0.5, rel=1e-4)
    assert DomainMass(transform=rain, reference=4.0).unit == "4 kg m-2 h-1"


@pytest.mark.parametrize("rule", [AverageIntensity(), DomainMass(reference=2.0), ExceedanceArea(threshold=0.3)])
def test_a_constraint_survives_its_own_document(rule: AnyConstraint) -> None:
    assert TypeAdapter(AnyConstraint).validate_json(rule.model_dump_json()) == rule


CONFIG = IntensityEstimatorConfig(frames_out=3, scale=0.1, width=8)


@settings(deadline=None)
@given(st.floats(0.0015, 3.0))
def test_the_link_is_undone(intensity: float) -> None:
    value = torch.tensor(intensity, dtype=torch.float64)
    assert float(from_link(to_link(value, CONFIG), CONFIG)) == pytest.approx(intensity, rel=1e-9)


def anticipated(mean: float, std: float) -> AnticipatedIntensity:
    return AnticipatedIntensity(torch.full((1, 4), mean), torch.full((1, 4), std), CONFIG)


def test_targets_rise_with_n_and_never_fall_below_nothing() -> None:
    targets = [float(anticipated(0.0, 1.0).target(n)) for n in (-40.0, -4.0, -2.0, 0.0, 2.0, 4.0)]
    assert targets == sorted(set(targets))
    assert targets[0] >= 0.0
    assert float(anticipated(30.0, 1.0).target(4.0) - anticipated(30.0, 1.0).target(0.0)) == pytest.approx(0.4)
    assert anticipated(0.0, 1.0).lead_targets(1.0).shape == (1, 3)


def test_members_targets_lie_around_the_target_and_coincide_without_spread() -> None:
    expected = anticipated(30.0, 1.0)
    spread = expected.member_targets(2.0, range(64), seed=1)
    assert float(spread.mean()) == pytest.approx(float(expected.target(2.0)), rel=5e-3)
    assert float(spread.std()) == pytest.approx(0.1, rel=0.1)
    same = expected.member_targets(2.0, range(4), spread=0.0)
    torch.testing.assert_close(same, expected.target(2.0).expand(4))
    with pytest.raises(ValueError, match="expected one window; got 2"):
        AnticipatedIntensity(torch.zeros(2, 4), torch.ones(2, 4), CONFIG).member_targets(0.0, range(2))


def growing(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Contexts (B, 4, 16, 16, 1) and what follows (B, 3, 1): rain that changed by a factor goes on changing by it."""
    generator = torch.Generator().manual_seed(seed)
    level = 0.05 + 0.2 * torch.rand(batch, 1, generator=generator)
    factor = 0.8 + 0.4 * torch.rand(batch, 1, generator=generator)
    series = level * factor ** torch.arange(7.0)
    fields = series[:, :4, None, None, None].expand(-1, -1, 16, 16, 1)
    scatter = torch.exp(0.05 * torch.randn(batch, 1, generator=generator))
    return fields.contiguous(), (series[:, 4:] * scatter)[..., None]


def test_the_estimator_starts_as_persistence_and_learns_mean_and_spread_from_the_context() -> None:
    torch.manual_seed(0)
    rule, estimator = AverageIntensity(), IntensityEstimator(CONFIG)
    context, future = growing(256, 1)
    with torch.no_grad():
        before = estimator(context, rule.values(context))
        torch.testing.assert_close(before.target(), rule.values(context)[:, -1, 0])
    descent = torch.optim.Adam(estimator.parameters(), lr=5e-3)
    for _ in range(250):
        descent.zero_grad()
        torch.autograd.backward(estimator.loss(context, rule.values(context), future))
        descent.step()
    context, future = growing(256, 2)
    with torch.no_grad():
        after = estimator(context, rule.values(context))
    observed = to_link(future.mean(dim=1)[:, 0], CONFIG)
    deviation = (observed - after.mean[:, -1]) / after.std[:, -1]
    assert float((after.target() - future.mean(dim=(1, 2))).abs().mean()) < 0.4 * float(
        (before.target() - growing(256, 1)[1].mean(dim=(1, 2))).abs().mean()
    )
    assert 0.7 < float(deviation.std()) < 1.5


def test_frames_without_observation_do_not_count() -> None:
    estimator = IntensityEstimator(CONFIG)
    context, future = growing(4, 1)
    intensity = AverageIntensity().values(context)
    future[0] = torch.nan
    assert float(estimator.loss(context, intensity, future).detach()) == pytest.approx(
        float(estimator.loss(context[1:], intensity[1:], future[1:]).detach()), rel=1e-5
    )
    torch.autograd.backward(estimator.loss(context, intensity, future))
    assert all(torch.isfinite(p.grad).all() for p in estimator.parameters() if p.grad is not None)
    torch.testing.assert_close(estimator.loss(context, intensity, future * torch.nan).detach(), torch.zeros(()))


def test_the_published_link_is_plain() -> None:
    config = CONFIG.model_copy(update={"link": "identity"})
    assert float(AnticipatedIntensity(torch.ones(1, 4), torch.ones(1, 4), config).target(-4.0)) == pytest.approx(-0.3)
