"""Diffusion against the reference's figures, where they are at hand: schedules, traces, samplers, losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.settings import Settings
from tasks.golden.cases import run_golden

FOLDER = (Settings().golden or Path("../shared/golden")) / "prediff"


def given(name: str) -> Path:
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"no golden files at {path}")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["schedule", "tiny_sampling", "tiny_training_losses"])
def test_every_figure_of_the_reference_is_reproduced(folder: str) -> None:
    results = run_golden(given(folder))
    assert [f"{result.case}: {result.message}" for result in results if not result.ok] == []


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("schedule/schedule_T20.safetensors", "posterior_mean_coef2"),
        ("tiny_training_losses/ema.safetensors", "shadow_weight_after_each_of_5_updates"),
    ],
)
def test_a_wrong_figure_is_found(file: str, tensor: str, tmp_path: Path) -> None:
    tensors = load_file(given(file))
    tensors[tensor] = tensors[tensor] * (1.0 + 1e-3)
    save_file(tensors, tmp_path / Path(file).name)
    (result,) = run_golden(tmp_path)
    assert not result.ok
    assert "tolerance" in result.message


def test_a_schedule_of_another_length_is_checked_alike(tmp_path: Path) -> None:
    from models.prediff.schedule import DiffusionSchedule

    schedule = DiffusionSchedule(7)
    vectors = {"betas": schedule.betas.float(), "alphas_cumprod": schedule.alphas_cumprod.float()}
    save_file(vectors, tmp_path / "any_name.safetensors")
    (result,) = run_golden(tmp_path)
    assert result.ok, result.message
    save_file({**vectors, "unheard_of": torch.ones(7)}, tmp_path / "any_name.safetensors")
    (result,) = run_golden(tmp_path)
    assert not result.ok
    assert "unheard_of" in result.message
