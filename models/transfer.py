"""Transfer of trained weights to an Earthformer of another geometry: frames, grid, channels, anchor, global vectors.

What has the same meaning in both networks is kept bit by bit. Otherwise, by kind of weight:

- position embeddings are interpolated linearly along each of their axes, first place to first and last to last; the
  embedding of an extrapolation's frames is an axis of its own;
- tables of relative position bias are interpolated linearly along each axis of offsets, 0 to 0 and the farthest offset
  that the one network was trained with to the farthest that the other has;
- the first convolution takes the mean over the trained input channels for every channel, scaled so that equal inputs
  give the same response;
- the last projection takes the mean over the trained outputs for every output channel;
- the first global vectors are kept;
- fresh are: further global vectors and their layers where the trained network had none, embeddings and bias tables
  that it did not have, and the last projection where the anchor differs, because the output then means another thing.

Anything else that differs is an error: widths, depths, heads and attention patterns are not geometry.

References:
    Dosovitskiy et al. (2021), section 3.2, interpolated position embeddings, arXiv:2010.11929.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.checkpoint import CheckpointError
from models.configuration import ForecasterConfig
from models.transfer_geometry import Axis, geometry_of, stretch, stretch_bias

_FIRST = re.compile(r"^initial_(aux_)?encoder\.(conv_block|conv_block_list\.0)\.0\.weight$")
_GLOBALS = re.compile(r"(^|[._])(global|l2g|g2l|g2g)_")
_OPTIONAL = ("relative_position_bias_table", "hierarchical_pos_embed_l")


class Change(NamedTuple):
    """One weight that was not simply kept.

    Attributes:
        key: Its name.
        parent: Its shape in the trained network; None where it had none.
        child: Its shape now; None where there is no such weight any more.
        rule: What was done.
    """

    key: str
    parent: tuple[int, ...] | None
    child: tuple[int, ...] | None
    rule: str


@dataclass(frozen=True)
class TransferReport:
    """What became of the weights.

    Attributes:
        kept: Names of weights taken bit by bit.
        adapted: Weights computed from the trained ones.
        fresh: Weights that begin untrained.
        dropped: Trained weights without a place.
        context: What else differs between the two: quantity, cadence, cell size, anchor, frames, grid, architecture.
    """

    kept: tuple[str, ...]
    adapted: tuple[Change, ...]
    fresh: tuple[Change, ...]
    dropped: tuple[Change, ...]
    context: Mapping[str, str]

    def __str__(self) -> str:
        counts = (f"{len(getattr(self, name))} {name}" for name in ("kept", "adapted", "fresh", "dropped"))
        return ", ".join(counts)

    def as_dict(self) -> dict[str, object]:
        """For a JSON document."""
        fields: dict[str, object] = asdict(self)
        changes = {name: [one._asdict() for one in getattr(self, name)] for name in ("adapted", "fresh", "dropped")}
        return fields | changes | {"summary": str(self)}


def transfer_weights(
    parent: ForecasterConfig, state: Mapping[str, Tensor], child: ForecasterConfig, network: nn.Module
) -> TransferReport:
    """Load the weights `state` of a trained `parent` into `network`, the freshly initialised one of `child`.

    Raises:
        CheckpointError: they differ in more than geometry; the first weight without a rule is named with both shapes.
    """
    prefixes = _prefix(parent), _prefix(child)
    theirs = {key.removeprefix(prefixes[0]): value for key, value in state.items()}
    ours = {key.removeprefix(prefixes[1]): value for key, value in network.state_dict().items()}
    transfer = _Transfer(parent, child)
    weights = {key: transfer.weight(key, theirs.get(key), fresh) for key, fresh in ours.items()}
    for key, value in theirs.items():
        if key not in ours:
            transfer.drop(key, value)
    network.load_state_dict({f"{prefixes[1]}{key}": value for key, value in weights.items()})
    return transfer.report()


def _prefix(config: ForecasterConfig) -> str:
    return "" if config.anchor == "none" else "network."


class _Transfer:
    """Rules for one pair of networks, and the record of what they did."""

    def __init__(self, parent: ForecasterConfig, child: ForecasterConfig) -> None:
        self.parent, self.child = parent, child
        self.old, self.new = geometry_of(parent), geometry_of(child)
        self.kept: list[str] = []
        self.adapted: list[Change] = []
        self.fresh: list[Change] = []
        self.dropped: list[Change] = []

    def weight(self, key: str, trained: Tensor | None, fresh: Tensor) -> Tensor:
        """The weight `key` begins with; `fresh` is what it was initialised with."""
        if trained is None:
            self._require_known(key, None, fresh)
            return self._begin(key, None, fresh, "not in the trained network")
        if key.startswith("dec_final_proj") and self.parent.anchor != self.child.anchor:
            return self._begin(key, trained, fresh, f"anchor {self.parent.anchor} → {self.child.anchor}")
        found = self._adapt(key, trained, fresh)
        if found is not None and found[0].shape == fresh.shape:
            self.adapted.append(Change(key, tuple(trained.shape), tuple(fresh.shape), found[1]))
            return found[0].to(fresh)
        if trained.shape != fresh.shape:
            raise self._unknown(key, trained, fresh)
        self.kept.append(key)
        return trained.to(fresh)

    def _adapt(self, key: str, trained: Tensor, fresh: Tensor) -> tuple[Tensor, str] | None:
        """The weight by the rule of its kind; None where it is to be kept, or has no rule."""
        if key in self.new.tables:
            return self._bias(key, trained)
        if key in self.new.axes:
            old, new = self.old.axes[key], self.new.axes[key]
            rule = f"interpolated from {_sizes(old)} places to {_sizes(new)}"
            return None if old == new else (stretch(trained, old, new), rule)
        if trained.shape == fresh.shape:
            return None
        return self._channels(key, trained, fresh)

    def _bias(self, key: str, trained: Tensor) -> tuple[Tensor, str] | None:
        old, new = self.old.tables[key], self.new.tables[key]
        if old == new:
            return None
        if any((before == 1) != (now == 1) for before, now in zip(old.cuboid, new.cuboid, strict=True)):
            raise CheckpointError(
                f"{key}: expected a cuboid along the axes of {new.cuboid}; got {old.cuboid}: another attention pattern"
            )
        return stretch_bias(trained, old, new), f"offsets of cuboid {old.cuboid} stretched to {new.cuboid}"

    def _channels(self, key: str, trained: Tensor, fresh: Tensor) -> tuple[Tensor, str] | None:
        if _FIRST.match(key):
            before, now = trained.shape[1], fresh.shape[1]
            value = trained.mean(dim=1, keepdim=True).expand(-1, now, -1, -1) * (before / now)
            return value, f"mean over {before} input channels for each of {now}"
        if key.startswith("dec_final_proj"):
            before, now = len(trained), len(fresh)
            value = trained.mean(dim=0, keepdim=True).expand(now, *trained.shape[1:])
            return value, f"mean over {before} output channels for each of {now}"
        if key == "init_global_vectors" and trained.shape[1] == fresh.shape[1]:
            count = min(len(trained), len(fresh))
            return torch.cat([trained[:count].to(fresh), fresh[count:]]), f"the first {count} vectors"
        return None

    def _begin(self, key: str, trained: Tensor | None, fresh: Tensor, rule: str) -> Tensor:
        self.fresh.append(Change(key, None if trained is None else tuple(trained.shape), tuple(fresh.shape), rule))
        return fresh

    def drop(self, key: str, trained: Tensor) -> None:
        """Leave out a trained weight that has no place."""
        self._require_known(key, trained, None)
        self.dropped.append(Change(key, tuple(trained.shape), None, "not in the new network"))

    def _require_known(self, key: str, trained: Tensor | None, fresh: Tensor | None) -> None:
        if not _GLOBALS.search(key) and not any(part in key for part in _OPTIONAL):
            raise self._unknown(key, trained, fresh)

    def _unknown(self, key: str, trained: Tensor | None, fresh: Tensor | None) -> CheckpointError:
        wanted, got = ("no such key" if t is None else tuple(t.shape) for t in (fresh, trained))
        return CheckpointError(f"{self.parent.preset} → {self.child.preset}: {key}: expected {wanted}; got {got}")

    def report(self) -> TransferReport:
        """What became of the weights."""
        return TransferReport(
            tuple(self.kept), tuple(self.adapted), tuple(self.fresh), tuple(self.dropped), self._context()
        )

    def _context(self) -> dict[str, str]:
        names = ("preset", "quantity", "cadence_s", "cell_size_m", "anchor", "t_in", "t_out", "patch")
        pairs = {name: (getattr(self.parent, name), getattr(self.child, name)) for name in names}
        old, new = self.parent.architecture.model_dump(), self.child.architecture.model_dump()
        pairs |= {name: (old[name], new[name]) for name in new if not name.endswith("_shape")}
        return {name: f"{before} → {now}" for name, (before, now) in pairs.items() if before != now}


def _sizes(axes: tuple[Axis, ...]) -> str:
    return " x ".join("+".join(map(str, axis)) for axis in axes)
