"""How much of a quantity blurred predictions show: all of a linear one, less of rain."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from builders.diffusion import CONTEXT, SHAPE, gaussian_world, objective
from models.prediff.calibration import ReadingCalibration, calibrate_reading
from models.prediff.guidance import CalibratedGuidance
from models.prediff.samplers import LatentSampler, SamplerConfig
from models.prediff.schedule import DiffusionSchedule
from models.prediff.tiles import CellNoise

WORLD = gaussian_world()
SCHEDULE = DiffusionSchedule()


def windows(count: int = 512) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(count, len(WORLD.mean), generator=generator, dtype=torch.float64)
    latents = WORLD.mean + normal @ torch.linalg.cholesky(WORLD.covariance).T
    return latents.float().view(count, *SHAPE), CONTEXT.expand(count, *CONTEXT.shape[1:])


def rain(z: Tensor, t: Tensor) -> Tensor:
    """Rain is what is above 1: (B, T, 1)."""
    return (z - 1.0).clamp(min=0).mean(dim=(2, 3, 4))[..., None]


@pytest.mark.parametrize("kind", ["noise", "flow"])
def test_a_linear_quantity_reads_the_same_on_every_prediction(kind: str) -> None:
    rule = objective(kind)
    measured = calibrate_reading(WORLD.denoise(rule), rule, WORLD.estimate(SCHEDULE), *windows(), points=6)
    assert measured.steps[-1] == 999
    assert measured.ratios == pytest.approx([1.0] * 6, abs=0.1)


def test_rain_reads_lower_the_more_the_prediction_is_blurred() -> None:
    rule = objective()
    measured = calibrate_reading(WORLD.denoise(rule), rule, rain, *windows(), points=6)
    assert measured.ratios[0] == pytest.approx(1.0, abs=0.01)
    assert list(measured.ratios) == sorted(measured.ratios, reverse=True)
    assert measured.ratios[-1] < 0.8


def test_calibrated_targets_are_met_at_the_end_and_not_enforced_on_blurred_predictions() -> None:
    rule, members = objective(), 32
    calibration = calibrate_reading(WORLD.denoise(rule), rule, rain, *windows(), points=12)
    goal = torch.linspace(0.2, 0.5, members)
    guidance = CalibratedGuidance(rain, SCHEDULE, goal, calibration=calibration)
    sampler = LatentSampler(WORLD.denoise(rule), rule, SamplerConfig(steps=10))
    z = sampler.sample(CONTEXT, SHAPE, CellNoise(0, range(members)), members, guidance=guidance)
    reached = rain(z, torch.zeros(members)).mean(dim=(1, 2))
    torch.testing.assert_close(reached, goal, rtol=0.05, atol=0.02)


def test_ratios_are_linear_between_the_measured_steps_and_constant_beyond() -> None:
    calibration = ReadingCalibration(steps=(10, 20), ratios=(1.0, 0.5))
    assert [calibration.at(t) for t in (0, 10, 15, 20, 999)] == [1.0, 1.0, 0.75, 0.5, 0.5]
    assert ReadingCalibration.model_validate_json(calibration.model_dump_json()) == calibration


@pytest.mark.parametrize(("steps", "ratios"), [((), ()), ((2, 1), (1.0, 1.0)), ((1, 2), (1.0,))])
def test_a_table_that_is_none_is_refused(steps: tuple[int, ...], ratios: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="rising steps"):
        ReadingCalibration(steps=steps, ratios=ratios)


def test_windows_without_the_quantity_are_refused() -> None:
    rule = objective()
    latents, contexts = windows(2)
    with pytest.raises(ValueError, match="differs from zero"):
        calibrate_reading(WORLD.denoise(rule), rule, rain, latents * 0.0, contexts)
