"""One contract over the schedulers of diffusers: which steps to visit, and from a prediction to the next latent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.prediff.objective import Prediction
from models.prediff.schedule import DiffusionSchedule, NoisePath, StraightPath

Method = Literal["ddpm", "ddim", "dpmpp2m", "unipc", "euler"]


class Solver(Protocol):
    """Walks from noise to data."""

    @property
    def timesteps(self) -> Sequence[int]:
        """Training steps t at which a prediction is wanted, in order."""
        ...

    @property
    def stochastic(self) -> bool:
        """Whether each step takes fresh noise."""
        ...

    def step(self, prediction: Prediction, t: int, noise: Tensor | None = None) -> Tensor:
        """The next latent, shaped as `prediction.z`; `noise` unit Gaussian, for stochastic solvers."""
        ...


def build_solver(method: Method, path: NoisePath, steps: int, *, spacing: str = "trailing", order: int = 2) -> Solver:
    """A fresh solver on `path`; spacing "trailing" starts at T - 1, "leading" ends at 0.

    Raises:
        ValueError: more steps than the path has, steps that the method cannot take, or a method for another path.
    """
    if not 1 <= steps <= path.steps:
        raise ValueError(f"expected 1 to {path.steps} sampling steps; got {steps}")
    if isinstance(path, StraightPath):
        if method not in ("euler", "dpmpp2m"):
            raise ValueError(f"expected the method euler or dpmpp2m for a flow; got {method}")
        return EulerSolver(path, steps) if method == "euler" else FlowMultistepSolver(path, steps)
    if not isinstance(path, DiffusionSchedule) or method == "euler":
        raise ValueError(f"expected a diffusion schedule for {method}, a straight path for euler")
    if method in ("ddpm", "ddim"):
        return AncestralSolver(path, steps, spacing, eta=1.0 if method == "ddpm" else 0.0)
    return MultistepSolver(path, steps, spacing, corrected=method == "unipc", order=order)


def steps_taken(method: Method, path: NoisePath, most: int) -> int:
    """The largest number of sampling steps, at most `most` (at least 1), that `method` takes on `path`."""
    most = max(1, min(most, path.steps))
    if method not in ("ddpm", "ddim"):
        return most
    return next(steps for steps in range(most, 0, -1) if _ancestral(steps, path.steps))


def _ancestral(steps: int, trained: int) -> bool:
    """Whether the scheduler's whole-numbered spacing begins and ends where it should."""
    return steps <= trained // 10 or trained % steps == 0


class AncestralSolver:
    """DDIM; with `eta` 1 it is DDPM's ancestral sampling, also on fewer steps, and takes its noise from outside."""

    def __init__(self, schedule: DiffusionSchedule, steps: int, spacing: str, *, eta: float) -> None:
        if not _ancestral(steps, schedule.steps):
            raise ValueError(
                f"expected at most {schedule.steps // 10} steps or a divisor of {schedule.steps}; got {steps}"
            )
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        self.eta = eta
        self._scheduler: Any = DDIMScheduler(**_settings(schedule, spacing), clip_sample=False, set_alpha_to_one=True)
        self._scheduler.alphas_cumprod = schedule.alphas_cumprod  # float64: single precision costs 7e-5 in 1000 steps
        self._scheduler.set_timesteps(steps)

    @property
    def timesteps(self) -> Sequence[int]:
        """t, falling."""
        return [int(t) for t in self._scheduler.timesteps]

    @property
    def stochastic(self) -> bool:
        """Whether noise is added."""
        return self.eta > 0.0

    def step(self, prediction: Prediction, t: int, noise: Tensor | None = None) -> Tensor:
        """One step; any t of the schedule, in any order."""
        step = self._scheduler.step(prediction.noise, t, prediction.z, eta=self.eta, variance_noise=noise)
        z: Tensor = step.prev_sample
        return z


class MultistepSolver:
    """DPM-Solver++ (multistep) or UniPC, which corrects each step with the next prediction."""

    stochastic = False

    def __init__(self, schedule: DiffusionSchedule, steps: int, spacing: str, *, corrected: bool, order: int) -> None:
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

        settings = {**_settings(schedule, spacing), "solver_order": order, "final_sigmas_type": "zero"}
        self._scheduler: Any = (
            UniPCMultistepScheduler(**settings)
            if corrected
            else DPMSolverMultistepScheduler(**settings, algorithm_type="dpmsolver++")
        )
        self._scheduler.set_timesteps(steps)

    @property
    def timesteps(self) -> Sequence[int]:
        """t, falling."""
        return [int(t) for t in self._scheduler.timesteps]

    def step(self, prediction: Prediction, t: int, noise: Tensor | None = None) -> Tensor:
        """The next of the steps, in order."""
        z: Tensor = self._scheduler.step(prediction.noise, t, prediction.z).prev_sample
        return z


class EulerSolver:
    """Euler steps of equal length along a straight path, at whole training steps."""

    stochastic = False

    def __init__(self, path: StraightPath, steps: int) -> None:
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        self._levels = _even_levels(path, steps)
        self._scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=path.steps, shift=1.0)
        self._scheduler.set_timesteps(sigmas=list(self._levels / path.steps))
        self._scheduler.set_begin_index(0)

    @property
    def timesteps(self) -> Sequence[int]:
        """t, falling."""
        return [int(level) - 1 for level in self._levels]

    def step(self, prediction: Prediction, t: int, noise: Tensor | None = None) -> Tensor:
        """The next of the steps, in order, along noise minus data."""
        flow = prediction.noise - prediction.data
        z: Tensor = self._scheduler.step(flow, float(t + 1), prediction.z).prev_sample
        return z


class FlowMultistepSolver:
    """DPM-Solver++ (multistep, second order) along a straight path, at the steps of `EulerSolver`.

    On Gaussian data ten steps of Euler's lose a quarter of the variance, ten of these a fortieth.
    """

    stochastic = False

    def __init__(self, path: StraightPath, steps: int) -> None:
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

        levels = _even_levels(path, steps)
        self._scheduler: Any = DPMSolverMultistepScheduler(
            num_train_timesteps=path.steps, use_flow_sigmas=True, prediction_type="sample", final_sigmas_type="zero"
        )
        self._scheduler.set_timesteps(steps)
        # The scheduler's own flow levels begin below pure noise and fall on no training steps.
        self._scheduler.sigmas = torch.tensor([*(levels / path.steps), 0.0], dtype=torch.float32)
        self._scheduler.timesteps = torch.from_numpy(levels - 1)

    @property
    def timesteps(self) -> Sequence[int]:
        """t, falling."""
        return [int(t) for t in self._scheduler.timesteps]

    def step(self, prediction: Prediction, t: int, noise: Tensor | None = None) -> Tensor:
        """The next of the steps, in order."""
        z: Tensor = self._scheduler.step(prediction.data, t, prediction.z).prev_sample
        return z


def _even_levels(path: StraightPath, steps: int) -> npt.NDArray[np.int64]:
    return np.rint(np.linspace(path.steps, 0, steps, endpoint=False)).astype(np.int64)


def _settings(schedule: DiffusionSchedule, spacing: str) -> dict[str, Any]:
    return {
        "num_train_timesteps": schedule.steps,
        "trained_betas": schedule.betas.numpy(),
        "prediction_type": "epsilon",
        "timestep_spacing": spacing,
    }
