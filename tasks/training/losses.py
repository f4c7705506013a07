"""Training losses on network values (about dBZ / 55), summed over observed cells only, then divided.

References:
    Shi et al. (2017), balanced errors by rain intensity, arXiv:1706.03458.
    Ebert-Uphoff et al. (2021), differentiable scores as losses, arXiv:2106.09757.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.transform import Transform
from tasks.training.config import TrainConfig

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

# Weight of a cell by its observed intensity: below 2, 2-5, 5-10, 10-30 and from 30 mm h-1 on (Shi et al. 2017),
# here as reflectivity by Z = 200 R^1.6 and in units of the network's scale.
BALANCE_DBZ = (27.8, 34.2, 39.0, 46.6)
BALANCE_WEIGHTS = (1.0, 2.0, 5.0, 10.0, 30.0)
SCALE_DBZ = 55.0


def choose_loss(config: TrainConfig, transform: Transform) -> Loss:
    """The loss that `config` names, in the network space of `transform`."""
    if config.loss == "mse":
        return mse
    if config.loss == "balanced":
        return balanced
    levels = torch.tensor(config.loss_thresholds or config.thresholds, dtype=torch.float32)
    return soft_csi(transform.forward(levels).tolist())


def mse(forecast: Tensor, observed: Tensor, known: Tensor) -> Tensor:
    """Mean squared error over known cells; tensors (B, T, H, W), `known` bool, values of unknown cells are ignored."""
    squared = torch.where(known, forecast - observed, 0.0).square()
    return squared.sum() / known.sum().clamp(min=1)


def balanced(forecast: Tensor, observed: Tensor, known: Tensor) -> Tensor:
    """Squared plus a tenth of the absolute error, both weighted by the observed intensity (`BALANCE_WEIGHTS`)."""
    weight = _balance(observed) * known
    error = torch.where(known, forecast - observed, 0.0)
    return (weight * (error.square() + 0.1 * error.abs())).sum() / weight.sum().clamp(min=1.0)


def _balance(observed: Tensor) -> Tensor:
    edges = torch.tensor([edge / SCALE_DBZ for edge in BALANCE_DBZ], device=observed.device, dtype=observed.dtype)
    weights = torch.tensor(BALANCE_WEIGHTS, device=observed.device, dtype=observed.dtype)
    return weights[torch.bucketize(observed, edges, right=True)]


def soft_csi(thresholds: Sequence[float], sharpness: float = 2.0) -> Loss:
    """Balanced error plus one minus the critical success index made differentiable.

    Each threshold becomes a logistic step `sharpness` dBZ wide, so that hits, misses and false alarms have slopes; they
    are summed over a batch per lead time before the ratio, and thresholds and leads count alike.

    Args:
        thresholds: Network values (dBZ / 55).
        sharpness: Width of the step [dBZ].
    """
    width = sharpness / SCALE_DBZ

    def loss(forecast: Tensor, observed: Tensor, known: Tensor) -> Tensor:
        levels = torch.tensor(list(thresholds), device=forecast.device, dtype=forecast.dtype)
        missing = []
        for level in levels:
            above = torch.sigmoid((forecast - level) / width) * known
            event = (observed >= level) * known
            hits = (above * event).sum((0, 2, 3))
            union = (above + event).sum((0, 2, 3)) - hits
            missing.append(1.0 - (hits + 1.0) / (union + 1.0))
        return torch.stack(missing).mean() + balanced(forecast, observed, known)

    return loss
