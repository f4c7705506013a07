"""What a trained forecaster is: the configuration beside its weights, and the network it describes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from models.earthformer.auxiliary import AuxiliaryEarthformer
from models.earthformer.config import EarthformerConfig
from models.earthformer.network import Earthformer
from models.transform import Transform

CONFIG_VERSION = 1
Anchor = Literal["none", "persistence", "extrapolation"]
# Typed by family: further families join as a union discriminated by `family`.
Architecture = EarthformerConfig
# dBZ of a dry cell in what a model was trained on; None: not kept when it was trained, or no reflectivity. Left out of
# the file where it is None, so that an earlier Squall reads it and a training begun by one is resumed.
NoEcho = Annotated[float | None, Field(exclude_if=lambda value: value is None)]


class ForecasterConfig(BaseModel):
    """Everything needed to rebuild a trained forecaster, beside its weights.

    `anchor` is our addition to the paper: the network gives a residual, in network space, to a forecast that needs no
    training, so that its own training starts at that skill. "persistence": to the last frame. "extrapolation": to the
    newest frame moved on along its motion; the network sees those t_out frames behind its t_in context frames.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = CONFIG_VERSION
    family: Literal["earthformer"] = "earthformer"
    preset: str
    architecture: Architecture
    t_in: int = Field(ge=1)
    t_out: int = Field(ge=1)
    cadence_s: int = Field(default=300, ge=1)
    cell_size_m: float = Field(default=1000.0, gt=0)
    quantity: str = "rainfall_rate"
    transform: Transform = Transform()
    anchor: Anchor = "none"
    no_echo: NoEcho = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.version != CONFIG_VERSION:
            raise ValueError(f"expected config version {CONFIG_VERSION}; got {self.version}: a newer Squall wrote it")
        frames = self.architecture.input_shape[0], self.architecture.target_shape[0]
        if (self.frames_in, self.t_out) != frames:
            raise ValueError(
                f"expected frames in and out as the architecture's {frames}; got {self.frames_in, self.t_out}"
            )
        if self.transform.quantity != self.quantity:
            raise ValueError(f"expected a transform of {self.quantity}; got one of {self.transform.quantity}")
        if self.anchor != "none" and self.architecture.input_shape[-1] != self.architecture.target_shape[-1]:
            raise ValueError(f"anchor {self.anchor} needs as many channels out as in")
        return self

    def resized(self, *, t_in: int, t_out: int, patch: tuple[int, int], channels: int | None = None) -> Self:
        """The same model for other frame counts and another grid (H, W), optionally for other channels, in and out.

        Raises:
            ValueError: the architecture cannot have that size.
        """
        architecture = self.architecture.model_dump()
        frames_in = t_in + (t_out if self.anchor == "extrapolation" else 0)
        architecture["input_shape"] = (frames_in, *patch, channels or self.architecture.input_shape[-1])
        architecture["target_shape"] = (t_out, *patch, channels or self.architecture.target_shape[-1])
        update = {"architecture": architecture, "t_in": t_in, "t_out": t_out}
        return type(self).model_validate(self.model_dump() | update)

    @property
    def frames_in(self) -> int:
        """Frames that the network sees: the context, and the extrapolated ones where it is anchored to them."""
        return self.t_in + (self.t_out if self.anchor == "extrapolation" else 0)

    @property
    def patch(self) -> tuple[int, int]:
        """(H, W) of the grid the network was built for."""
        return self.architecture.input_shape[1], self.architecture.input_shape[2]


class Residual(nn.Module):
    """forecast = last `frames` frames of the input (one stands for all leads) + network(input); begins at these."""

    def __init__(self, network: Earthformer, frames: int) -> None:
        super().__init__()
        self.network, self.frames = network, frames
        nn.init.zeros_(network.dec_final_proj.weight)
        nn.init.zeros_(network.dec_final_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, frames_in, H, W, C), network space, without gaps → (B, T_out, H, W, C)."""
        out: Tensor = x[:, -self.frames :] + self.network(x)
        return out


def build_network(config: ForecasterConfig | Architecture) -> nn.Module:
    """The network of `config` with fresh weights: (B, frames_in, H, W, C) → (B, T_out, H, W, C), both in network space.

    From a ForecasterConfig the anchor is part of the network; from an architecture alone there is none.
    """
    architecture = config.architecture if isinstance(config, ForecasterConfig) else config
    if architecture.auxiliary_channels is not None:
        return AuxiliaryEarthformer(architecture)
    network = Earthformer(architecture)
    if not isinstance(config, ForecasterConfig) or config.anchor == "none":
        return network
    return Residual(network, 1 if config.anchor == "persistence" else config.t_out)
