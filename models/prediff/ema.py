"""Exponential moving average of a network's weights: what samples are drawn with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of the parameters, updated once per optimiser step; n counts updates from 1.

    The decay warms up as min(decay, (1 + n) / (10 + n)), so that early averages forget the random start. Buffers are
    not averaged: `averaged` uses the live ones.
    """

    def __init__(self, network: nn.Module, decay: float = 0.9999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"expected 0 <= decay < 1; got {decay}")
        self.decay = decay
        self.updates = 0
        self.weights = {name: value.detach().clone() for name, value in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move towards the live weights; call after each optimiser step, not after each micro-batch."""
        self.updates += 1
        keep = min(self.decay, (1.0 + self.updates) / (10.0 + self.updates))
        live = dict(network.named_parameters())
        names = list(self.weights)
        torch._foreach_lerp_([self.weights[name] for name in names], [live[name] for name in names], 1.0 - keep)

    @contextmanager
    def averaged(self, network: nn.Module) -> Iterator[None]:
        """Inside, `network` has the averaged weights; afterwards the live ones again, whatever happens."""
        live = {name: value.detach().clone() for name, value in network.named_parameters()}
        _load(network, self.weights)
        try:
            yield
        finally:
            _load(network, live)

    def copy_to(self, network: nn.Module) -> None:
        """Give `network` the averaged weights for good, for example before export."""
        _load(network, self.weights)

    def to(self, device: torch.device | str) -> None:
        """Move to where the network is."""
        self.weights = {name: value.to(device) for name, value in self.weights.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Averages under the network's own names, and the count of updates under "updates"."""
        return {**self.weights, "updates": torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved averages.

        Raises:
            ValueError: names other than this network's.
        """
        if set(state) != {*self.weights, "updates"}:
            odd = sorted(set(state) ^ {*self.weights, "updates"})
            raise ValueError(f"expected averages of the same parameters; these differ: {', '.join(odd[:5])}")
        self.updates = int(state["updates"])
        for name, value in self.weights.items():
            value.copy_(state[name])


@torch.no_grad()
def _load(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in network.named_parameters():
        parameter.copy_(weights[name])
