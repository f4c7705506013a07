"""What a trained PreDiff is: the configuration beside its weights."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.configuration import CONFIG_VERSION, ForecasterConfig, NoEcho
from models.prediff.architecture import PreDiffArchitecture
from models.prediff.calibration import ReadingCalibration
from models.prediff.constraints import AnyConstraint, AverageIntensity
from models.prediff.intensity_estimator import IntensityEstimatorConfig
from models.prediff.mapping import QuantileMapping
from models.prediff.objective import ObjectiveKind
from models.prediff.samplers import SamplerConfig
from models.transform import Transform

PreDiffAnchor = Literal["none", "persistence", "extrapolation", "earthformer"]


class PreDiffConfig(BaseModel):
    """Everything needed to rebuild a trained PreDiff, beside its weights.

    `anchor` is our addition to the paper (compare CasCast, arXiv:2402.04290, and DiffCast, arXiv:2312.06734): what is
    diffused is the difference, in the latent space, between the future and a deterministic forecast of it, which the
    denoiser sees. "earthformer" carries that model inside (`anchor_model`, weights under `anchor.`), so that a
    registered PreDiff needs nothing beside it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = CONFIG_VERSION
    family: Literal["prediff"] = "prediff"
    preset: str
    architecture: PreDiffArchitecture
    # Observed frames a forecast wants; the denoiser sees the last `context_frames` of them.
    t_in: int = Field(ge=1)
    t_out: int = Field(ge=1)
    cadence_s: int = Field(default=300, ge=1)
    cell_size_m: float = Field(default=1000.0, gt=0)
    quantity: str = "rainfall_rate"
    transform: Transform = Transform()
    no_echo: NoEcho = None
    anchor: PreDiffAnchor = "none"
    anchor_model: ForecasterConfig | None = None
    objective: ObjectiveKind = "noise"
    diffusion_steps: int = Field(default=1000, ge=2)
    sampler: SamplerConfig = SamplerConfig()
    estimator: IntensityEstimatorConfig
    constraint: AnyConstraint = AverageIntensity()
    # How much of the constraint's value predictions from noise still show, measured after training; None: not measured.
    reading: ReadingCalibration | None = None
    # From drawn to observed values, fitted on validation windows; None: members as they are drawn.
    mapping: QuantileMapping | None = None
    # Factor on the noise a sample starts from; chosen on validation windows so that spread and error agree.
    spread: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.version != CONFIG_VERSION:
            raise ValueError(f"expected config version {CONFIG_VERSION}; got {self.version}: a newer Squall wrote it")
        parts = self.architecture
        if parts.t_out != self.t_out or parts.t_in > self.t_in:
            raise ValueError(
                f"expected networks of at most {self.t_in} context frames and {self.t_out} lead times; "
                f"got {parts.t_in} and {parts.t_out}"
            )
        if self.estimator.frames_out != self.t_out:
            raise ValueError(f"expected an estimator of {self.t_out} lead times; got {self.estimator.frames_out}")
        if self.transform.quantity != self.quantity:
            raise ValueError(f"expected a transform of {self.quantity}; got one of {self.transform.quantity}")
        self._check_anchor()
        return self

    def _check_anchor(self) -> None:
        latent = self.architecture.autoencoder.latent_channels
        wanted = 0 if self.anchor == "none" else latent
        came = self.architecture.denoiser.condition_channels, self.architecture.alignment.condition_channels
        if came != (wanted, wanted):
            raise ValueError(f"expected networks of {wanted} condition channels for anchor {self.anchor}; got {came}")
        if (self.anchor_model is not None) != (self.anchor == "earthformer"):
            raise ValueError(
                f"expected an anchor_model exactly for the anchor earthformer; the anchor is {self.anchor}"
            )
        if self.anchor_model is None:
            return
        for name in ("t_in", "t_out", "cadence_s", "cell_size_m", "quantity", "transform"):
            ours, theirs = getattr(self, name), getattr(self.anchor_model, name)
            if ours != theirs:
                raise ValueError(f"expected an anchor model of {name} {ours}; got {theirs}")

    @property
    def context_frames(self) -> int:
        """Newest observed frames that the denoiser sees."""
        return self.architecture.t_in

    @property
    def patch(self) -> tuple[int, int]:
        """(H, W) of the frames the networks were built for."""
        return self.architecture.patch

    @property
    def frames_in(self) -> int:
        """Frames of the context."""
        return self.t_in
