"""How many sampler steps an ensemble needs: the fewest whose CRPS is within 2 % of the best."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from models.forecaster import Forecaster
from tasks.training.ensemble_comparison import EnsembleComparison
from tasks.training.ensemble_table import tabulate_ensembles

TOLERANCE = 0.02


@dataclass(frozen=True)
class SamplerSetting:
    """One way to sample.

    Attributes:
        steps: Of the sampler.
        sampler: Its name; None leaves the forecaster's own.
    """

    steps: int
    sampler: str | None = None

    def __str__(self) -> str:
        return f"{self.sampler} {self.steps}" if self.sampler else str(self.steps)


def parse_setting(text: str) -> SamplerSetting:
    """`20` or `SAMPLER:20`.

    Raises:
        ValueError: anything else.
    """
    sampler, _, steps = text.strip().rpartition(":")
    if not steps.isdigit() or int(steps) < 1:
        raise ValueError(f"expected a number of steps such as 20, or SAMPLER:20; got {text!r}")
    return SamplerSetting(int(steps), sampler or None)


def vary(forecaster: Forecaster, **changes: object) -> Forecaster:
    """A copy of `forecaster` with other settings (`steps`, `sampler`, `intensity`, ...); the weights are shared.

    Raises:
        ValueError: it has no such setting.
    """
    known = {field.name for field in fields(forecaster)} if is_dataclass(forecaster) else None
    if missing := [name for name in changes if not (hasattr(forecaster, name) if known is None else name in known)]:
        raise ValueError(f"expected a forecaster with {', '.join(missing)} to set; got {type(forecaster).__name__}")
    if known is not None:
        varied: Any = replace(forecaster, **changes)
    else:
        varied = copy.copy(forecaster)
        for name, value in changes.items():
            setattr(varied, name, value)
    changed: Forecaster = varied
    return changed


def as_drawn(forecaster: Forecaster) -> Forecaster:
    """A copy without what was fitted at its own number of steps: no factor on the noise, no quantile mapping."""
    config: Any = getattr(forecaster, "config", None)
    if not hasattr(config, "mapping"):
        return forecaster
    return vary(forecaster, config=config.model_copy(update={"mapping": None, "spread": 1.0}))


def sampler_variants(
    name: str, forecaster: Forecaster, settings: Sequence[SamplerSetting]
) -> dict[str, tuple[Forecaster, SamplerSetting]]:
    """One copy of `forecaster` per setting, by name."""
    return {
        f"{name} {setting}": (
            vary(forecaster, steps=setting.steps, **({"sampler": setting.sampler} if setting.sampler else {})),
            setting,
        )
        for setting in settings
    }


@dataclass(frozen=True)
class StepsRow:
    """One line of the steps table.

    Attributes:
        name: Of the variant.
        steps: Sampler steps.
        crps: Fair CRPS, units of the field.
        above_best: CRPS relative to the best variant's, minus 1.
        csi_pool16: Of the ensemble mean over maxima of 16 x 16 cells.
        member_csi_pool16: Of single members.
        seconds: Median of one ensemble.
        chosen: Whether the rule takes it.
    """

    name: str
    steps: int
    crps: float
    above_best: float
    csi_pool16: float
    member_csi_pool16: float
    seconds: float
    chosen: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def steps_table(comparison: EnsembleComparison, variants: Mapping[str, SamplerSetting]) -> list[StepsRow]:
    """The compared variants by steps, most first, with the rule's choice marked: see `fewest_steps`."""
    scored = {row.name: row for row in tabulate_ensembles(comparison) if row.name in variants}
    best = min((row.crps for row in scored.values()), default=np.nan)
    rows = [
        StepsRow(
            name=name,
            steps=variants[name].steps,
            crps=row.crps,
            above_best=row.crps / best - 1,
            csi_pool16=row.csi_pool16,
            member_csi_pool16=row.member_csi_pool16,
            seconds=row.seconds,
        )
        for name, row in scored.items()
    ]
    chosen = fewest_steps(rows)
    ordered = sorted(rows, key=lambda row: (-row.steps, row.crps))
    return [replace(row, chosen=chosen is not None and row.name == chosen.name) for row in ordered]


class Trial(Protocol):
    """Sampler steps that were tried."""

    @property
    def steps(self) -> int:
        """Of the sampler."""
        ...

    @property
    def crps(self) -> float:
        """Fair CRPS; NaN = no evidence."""
        ...


AnyTrial = TypeVar("AnyTrial", bound=Trial)


def fewest_steps(rows: Sequence[AnyTrial], tolerance: float = TOLERANCE) -> AnyTrial | None:
    """The row with the fewest steps among those within `tolerance` of the best CRPS, of equals the best; None of none.

    A NaN (no evidence) is never within.
    """
    known = [row for row in rows if np.isfinite(row.crps)]
    best = min((row.crps for row in known), default=np.nan)
    good = [row for row in known if row.crps <= best * (1 + tolerance)]
    return min(good, key=lambda row: (row.steps, row.crps), default=None)
