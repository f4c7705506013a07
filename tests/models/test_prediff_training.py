"""PreDiff's networks train on CPU without the group norm fault of torch 2.13.0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from builders import prediff_training
from models.prediff.blocks import VolumeGroupNorm, safe_for_group_norm


def test_training_steps_on_channels_last_inputs_end_well() -> None:
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, str(prediff_training.__file__)],
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr[-2000:]}"
    assert len(run.stdout.splitlines()) == 10


def test_only_an_input_without_gradient_is_copied_and_only_while_gradients_are_recorded() -> None:
    view = torch.randn(2, 3, 4, 4, 8).permute(0, 4, 1, 2, 3)
    assert safe_for_group_norm(view).is_contiguous()
    with torch.no_grad():
        assert safe_for_group_norm(view) is view
    learning = view.detach().requires_grad_()
    assert safe_for_group_norm(learning) is learning


def test_gradients_through_a_channels_last_view_are_those_of_the_contiguous_copy() -> None:
    norm = VolumeGroupNorm(8, 4).double()
    nn.init.normal_(norm.weight)
    volume = torch.randn(2, 3, 4, 4, 8, dtype=torch.float64)
    gradients = []
    for contiguous in (False, True):
        norm.zero_grad()
        x = volume.clone().requires_grad_()
        view = x.permute(0, 4, 1, 2, 3)
        norm(view.contiguous() if contiguous else view).pow(3).sum().backward()
        assert x.grad is not None
        assert norm.weight.grad is not None
        assert norm.bias.grad is not None
        gradients.append((x.grad, norm.weight.grad.clone(), norm.bias.grad.clone()))
    for view_gradient, copy_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(view_gradient, copy_gradient)
