"""Physical units ↔ what a network sees; the transform travels inside the checkpoint.

Rain becomes logarithmic reflectivity, which spreads drizzle and downpour over about [0, 1]; other quantities are scaled
linearly.

References:
    Marshall, J. S. & Palmer, W. M. (1948), doi:10.1175/1520-0469(1948)005<0165:TDORWS>2.0.CO;2 (Z = 200 R^1.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self, overload

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

Array = npt.NDArray[np.floating]
_NEPERS_PER_DECIBEL = math.log(10.0) / 10.0


class Transform(BaseModel):
    """u = 10·log10(1 + a·R^b)/scale ("log_reflectivity", R in mm h-1), or u = (x − offset)/scale ("linear").

    NaN (not observed) stays NaN in `forward` and `inverse`; `encode` gives a network its zeros and the mask beside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantity: str = "rainfall_rate"
    kind: Literal["log_reflectivity", "linear"] = "log_reflectivity"
    scale: float = Field(default=55.0, gt=0)
    offset: float = 0.0
    a: float = Field(default=200.0, gt=0)
    b: float = Field(default=1.6, gt=0)
    # Least physical value a forecast may take; None: unbounded.
    lower: float | None = 0.0

    @classmethod
    def of_quantity(cls, quantity: str) -> Self:
        """The usual transform of `quantity`.

        Raises:
            ValueError: a quantity without one.
        """
        try:
            return cls.model_validate({"quantity": quantity, **_USUAL[quantity]})
        except KeyError:
            raise ValueError(f"expected a quantity of {', '.join(_USUAL)}; got {quantity!r}") from None

    @overload
    def forward(self, x: Tensor, quantity: str | None = None) -> Tensor: ...
    @overload
    def forward(self, x: Array, quantity: str | None = None) -> Array: ...
    def forward(self, x: Tensor | Array, quantity: str | None = None) -> Tensor | Array:
        """Physical x (any shape) → network space, same type and dtype; NaN stays NaN.

        Raises:
            ValueError: `quantity` is given and is not this transform's.
        """
        self._check(quantity)
        if isinstance(x, np.ndarray):
            return _through_torch(self._forward, x)
        return self._forward(x)

    @overload
    def inverse(self, u: Tensor, quantity: str | None = None) -> Tensor: ...
    @overload
    def inverse(self, u: Array, quantity: str | None = None) -> Array: ...
    def inverse(self, u: Tensor | Array, quantity: str | None = None) -> Tensor | Array:
        """Network space u (any shape) → physical units, not below `lower`; NaN stays NaN.

        Raises:
            ValueError: `quantity` is given and is not this transform's.
        """
        self._check(quantity)
        if isinstance(u, np.ndarray):
            return _through_torch(self._inverse, u)
        return self._inverse(u)

    def encode(self, x: Tensor, quantity: str | None = None) -> tuple[Tensor, Tensor]:
        """Physical x → (u with 0 where not observed, mask True where observed)."""
        u = self.forward(x, quantity)
        observed = ~torch.isnan(u)
        return torch.where(observed, u, torch.zeros((), dtype=u.dtype, device=u.device)), observed

    def _check(self, quantity: str | None) -> None:
        if quantity is not None and quantity != self.quantity:
            raise ValueError(f"this transform is for {self.quantity}; got {quantity}")

    def _forward(self, x: Tensor) -> Tensor:
        if self.kind == "linear":
            return (x - self.offset) / self.scale
        reflectivity = self.a * x.clamp(min=0).pow(self.b)
        return torch.log1p(reflectivity) / (_NEPERS_PER_DECIBEL * self.scale)

    def _inverse(self, u: Tensor) -> Tensor:
        if self.kind == "linear":
            x = u * self.scale + self.offset
        else:
            x = (torch.expm1(u.clamp(min=0) * (_NEPERS_PER_DECIBEL * self.scale)) / self.a).pow(1 / self.b)
        return x if self.lower is None else x.clamp(min=self.lower)


_USUAL: dict[str, dict[str, object]] = {
    "rainfall_rate": {},
    "equivalent_reflectivity_factor": {"kind": "linear", "scale": 55.0, "lower": None},
    "vil": {"kind": "linear", "scale": 255.0},
    "vil_code": {"kind": "linear", "scale": 255.0},  # SEVIR's byte code 0..255 of VIL
    "brightness": {"kind": "linear", "scale": 1.0, "lower": None},
    "sea_surface_temperature": {
        # Extremes of ICAR-ENSO's CMIP5 and CMIP6 anomalies in K, as the published ENSO model was trained.
        "kind": "linear",
        "scale": 26.74809741973877,
        "offset": -16.549121856689453,
        "lower": None,
    },
}


def _through_torch(function: Callable[[Tensor], Tensor], x: Array) -> Array:
    result: Array = function(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    return result
