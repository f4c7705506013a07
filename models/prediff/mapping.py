"""Quantile mapping: members' values get the distribution that observations have, and keep their order.

A denoiser trained for minutes leaves faint noise where the air is dry, and an autoencoder takes the edge off the
strongest cores. Both are the same in every forecast, so a map from drawn to observed quantiles, fitted on validation
windows, takes them away (probability matching, Ebert 2001, doi:10.1175/1520-0493(2001)129<2480:AOAPMS>2.0.CO;2;
quantile mapping, Gudmundsson et al. 2012, doi:10.5194/hess-16-3383-2012).
"""

from __future__ import annotations

from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

_SAMPLE = 4_000_000  # torch.quantile's own limit is 16 million values
_APART = 1e-7  # equal quantiles (dry cells) are kept this far apart, network space


class QuantileMapping(BaseModel):
    """Pairs of equal probability, network space; between them linear, beyond the last one shifted as it is.

    Attributes:
        drawn: Of members before the map, rising.
        observed: Of observations in the same cells, not falling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    drawn: tuple[float, ...]
    observed: tuple[float, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.drawn) != len(self.observed) or len(self.drawn) < 2:
            raise ValueError(f"expected two pairs or more; got {len(self.drawn)} drawn, {len(self.observed)} observed")
        rises = all(low < high for low, high in zip(self.drawn, self.drawn[1:], strict=False))
        if not rises or list(self.observed) != sorted(self.observed):
            raise ValueError("expected rising quantiles")
        return self

    def apply(self, frames: Tensor) -> Tensor:
        """Frames of any shape, network space → the same ranks with observed values; NaN stays NaN."""
        drawn, observed = (torch.tensor(values).to(frames) for values in (self.drawn, self.observed))
        right = torch.bucketize(frames.contiguous(), drawn).clamp(1, len(drawn) - 1)
        low, high = drawn[right - 1], drawn[right]
        share = ((frames - low) / (high - low)).clamp(min=0.0, max=1.0)
        mapped = observed[right - 1] + share * (observed[right] - observed[right - 1])
        return mapped + (frames - drawn[-1]).clamp(min=0.0)


def fit_mapping(drawn: Tensor, observed: Tensor) -> QuantileMapping:
    """The map from `drawn` to `observed`, values of any number in the same cells, network space, without NaN.

    Raises:
        ValueError: no values.
    """
    if not drawn.numel() or not observed.numel():
        raise ValueError("expected drawn and observed values; got none")
    levels = torch.cat([torch.linspace(0.0, 0.95, 96), 1.0 - torch.logspace(-1.301, -4, 24)[1:]]).double()
    ours, theirs = (_quantiles(values, levels) for values in (drawn, observed))
    ours = torch.cummax(ours, dim=0).values + _APART * torch.arange(len(levels), dtype=torch.float64)
    return QuantileMapping(drawn=tuple(ours.tolist()), observed=tuple(torch.cummax(theirs, dim=0).values.tolist()))


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    flat = values.flatten().double()
    return torch.quantile(flat[:: -(-len(flat) // _SAMPLE)], levels)
