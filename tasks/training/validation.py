"""Scores of a network on fixed held-out windows, as sums per lead time and threshold, and their names as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.configuration import ForecasterConfig
from models.forecaster import fill_gaps
from tasks.training.losses import Loss
from tasks.verification.scores import Contingency, Errors, contingency, errors

SHORTEST_LEAD_MIN = 10.0  # scores are compared from here on; at 5 min everything beats nothing
_UNIT = {"rainfall_rate": "mm", "equivalent_reflectivity_factor": "dbz", "vil": "kgm2"}


@dataclass(frozen=True)
class Validation:
    """Sums over validation windows; they add up over batches and processes.

    Attributes:
        loss: Sum over windows of the training loss.
        windows: How many.
        counts: Contingency (lead, threshold).
        deviations: Errors (lead,) in the quantity's units.
    """

    loss: float
    windows: int
    counts: Contingency
    deviations: Errors

    def __add__(self, other: Validation) -> Validation:
        return Validation(
            self.loss + other.loss,
            self.windows + other.windows,
            self.counts + other.counts,
            self.deviations + other.deviations,
        )

    def sums(self) -> Tensor:
        """All sums as one float64 vector (exact below 2**53), for adding up over processes."""
        return torch.from_numpy(np.concatenate([np.ravel(part).astype(np.float64) for part in self._parts()]))

    def with_sums(self, sums: Tensor) -> Validation:
        """The validation whose sums are `sums`."""
        parts, at = [], 0
        for part in self._parts():
            values = sums[at : at + part.size].cpu().numpy().reshape(part.shape)
            parts.append(values.astype(part.dtype))
            at += part.size
        counts = Contingency(parts[2], parts[3], parts[4], parts[5], self.counts.thresholds)
        return Validation(float(parts[0]), int(parts[1]), counts, Errors(*parts[6:]))

    def _parts(self) -> list[NDArray[Any]]:
        c, d = self.counts, self.deviations
        totals = [np.asarray(self.loss), np.asarray(self.windows)]
        return [*totals, c.hits, c.misses, c.false_alarms, c.correct_negatives, d.count, d.error, d.absolute, d.squared]


def encode(batch: Tensor, model: ForecasterConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Context, target and mask of known target cells, (B, T, H, W) in network space.

    Gaps of the context are filled as in forecasting; unknown target cells are 0.

    Args:
        batch: (B, t_in + t_out [+ anchor frames], H, W) windows in physical units; NaN = not observed.
        model: Frames and transform.
    """
    network_space, until = model.transform.forward(batch), model.t_in + model.t_out
    context = torch.cat([network_space[:, : model.t_in], network_space[:, until:]], dim=1)
    target = network_space[:, model.t_in : until]
    known = ~torch.isnan(target)
    return fill_gaps(context.transpose(0, 1)).transpose(0, 1), torch.nan_to_num(target, nan=0.0), known


def validate(
    forecast: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    *,
    model: ForecasterConfig,
    loss: Loss,
    thresholds: Sequence[float],
) -> Validation:
    """Forecast the held-out windows and sum up.

    Args:
        forecast: (B, frames_in, H, W) to (B, t_out, H, W), both in network space, without gaps.
        batches: (B, t_in + t_out [+ anchor frames], H, W) windows in physical units; NaN = not observed.
        model: Frames and transform.
        loss: Training loss.
        thresholds: In the quantity's units, ascending.

    Raises:
        ValueError: no batch.
    """
    parts = [_validate_batch(forecast, batch, model, loss, thresholds) for batch in batches]
    if not parts:
        raise ValueError("expected at least one validation window; got none")
    return reduce(lambda one, other: one + other, parts)


def _validate_batch(
    forecast: Callable[[Tensor], Tensor],
    batch: Tensor,
    model: ForecasterConfig,
    loss: Loss,
    thresholds: Sequence[float],
) -> Validation:
    context, target, known = encode(batch, model)
    out = forecast(context).float()
    value = loss(out, target, known)
    physical = model.transform.inverse(out).cpu().numpy().swapaxes(0, 1)
    observed = batch[:, model.t_in : model.t_in + model.t_out].cpu().numpy().swapaxes(0, 1)
    # (lead, window, y, x): windows join the cells, leads stay apart.
    leads, _, *rest = physical.shape
    flat = (leads, -1, rest[-1])
    fields = physical.reshape(flat), observed.reshape(flat)
    return Validation(float(value) * len(batch), len(batch), contingency(*fields, thresholds), errors(*fields))


def threshold_label(threshold: float, quantity: str) -> str:
    """`1mm`, `20dbz`."""
    return f"{threshold:g}{_UNIT.get(quantity, '')}"


def lead_label(lead: int, cadence_s: float) -> str:
    """`lead_30min` of lead number `lead` (from 0)."""
    return f"lead_{(lead + 1) * cadence_s / 60:g}min"


def mean_csi(counts: Contingency, cadence_s: float) -> float:
    """Mean critical success index over thresholds and leads of 10 min and more; NaN where no event came into play."""
    minutes = (np.arange(counts.hits.shape[0]) + 1) * cadence_s / 60
    chosen = minutes >= SHORTEST_LEAD_MIN
    if not chosen.any():
        chosen[:] = True
    values = counts.csi[chosen]
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def metrics(result: Validation, quantity: str, cadence_s: float, group: str = "val") -> dict[str, float]:
    """All scores by name: `val/csi_20dbz/lead_30min`, `val/mse/lead_30min`, `val/loss` and the summary `val/csi`."""
    named = {f"{group}/loss": result.loss / result.windows, f"{group}/csi": mean_csi(result.counts, cadence_s)}
    for lead, mse in enumerate(result.deviations.mse):
        named[f"{group}/mse/{lead_label(lead, cadence_s)}"] = float(mse)
    scores = {name: getattr(result.counts, name) for name in ("csi", "pod", "far", "bias")}
    for name, values in scores.items():
        for (lead, column), value in np.ndenumerate(values):
            label = threshold_label(result.counts.thresholds[column], quantity)
            named[f"{group}/{name}_{label}/{lead_label(lead, cadence_s)}"] = float(value)
    return named
