"""Quantities of the future that a nowcast can be steered to: average intensity, mass, area above a threshold.

A constraint says what each frame's quantity is. The alignment network learns to read it from noisy latents, the
intensity estimator to anticipate it from the context, guidance steers to it; none of them knows which quantity it is,
and none needs its derivative.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.transform import Transform


class Constraint(Protocol):
    """One quantity of every frame."""

    @property
    def unit(self) -> str:
        """Unit of the values."""
        ...

    def values(self, frames: Tensor) -> Tensor:
        """Frames (B, T, H, W, C), network space, NaN = not observed → (B, T, 1), NaN where none observed."""
        ...


class AverageIntensity(BaseModel):
    """Mean of the observed cells above a dry one, in network space; as published where a dry cell is 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["average_intensity"] = "average_intensity"
    # Network-space value of a dry cell; reflectivity far below 0 dBZ would make the average negative.
    dry: float = 0.0

    @property
    def unit(self) -> str:
        """Network units."""
        return "1"

    def values(self, frames: Tensor) -> Tensor:
        """Frames (B, T, H, W, C), network space, NaN = not observed → (B, T, 1)."""
        return _observed_mean(frames) - self.dry


class DomainMass(BaseModel):
    """Physical mean of the observed cells over `reference`: for rain, water per area and hour (1 mm = 1 kg m-2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["domain_mass"] = "domain_mass"
    transform: Transform = Transform()
    # Physical value that counts as 1, so that networks see values of order 1 (mm h-1 for rain).
    reference: float = Field(default=1.0, gt=0)

    @property
    def unit(self) -> str:
        """Multiples of `reference`."""
        return f"{self.reference:g} {'kg m-2 h-1' if self.transform.quantity == 'rainfall_rate' else 'physical units'}"

    def values(self, frames: Tensor) -> Tensor:
        """Frames (B, T, H, W, C), network space, NaN = not observed → (B, T, 1)."""
        return _observed_mean(self.transform.inverse(frames)) / self.reference


class ExceedanceArea(BaseModel):
    """Share of the observed cells at or above `threshold`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["exceedance_area"] = "exceedance_area"
    # Network space; `of_physical` converts.
    threshold: float

    @classmethod
    def of_physical(cls, threshold: float, transform: Transform) -> ExceedanceArea:
        """With a threshold in the physical units of `transform`."""
        return cls(threshold=float(transform.forward(torch.tensor(threshold))))

    @property
    def unit(self) -> str:
        """A share."""
        return "1"

    def values(self, frames: Tensor) -> Tensor:
        """Frames (B, T, H, W, C), network space, NaN = not observed → (B, T, 1)."""
        return _observed_mean(torch.where(frames.isnan(), frames, (frames >= self.threshold).to(frames.dtype)))


AnyConstraint = Annotated[AverageIntensity | DomainMass | ExceedanceArea, Field(discriminator="kind")]


def parse_constraint(
    text: str, transform: Transform, no_echo: float | None = None
) -> AverageIntensity | DomainMass | ExceedanceArea:
    """`average_intensity`, `domain_mass` or `exceedance_area:5` (a threshold in the units of the transform's quantity).

    Args:
        text: As above.
        transform: Of the quantity.
        no_echo: What a dry cell shows, units of the quantity; None: 0 in network space.

    Raises:
        ValueError: another word, a threshold missing, too much, or no number, or the mass of a reflectivity.
    """
    kind, _, threshold = text.partition(":")
    if kind == "exceedance_area" and threshold.replace(".", "", 1).isdigit():
        return ExceedanceArea.of_physical(float(threshold), transform)
    if text == "average_intensity":
        return AverageIntensity(dry=0.0 if no_echo is None else float(transform.forward(torch.tensor(no_echo))))
    if text == "domain_mass" and transform.quantity == "equivalent_reflectivity_factor":
        raise ValueError("expected a quantity that adds up for domain_mass; got equivalent_reflectivity_factor [dBZ]")
    if text == "domain_mass":
        return DomainMass(transform=transform)
    raise ValueError(f"expected average_intensity, domain_mass or exceedance_area:THRESHOLD; got {text!r}")


def _observed_mean(frames: Tensor) -> Tensor:
    observed = ~frames.isnan()
    total = torch.where(observed, frames, 0.0).sum(dim=(2, 3, 4))
    return (total / observed.sum(dim=(2, 3, 4)))[..., None]
