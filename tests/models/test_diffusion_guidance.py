"""Knowledge alignment: on Gaussian latents the guided ensemble is the conditional distribution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from builders.diffusion import CONTEXT, SHAPE, gaussian_world, objective
from models.prediff.guidance import CalibratedGuidance, Guidance, ShiftGuidance, as_trained
from models.prediff.noise import member_quantiles
from models.prediff.samplers import LatentSampler, SamplerConfig
from models.prediff.schedule import DiffusionSchedule
from models.prediff.tiles import CellNoise

WORLD = gaussian_world()
SCHEDULE = DiffusionSchedule()
MEMBERS = 256


def target(n: float | Tensor) -> Tensor:
    return torch.as_tensor(WORLD.quantity_mean + n * WORLD.quantity_std).float().expand(MEMBERS)


def calibrated(n: float | Tensor, **settings: float) -> CalibratedGuidance:
    return CalibratedGuidance(WORLD.estimate(SCHEDULE), SCHEDULE, target(n), **settings)  # type: ignore[arg-type]


def draw(guidance: Guidance | None, kind: str = "noise", method: str = "dpmpp2m", steps: int = 10) -> Tensor:
    rule = objective(kind)
    config = SamplerConfig(method=method, steps=steps)  # type: ignore[arg-type]
    noise = CellNoise(3, range(MEMBERS))
    return LatentSampler(WORLD.denoise(rule), rule, config).sample(CONTEXT, SHAPE, noise, MEMBERS, guidance=guidance)


def departure(z: Tensor) -> Tensor:
    """The quantity's departure from its mean, in its own standard deviations (B,)."""
    return (WORLD.quantity(z) - WORLD.quantity_mean) / WORLD.quantity_std


@pytest.mark.parametrize(
    ("kind", "method", "steps"),
    [
        ("noise", "dpmpp2m", 10),
        ("noise", "unipc", 10),
        ("noise", "ddim", 20),
        ("noise", "ddpm", 100),
        ("velocity", "dpmpp2m", 5),
        ("flow", "euler", 10),
        ("flow", "dpmpp2m", 4),
    ],
)
@pytest.mark.parametrize("n", [-4.0, 0.0, 2.0])
def test_every_sampler_meets_the_target_at_any_number_of_steps(kind: str, method: str, steps: int, n: float) -> None:
    reached = departure(draw(calibrated(n), kind, method, steps))
    torch.testing.assert_close(reached, torch.full_like(reached, n), rtol=0, atol=0.02)


@pytest.mark.slow
def test_a_thousand_ancestral_steps_meet_the_target_too() -> None:
    rule, members = objective(), 16
    sampler = LatentSampler(WORLD.denoise(rule), rule, SamplerConfig(method="ddpm", steps=1000))
    guidance = CalibratedGuidance(WORLD.estimate(SCHEDULE), SCHEDULE, target(4.0)[:members])
    reached = departure(sampler.sample(CONTEXT, SHAPE, CellNoise(3, range(members)), members, guidance=guidance))
    torch.testing.assert_close(reached, torch.full_like(reached, 4.0), rtol=0, atol=0.02)


def test_the_guided_ensemble_has_the_mean_and_spread_of_the_conditional_distribution() -> None:
    free, guided = draw(None, steps=20).double().flatten(1), draw(calibrated(2.0), steps=20).double().flatten(1)
    shift = WORLD.covariance @ WORLD.weights / WORLD.quantity_std
    torch.testing.assert_close(guided.mean(0) - free.mean(0), 2.0 * shift, rtol=0, atol=0.12)
    conditional = WORLD.covariance - torch.outer(shift, shift)
    ratio = torch.cov(guided.T).trace() / conditional.trace()
    assert 0.9 < float(ratio) < 1.1


def test_targets_spread_over_members_keep_the_spread_of_the_quantity() -> None:
    reached = departure(draw(calibrated(2.0 + member_quantiles(0, range(MEMBERS)))))
    assert float(reached.mean()) == pytest.approx(2.0, abs=0.05)
    assert float(reached.std()) == pytest.approx(1.0, abs=0.05)


def test_each_sample_is_guided_on_its_own() -> None:
    rule, n = objective(), torch.linspace(-3.0, 3.0, 5)
    sampler = LatentSampler(WORLD.denoise(rule), rule, SamplerConfig(steps=5))
    goal = WORLD.quantity_mean + n * WORLD.quantity_std
    estimate = WORLD.estimate(SCHEDULE)
    together = sampler.sample(
        CONTEXT, SHAPE, CellNoise(1, range(5)), 5, guidance=CalibratedGuidance(estimate, SCHEDULE, goal)
    )
    alone = sampler.sample(
        CONTEXT, SHAPE, CellNoise(1, [2]), 1, guidance=CalibratedGuidance(estimate, SCHEDULE, goal[2:3])
    )
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-5)


def test_no_strength_is_no_guidance() -> None:
    torch.testing.assert_close(draw(calibrated(3.0, strength=0.0)), draw(None), rtol=0, atol=1e-5)


def test_the_move_is_bounded_by_the_reach() -> None:
    tight = departure(draw(calibrated(40.0, reach=0.2)))
    assert float(tight.max()) < 20.0
    assert float(tight.mean()) > 1.0


def test_a_quantity_that_depends_on_nothing_leaves_the_sample_alone() -> None:
    def constant(z: Tensor, t: Tensor) -> Tensor:
        return 0.0 * z.mean(dim=(2, 3, 4))[..., None] + 0.3

    guidance = CalibratedGuidance(constant, SCHEDULE, torch.ones(MEMBERS))
    torch.testing.assert_close(draw(guidance), draw(None))


def test_a_prediction_that_reads_its_target_is_left_alone_after_one_look() -> None:
    looks = list[int]()

    def estimate(z: Tensor, t: Tensor) -> Tensor:
        looks.append(len(z))
        return WORLD.estimate(SCHEDULE)(z, t)

    z, t = draw(None), torch.full((MEMBERS,), 50)
    prediction = objective().interpret(WORLD.denoise(objective())(z, t, CONTEXT), z, t)
    reading = WORLD.estimate(SCHEDULE)(prediction.data, torch.zeros(MEMBERS, dtype=torch.long)).mean(dim=(1, 2))
    near, off = reading * 1.001, reading * torch.where(torch.arange(MEMBERS) == 7, 1.2, 1.001)
    assert CalibratedGuidance(estimate, SCHEDULE, near).adjust(prediction) is prediction
    assert looks == [MEMBERS]
    moved = CalibratedGuidance(estimate, SCHEDULE, off).adjust(prediction)
    assert (moved.data != prediction.data).flatten(1).any(1).nonzero().flatten().tolist() == [7]


def test_the_shift_is_nearly_the_same_at_ten_and_at_a_thousand_steps_where_the_published_rule_fades() -> None:
    shift = ShiftGuidance(WORLD.estimate(SCHEDULE), SCHEDULE, target(8.0), scale=1.0)
    few, many = (float(departure(draw(shift, steps=steps)).mean()) for steps in (10, 100))
    assert few > 0.2
    assert few == pytest.approx(many, rel=0.25)


def test_the_published_norm_couples_the_samples_of_a_batch_and_the_corrected_one_does_not() -> None:
    z = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    goals = torch.tensor([0.5, -3.0])

    def gradient(coupled: bool, rows: slice) -> Tensor:
        rule = ShiftGuidance(WORLD.estimate(SCHEDULE), SCHEDULE, goals[rows], coupled=coupled)
        return rule.distance_gradient(z[rows], 500)[0]

    one = slice(0, 1)
    torch.testing.assert_close(gradient(False, slice(None))[:1], gradient(False, one))
    assert not torch.allclose(gradient(True, slice(None))[:1], gradient(True, one), rtol=0.05)
    torch.testing.assert_close(gradient(True, one), gradient(False, one))


def test_a_point_of_a_straight_path_is_read_as_one_of_the_diffusion() -> None:
    rule, t = objective("flow"), torch.full((2,), 499)  # half data, half noise
    z = torch.ones(2, *SHAPE)
    scaled, step = as_trained(rule.interpret(torch.zeros_like(z), z, t), SCHEDULE)
    torch.testing.assert_close(scaled, z * 2**0.5)
    alpha, sigma = SCHEDULE.coefficients(torch.tensor(step))
    assert float(alpha) == pytest.approx(float(sigma), rel=0.02)


def test_an_impossible_strength_is_refused() -> None:
    with pytest.raises(ValueError, match="strength of 0 to 1"):
        calibrated(0.0, strength=1.5)
