"""Two ways to compute the same network: "fast" (the default), and "plain", the reference's own order of operations.

Both use the same parameters and give the same numbers up to rounding. The plain way is there to be read, to test the
fast one against, and as the baseline of the benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

Derived = TypeVar("Derived", Tensor, Tensor | None)


class Execution(StrEnum):
    """How a network computes."""

    PLAIN = "plain"
    FAST = "fast"


class _Kept(NamedTuple):
    """A derived tensor and what it was derived from; the sources are held so that no address is used twice."""

    state: tuple[object, ...]
    sources: tuple[Tensor, ...]
    value: Any


class TwoPathModule(nn.Module):
    """A module that reads `self.execution` in its forward pass and may keep tensors derived from its weights."""

    execution: Execution = Execution.FAST
    _kept: dict[Hashable, _Kept] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the reference's order of operations is wanted."""
        return self.execution is Execution.PLAIN

    def derived(self, name: Hashable, sources: Sequence[Tensor], compute: Callable[[], Derived]) -> Derived:
        """compute(), a function of `sources` alone, kept between calls at inference.

        Computed anew in training or with gradients, under torch.compile, and whenever a source was replaced, moved
        or written to. `train()` and `eval()` forget, which also covers a write through `.data`.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        if any(source.is_inference() for source in sources):  # such tensors do not count their writes
            return compute()
        device = sources[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        state = (autocast, *((s.data_ptr(), s._version, s.dtype, s.shape) for s in sources))
        kept = self._kept = {} if self._kept is None else self._kept
        found = kept.get(name)
        if found is None or found.state != state:
            found = kept[name] = _Kept(state, tuple(source.detach() for source in sources), compute())
        value: Derived = found.value
        return value

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; forgets derived tensors."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None}


def set_execution(network: nn.Module, execution: Execution | str) -> None:
    """Choose how `network` computes from now on."""
    chosen = Execution(execution)
    for module in network.modules():
        if isinstance(module, TwoPathModule):
            module.execution = chosen


@contextmanager
def executed(network: nn.Module, execution: Execution | str) -> Iterator[None]:
    """Inside the block `network` computes in the way `execution`."""
    before = [(module, module.execution) for module in network.modules() if isinstance(module, TwoPathModule)]
    set_execution(network, execution)
    try:
        yield
    finally:
        for module, execution_before in before:
            module.execution = execution_before
