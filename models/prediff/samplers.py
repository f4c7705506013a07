"""From noise to latents in a few steps: solvers of diffusers and Euler's for flows behind one contract.

References:
    Ho et al. (2020), DDPM, arXiv:2006.11239; Song et al. (2021), DDIM, arXiv:2010.02502.
    Lu et al. (2022), DPM-Solver++, arXiv:2211.01095; Zhao et al. (2023), UniPC, arXiv:2302.04867.
    Lin et al. (2024), trailing steps, arXiv:2305.08891; Liu et al. (2023), rectified flow, arXiv:2209.03003.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.prediff.guidance import Guidance
from models.prediff.noise import NoiseSource
from models.prediff.objective import Denoise, DiffusionObjective, ObjectiveKind, Prediction
from models.prediff.solvers import Method, Solver, build_solver


class SamplerConfig(BaseModel):
    """How latents are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = "dpmpp2m"
    # Evaluations of the network per sample.
    steps: int = Field(default=20, ge=1)
    spacing: Literal["trailing", "leading"] = "trailing"
    # The network runs under bfloat16 autocast; latents and solver stay float32.
    bf16: bool = False


def default_sampler(kind: ObjectiveKind) -> SamplerConfig:
    """DPM-Solver++ of second order: ten steps for flows, else twenty."""
    return SamplerConfig(steps=10 if kind == "flow" else 20)


@dataclass(frozen=True)
class SamplingStep:
    """One step as an observer sees it: t, the (guided) prediction at z_t and the next latent."""

    t: int
    prediction: Prediction
    z_next: Tensor


class LatentSampler:
    """Draws latents of the future given latents of the past."""

    def __init__(self, denoise: Denoise, objective: DiffusionObjective, config: SamplerConfig | None = None) -> None:
        self.denoise = denoise
        self.objective = objective
        self.config = config or default_sampler(objective.kind)
        self.solver()

    def solver(self) -> Solver:
        """A fresh solver: multistep ones remember their trajectory.

        Raises:
            ValueError: a method for another objective, or steps that it cannot take.
        """
        config = self.config
        return build_solver(config.method, self.objective.path, config.steps, spacing=config.spacing)

    def sample(
        self,
        context: Tensor,
        shape: tuple[int, int, int, int],
        noise: NoiseSource,
        batch: int,
        *,
        guidance: Guidance | None = None,
        observe: Callable[[SamplingStep], None] | None = None,
        solver: Solver | None = None,
    ) -> Tensor:
        """Latents (batch, T_out, h, w, C) float32.

        Args:
            context: (1 or batch, T_in, h, w, C) latents of the past, encoded once; one context serves all members.
            shape: (T_out, h, w, C) of one sample.
            noise: The members' noise.
            batch: Members drawn together.
            guidance: Steers each prediction, for example to an average intensity.
            observe: Called after every step.
            solver: A fresh one that the configuration does not name.
        """
        solver = solver or self.solver()
        with torch.inference_mode(False), torch.no_grad():
            known = context.expand(batch, *context.shape[1:])
            z = noise.draw(0, (batch, *shape), context.device)
            for index, t in enumerate(solver.timesteps, start=1):
                prediction = self._predict(z, t, known)
                if guidance is not None:
                    prediction = guidance.adjust(prediction)
                fresh = noise.draw(index, (batch, *shape), context.device) if solver.stochastic else None
                z = solver.step(prediction, t, fresh)
                if observe is not None:
                    observe(SamplingStep(t, prediction, z))
        return z

    def _predict(self, z: Tensor, t: int, context: Tensor) -> Prediction:
        steps = torch.full((len(z),), t, device=z.device)
        with torch.autocast(z.device.type, dtype=torch.bfloat16, enabled=self.config.bf16):
            answer = self.denoise(z, steps, context)
        return self.objective.interpret(answer, z, steps)
