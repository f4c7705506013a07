"""How weights are moved: parameter groups, the learning rate of a step, the moving average of the weights.

References:
    Loshchilov & Hutter (2019), AdamW, arXiv:1711.05101; Gao et al. (2022), Earthformer, arXiv:2207.05833.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two AdamW groups: weights decay; LayerNorm parameters and whatever has `bias` in its name do not.

    GroupNorm scales, embeddings and initial global vectors decay; relative-position bias tables do not (the grouping
    of the published trainings).
    """
    norms = {
        f"{name}.{key}" if name else key
        for name, module in network.named_modules()
        if isinstance(module, nn.LayerNorm)
        for key, _ in module.named_parameters(recurse=False)
    }
    kept: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        (kept if name in norms or "bias" in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def learning_rate(progress: float, *, base: float, warmup: float = 0.2, floor: float = 1e-3) -> float:
    """Linear warm-up from 0, then a cosine down to `floor * base`, where it stays.

    Args:
        progress: Share of the training that is done, 0..1 (a share of steps or of the time budget).
        base: Peak rate.
        warmup: Share of the training spent warming up.
        floor: Last rate over the peak.
    """
    if progress < warmup:
        return base * progress / warmup
    turned = min((progress - warmup) / max(1.0 - warmup, 1e-9), 1.0)
    low = floor * base
    return low + (base - low) * (1.0 + float(np.cos(np.pi * turned))) / 2.0


def step_rate(step: int, total: int, *, base: float, warmup: float = 0.2, floor: float = 1e-3) -> float:
    """Rate of update `step` (0-based) of `total`: the first update already moves and the last one is at the floor."""
    return learning_rate((step + 1) / max(total, 1), base=base, warmup=warmup, floor=floor)


def reference_rate(step: int, total: int, *, base: float, warmup: float = 0.2, floor: float = 1e-3) -> float:
    """Rate of update `step` as in the published trainings, for comparing runs with theirs.

    The first update has rate 0, and past `total` the rate rises again.
    """
    steps = round(warmup * total)
    if step < steps:
        return base * step / steps
    low = floor * base
    return low + (base - low) * (1.0 + float(np.cos(np.pi * (step - steps) / (total - steps)))) / 2.0


class MovingAverage:
    """Exponential moving average of the weights, itself warming up so that early averages are not the random start.

    Update n, counted from 1, keeps min(decay, (1 + n) / (10 + n)) of the average.

    Raises:
        ValueError: a decay with which it would never move.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"expected 0 <= decay < 1; got {decay}")
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, updates: int) -> None:
        """Move towards the live weights after `updates` steps of the optimiser (not of micro-batches)."""
        pull = 1.0 - min(self.decay, (1.0 + updates) / (10.0 + updates))
        live = network.state_dict()
        moving = [name for name, value in self.weights.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.weights[n] for n in moving], [live[n] for n in moving], pull)

    def to(self, device: torch.device) -> None:
        """Move to where the network is."""
        self.weights = {name: value.to(device) for name, value in self.weights.items()}

    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over saved averages.

        Raises:
            ValueError: names other than this network's.
        """
        if set(weights) != set(self.weights):
            odd = sorted(set(weights) ^ set(self.weights))
            raise ValueError(f"expected averages of the same parameters; these differ: {', '.join(odd[:5])}")
        for name, value in weights.items():
            self.weights[name].copy_(value)
