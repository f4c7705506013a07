"""What steering does: intensities that were asked for beside those that came out, and what it costs in CRPS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any, cast

import numpy as np

from models.prediff.forecaster import PreDiffForecaster
from tasks.training.sample_set import SampleSet
from tasks.training.samples import Window
from tasks.training.sampling_steps import vary
from tasks.verification.ensemble_scores import EnsembleSums, ensemble_sums


@dataclass(frozen=True)
class IntensityRow:
    """One strength of steering at one number of sampler steps; intensities are in network units.

    Attributes:
        name: Of the model.
        steps: Of its sampler.
        intensity: n of the average intensity mu + n sigma that members were steered to; None: not steered.
        target: What was asked for, mean over members and windows; NaN where nothing was.
        achieved: What came out, mean over members and windows.
        off_target: Mean over windows of |ensemble mean of what came out / of the targets - 1|.
        crps: Fair CRPS, units of the field; NaN of a single member.
        crps_cost: CRPS relative to that of members that were not steered, minus 1.
        seconds: Median of one ensemble.
    """

    name: str
    steps: int
    intensity: float | None
    target: float
    achieved: float
    off_target: float
    crps: float
    crps_cost: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def tabulate_intensities(
    name: str,
    forecaster: PreDiffForecaster,
    samples: SampleSet,
    windows: Sequence[Window],
    intensities: Sequence[float],
    *,
    members: int = 8,
    seed: int = 0,
) -> list[IntensityRow]:
    """One row for members that are not steered, then one per intensity, ascending; all see the same initial noise.

    Raises:
        ValueError: no window or no member.
    """
    if not windows or members < 1:
        raise ValueError(f"expected windows and members; got {len(windows)} windows, {members} members")
    rows = [_row(name, forecaster, samples, windows, None, members, seed, None)]
    for intensity in sorted(intensities):
        rows.append(_row(name, forecaster, samples, windows, intensity, members, seed, rows[0].crps))
    return rows


def is_monotone(rows: Sequence[IntensityRow]) -> bool:
    """Whether more was achieved wherever more was asked for."""
    steered = sorted((row for row in rows if row.intensity is not None), key=lambda row: cast("float", row.intensity))
    return all(one.achieved < other.achieved for one, other in pairwise(steered))


def as_markdown(rows: Sequence[IntensityRow]) -> str:
    """The table in Markdown."""
    head = "| model | steps | n | target | achieved | off target | CRPS | CRPS cost | s |\n" + "|---" * 9 + "|\n"
    lines = [
        f"| {row.name} | {row.steps} | {'not steered' if row.intensity is None else f'{row.intensity:+g}'} "
        f"| {row.target:.4f} | {row.achieved:.4f} | {row.off_target:.1%} | {row.crps:.4g} | {row.crps_cost:+.1%} "
        f"| {row.seconds:.2f} |"
        for row in rows
    ]
    return head + "\n".join(lines)


def _row(
    name: str,
    forecaster: PreDiffForecaster,
    samples: SampleSet,
    windows: Sequence[Window],
    intensity: float | None,
    members: int,
    seed: int,
    unsteered: float | None,
) -> IntensityRow:
    steered = cast("PreDiffForecaster", vary(forecaster, intensity=intensity))
    reader, total = samples.reader(), cast("EnsembleSums | None", None)
    targets, achieved, seconds = list[float](), list[float](), list[float]()
    for number, window in enumerate(windows):
        fields = reader.read([window])[0]
        context, observed = fields[samples.t_in - steered.t_in : samples.t_in], fields[samples.t_in :]
        drawn = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        start = perf_counter()
        forecast = steered.forecast(context, len(observed), members=members, seed=drawn)
        seconds.append(perf_counter() - start)
        sums = ensemble_sums(forecast, observed, 0.0)
        total = sums if total is None else total + sums
        achieved.append(float(steered.achieved(forecast).mean()))
        if intensity is not None:
            wanted = steered.anticipate(context).member_targets(intensity, range(members), seed=drawn)
            targets.append(float(wanted.mean()))
    assert total is not None
    crps, found, asked = total.mean_crps, np.array(achieved), np.array(targets or [np.nan] * len(achieved))
    return IntensityRow(
        name=name,
        steps=steered.sampling.steps,
        intensity=intensity,
        target=float(asked.mean()),
        achieved=float(found.mean()),
        off_target=float(np.abs(found / asked - 1).mean()),
        crps=crps,
        crps_cost=0.0 if unsteered is None else crps / unsteered - 1,
        seconds=float(np.median(seconds)),
    )
