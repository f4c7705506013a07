"""How large an ensemble a deadline allows: everything, then fewer steps, then fewer members, then the next rung.

An ensemble takes load + shared + members · (member + steps · step) seconds: what all members share (anchor, encoding of
the context), what each costs once (decoding), and what each costs per step. These four were measured on the newest
product of the same model; where there is none, a single step of a single member is timed first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Fields = NDArray[np.float32]
Choice = Literal["full", "fewer steps", "fewer members"]

# Share of the time left that an ensemble is planned for: what was measured once varies by so much.
_PLANNED = 0.8
# Beyond this many sigma the anticipated intensity is no more than a number.
_FARTHEST = 6.0


class DeadlineUnreachable(RuntimeError):
    """A rung is known to take longer than what is left."""


class Unsteerable(ValueError):
    """A what-if was asked of a forecaster that cannot be steered."""


@runtime_checkable
class EnsembleForecaster(Protocol):
    """A forecaster whose members are drawn in steps, and may be steered."""

    def asked(
        self, *, steps: int, intensity: float | None, observe: Callable[[str, float], None] | None = None
    ) -> EnsembleForecaster:
        """The same at `steps` steps or the next smaller number that it can take."""
        ...

    @property
    def steps(self) -> int | None:
        """Steps of each member; None: its own number."""
        ...

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """As `models.forecaster.Forecaster.forecast`."""
        ...


@dataclass(frozen=True)
class EnsembleCost:
    """Seconds of an ensemble.

    Attributes:
        shared_s: Once, for all members.
        member_s: Each member.
        step_s: Each step of each member.
        load_s: The model, once.
    """

    shared_s: float
    member_s: float
    step_s: float
    load_s: float = 0.0

    @classmethod
    def measured(cls, total_s: float, stages: Mapping[str, float], members: int, steps: int) -> EnsembleCost:
        """From one forecast of `total_s` [s] whose stages "sampling" and "decoding" [s] are known."""
        sampling, decoding = stages.get("sampling", 0.0), stages.get("decoding", 0.0)
        return cls(max(total_s - sampling - decoding, 0.0), decoding / members, sampling / (members * steps))

    def seconds(self, members: int, steps: int) -> float:
        """Expected seconds of `members` of `steps` each."""
        return self.load_s + self.shared_s + members * (self.member_s + steps * self.step_s)

    def most_steps(self, members: int, budget_s: float) -> int:
        """Steps that `members` can take within `budget_s` [s]; below 1 where none."""
        return _whole(((budget_s - self.seconds(members, 0)) / members), self.step_s)

    def most_members(self, steps: int, budget_s: float) -> int:
        """Members of `steps` each within `budget_s` [s]; below 1 where none."""
        return _whole(budget_s - self.seconds(0, steps), self.member_s + steps * self.step_s)


@dataclass(frozen=True)
class Ensembles:
    """What a rung's ensembles may be.

    Attributes:
        steps: Of each member, in full.
        sampler: Name of the method.
        least_steps: Fewest that still make a forecast.
        least_members: Fewest that still make an ensemble.
        cost: As measured on the newest product; None = not measured.
    """

    steps: int
    sampler: str
    least_steps: int
    least_members: int
    cost: EnsembleCost | None = None


@dataclass(frozen=True)
class EnsembleSize:
    """Members, steps of each, and why so many: one word, and a sentence."""

    members: int
    steps: int
    choice: Choice
    reason: str


@dataclass(frozen=True)
class EnsembleRun:
    """What was asked of an ensemble and what was given.

    Attributes:
        members_asked: How many were wanted.
        members: How many there are.
        steps_asked: Steps of each member, in full.
        steps: Steps taken.
        sampler: Name of the method.
        choice: In a word.
        reason: In a sentence.
        intensity: n of the average intensity mu + n sigma that members were steered to; None: not steered.
        cost: As measured in this run, loading included.
    """

    members_asked: int
    members: int
    steps_asked: int
    steps: int
    sampler: str
    choice: Choice
    reason: str
    intensity: float | None
    cost: EnsembleCost


def parse_intensity(text: str) -> float:
    """`+2sigma`, `-1sigma`, `0.5` as the number of standard deviations from the anticipated average intensity.

    Raises:
        ValueError: another form, or further than six sigma.
    """
    match = re.fullmatch(r"([+-]?\d+(?:\.\d+)?)\s*(?:sigma|σ)?", text.strip(), re.IGNORECASE)
    if match is None or abs(float(match[1])) > _FARTHEST:
        raise ValueError(f"expected an intensity of -6sigma to +6sigma, such as +2sigma or -1.5; got {text!r}")
    return float(match[1])


def intensity_in_words(intensity: float) -> str:
    """`mu + 2 sigma`, `mu - 1.5 sigma`, `mu`."""
    return "mu" if intensity == 0 else f"mu {'+' if intensity > 0 else '-'} {abs(intensity):g} sigma"


def choose_size(
    ensembles: Ensembles, cost: EnsembleCost, members: int, left_s: float, *, must: bool = False
) -> EnsembleSize:
    """The largest ensemble that is expected to be done in `left_s` [s]: first steps are given up, then members.

    Args:
        ensembles: What the rung can do.
        cost: Of one member and step.
        members: How many are wanted.
        left_s: Seconds left.
        must: Whether it is the last rung, which answers whatever the time.

    Raises:
        DeadlineUnreachable: the smallest ensemble takes longer.
    """
    budget, full = _PLANNED * left_s, cost.seconds(members, ensembles.steps)
    if full <= budget:
        return EnsembleSize(members, ensembles.steps, "full", f"all of it was expected to take {full:.1f} s")
    least_steps, least_members = min(ensembles.least_steps, ensembles.steps), min(ensembles.least_members, members)
    told = f"all of it was expected to take {full:.1f} s of the {max(left_s, 0):.1f} s left"
    if (steps := min(cost.most_steps(members, budget), ensembles.steps - 1)) >= least_steps:
        return EnsembleSize(members, steps, "fewer steps", told)
    if (count := min(cost.most_members(least_steps, budget), members - 1)) >= least_members or must:
        choice: Choice = "fewer members" if members > least_members else "fewer steps"
        return EnsembleSize(max(count, least_members), least_steps, choice, told)
    least = cost.seconds(least_members, least_steps)
    raise DeadlineUnreachable(
        f"expected {least:.1f} s for the least, {least_members} members of {least_steps} steps; "
        f"{max(left_s, 0):.1f} s are left"
    )


def draw_ensemble(
    forecaster: EnsembleForecaster,
    ensembles: Ensembles,
    context: Fields,
    lead_times: int,
    *,
    members: int,
    seed: int,
    intensity: float | None,
    left: Callable[[], float],
    must: bool,
) -> tuple[Fields, EnsembleRun]:
    """Members (member, lead_time, y, x) from `context` (time, y, x), both in the model's terms, and how many they are.

    Args:
        forecaster: Loaded.
        ensembles: What it may do.
        context: NaN = not observed.
        lead_times: How many.
        members: How many are wanted.
        seed: Of the members.
        intensity: n of mu + n sigma to steer to; None: not steered.
        left: Seconds left until the deadline.
        must: Whether it is the last rung.

    Raises:
        DeadlineUnreachable: the smallest ensemble takes longer than what is left.
    """

    def drawn(count: int, steps: int) -> tuple[Fields, int, EnsembleCost]:
        stages: dict[str, float] = {}

        def add(stage: str, seconds: float) -> None:
            stages[stage] = stages.get(stage, 0.0) + seconds

        start = perf_counter()
        asked = forecaster.asked(steps=steps, intensity=intensity, observe=add)
        values = asked.forecast(context, lead_times, members=count, seed=seed)
        taken = asked.steps or steps
        return values, taken, EnsembleCost.measured(perf_counter() - start, stages, count, taken)

    cost = ensembles.cost or drawn(1, 1)[2]
    size = choose_size(ensembles, replace(cost, load_s=0.0), members, left(), must=must)
    values, steps, spent = drawn(size.members, size.steps)
    run = EnsembleRun(
        members_asked=members,
        members=size.members,
        steps_asked=ensembles.steps,
        steps=steps,
        sampler=ensembles.sampler,
        choice=size.choice,
        reason=size.reason,
        intensity=intensity,
        cost=spent,
    )
    return values, run


def _whole(seconds: float, each: float) -> int:
    """How many of `each` [s] fit in `seconds`."""
    if seconds < 0:
        return 0
    return int(seconds // each) if each > 0 else 2**31
