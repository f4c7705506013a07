"""Samplers: on Gaussian latents with the exact denoiser every one finds the mean and the spread."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from builders.diffusion import CONTEXT, DIM, SHAPE, gaussian_world, objective
from models.prediff.noise import member_quantiles
from models.prediff.samplers import LatentSampler, SamplerConfig, SamplingStep, default_sampler
from models.prediff.schedule import DiffusionSchedule
from models.prediff.solvers import AncestralSolver, build_solver
from models.prediff.tiles import CellNoise

WORLD = gaussian_world()
MEMBERS = 1024


def draw(kind: str, method: str, steps: int, members: int = MEMBERS) -> Tensor:
    rule = objective(kind)
    config = SamplerConfig(method=method, steps=steps)  # type: ignore[arg-type]
    sampler = LatentSampler(WORLD.denoise(rule), rule, config)
    return sampler.sample(CONTEXT, SHAPE, CellNoise(3, range(members)), members)


@pytest.mark.parametrize(
    ("kind", "method", "steps", "variance"),
    [
        ("noise", "ddpm", 200, (0.9, 1.06)),
        ("noise", "ddpm", 50, (0.82, 1.0)),
        ("noise", "ddim", 50, (0.9, 1.02)),
        ("noise", "dpmpp2m", 10, (0.95, 1.05)),
        ("noise", "dpmpp2m", 20, (0.95, 1.05)),
        ("noise", "unipc", 10, (0.97, 1.05)),
        ("velocity", "dpmpp2m", 10, (0.96, 1.04)),
        ("flow", "dpmpp2m", 10, (0.93, 1.03)),
        ("flow", "euler", 100, (0.95, 1.03)),
    ],
)
def test_mean_and_variance_of_the_data_are_reproduced(
    kind: str, method: str, steps: int, variance: tuple[float, float]
) -> None:
    members = MEMBERS // 4 if method == "ddpm" else MEMBERS
    z = draw(kind, method, steps, members).double().flatten(1)
    error = (z.mean(0) - WORLD.mean).square().mean().sqrt()
    assert float(error) < 3.0 * float(WORLD.covariance.trace() / DIM / members) ** 0.5
    low, high = variance
    assert low < float(torch.cov(z.T).trace() / WORLD.covariance.trace()) < high


def test_velocity_and_noise_networks_of_equal_knowledge_draw_equal_samples() -> None:
    torch.testing.assert_close(draw("velocity", "dpmpp2m", 8, 4), draw("noise", "dpmpp2m", 8, 4), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["euler", "dpmpp2m"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_where_paths_are_straight_any_number_of_steps_is_exact(method: str, steps: int) -> None:
    """All data in one point: each path is a straight line to it."""
    rule, point = objective("flow"), torch.full(SHAPE, 0.7)

    def flow(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        _, sigma = rule.path.coefficients(t)
        return (z - point) / sigma[0].float()

    sampler = LatentSampler(flow, rule, SamplerConfig(method=method, steps=steps))  # type: ignore[arg-type]
    z = sampler.sample(CONTEXT, SHAPE, CellNoise(0, range(2)), 2)
    torch.testing.assert_close(z, point.expand(2, *SHAPE), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "method"), [("noise", "ddpm"), ("noise", "dpmpp2m"), ("flow", "euler")])
def test_a_member_is_the_same_in_every_batch(kind: str, method: str) -> None:
    rule = objective(kind)
    config = SamplerConfig(method=method, steps=10)  # type: ignore[arg-type]
    sampler = LatentSampler(WORLD.denoise(rule), rule, config)
    together = sampler.sample(CONTEXT, SHAPE, CellNoise(9, range(5)), 5)
    alone = sampler.sample(CONTEXT, SHAPE, CellNoise(9, [3]), 1)
    torch.testing.assert_close(together[3:4], alone)
    other = sampler.sample(CONTEXT, SHAPE, CellNoise(10, [3]), 1)
    assert not torch.allclose(other, alone)


def test_noise_differs_between_members_and_steps_and_not_between_calls() -> None:
    source, cpu = CellNoise(1, [0, 1]), torch.device("cpu")
    first, second = source.draw(0, (2, *SHAPE), cpu), source.draw(1, (2, *SHAPE), cpu)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    assert torch.equal(first, source.draw(0, (2, *SHAPE), cpu))
    with pytest.raises(ValueError, match="batch of 2 members; got 3"):
        source.draw(0, (3, *SHAPE), cpu)


def test_ancestral_sampling_is_that_of_diffusers_with_its_own_noise() -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    rule = objective()
    theirs = DDPMScheduler(1000, 1e-4, 2e-2, "scaled_linear", variance_type="fixed_small", clip_sample=False)
    ours = AncestralSolver(rule.schedule, 1000, "trailing", eta=1.0)
    z = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for t in (999, 500, 10, 1, 0):
        steps = torch.full((2,), t)
        answer = WORLD.denoise(rule)(z, steps, CONTEXT)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(t))
        expected = theirs.step(answer, t, z, generator=torch.Generator().manual_seed(t)).prev_sample
        torch.testing.assert_close(ours.step(rule.interpret(answer, z, steps), t, noise), expected, rtol=0, atol=3e-4)


def test_trailing_steps_begin_at_the_noisiest_and_leading_ones_end_at_the_cleanest() -> None:
    schedule = DiffusionSchedule()
    assert list(build_solver("ddim", schedule, 4).timesteps) == [999, 749, 499, 249]
    assert list(build_solver("ddim", schedule, 4, spacing="leading").timesteps) == [750, 500, 250, 0]
    assert list(build_solver("euler", objective("flow").path, 3).timesteps) == [999, 666, 332]
    for method in ("dpmpp2m", "unipc"):
        assert list(build_solver(method, schedule, 4).timesteps) == [999, 749, 499, 249]


@pytest.mark.parametrize(
    ("kind", "method", "steps", "message"),
    [
        ("noise", "euler", 10, "straight path for euler"),
        ("flow", "ddim", 10, "euler or dpmpp2m"),
        ("noise", "dpmpp2m", 1001, "1 to 1000 sampling steps"),
        ("noise", "ddpm", 300, "divisor of 1000"),
    ],
)
def test_what_a_solver_cannot_do_is_refused_before_sampling(kind: str, method: str, steps: int, message: str) -> None:
    rule = objective(kind)
    with pytest.raises(ValueError, match=message):
        LatentSampler(WORLD.denoise(rule), rule, SamplerConfig(method=method, steps=steps))  # type: ignore[arg-type]


def test_one_context_serves_all_members_and_each_step_is_seen() -> None:
    rule, seen, contexts = objective(), list[SamplingStep](), list[tuple[int, ...]]()

    def denoise(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        contexts.append(tuple(context.shape))
        return torch.zeros_like(z)

    config = SamplerConfig(steps=3)
    z = LatentSampler(denoise, rule, config).sample(CONTEXT, SHAPE, CellNoise(0, range(4)), 4, observe=seen.append)
    assert contexts == [(4, *CONTEXT.shape[1:])] * 3
    assert [step.t for step in seen] == [999, 666, 332]
    assert torch.equal(seen[-1].z_next, z)
    assert not z.requires_grad


def test_the_network_runs_in_bfloat16_and_the_latents_stay_float32() -> None:
    rule, layer = objective(), torch.nn.Linear(2, 2)
    seen: list[torch.dtype] = []

    def denoise(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        answer: Tensor = layer(z)
        seen.append(answer.dtype)
        return answer

    for bf16, expected in ((True, torch.bfloat16), (False, torch.float32)):
        sampler = LatentSampler(denoise, rule, SamplerConfig(steps=2, bf16=bf16))
        assert sampler.sample(CONTEXT, SHAPE, CellNoise(0, [0]), 1).dtype == torch.float32
        assert seen[-1] == expected


def test_the_default_takes_twenty_steps_and_ten_for_flows() -> None:
    assert default_sampler("noise").steps == default_sampler("velocity").steps == 20
    assert default_sampler("flow").steps == 10


def test_member_quantiles_fill_the_distribution_evenly_and_depend_on_no_other_member() -> None:
    values = member_quantiles(5, range(64))
    assert abs(float(values.mean())) < 0.05
    assert float(values.std()) == pytest.approx(1.0, abs=0.06)
    assert float(member_quantiles(5, [17])[0]) == float(values[17])
    halves = member_quantiles(5, range(8)) > 0
    assert int(halves.sum()) == 4
