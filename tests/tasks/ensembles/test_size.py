"""What the time left leaves of an ensemble: steps are given up first, then members, then the rung."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tasks.forecasting.ensemble import DeadlineUnreachable, EnsembleCost, Ensembles, choose_size

FULL = Ensembles(steps=10, sampler="euler", least_steps=4, least_members=2)
COST = EnsembleCost(shared_s=1.0, member_s=1.0, step_s=1.0)  # of 8 members and 10 steps: 1 + 8 + 80 = 89 s


@pytest.mark.parametrize(
    ("left_s", "members", "steps", "choice"),
    [
        (112.0, 8, 10, "full"),  # four fifths of the time left are planned: 89.6 s
        (111.0, 8, 9, "fewer steps"),
        (60.0, 8, 4, "fewer steps"),  # (48 - 1 - 8) / 8
        (50.0, 7, 4, "fewer members"),  # four steps of eight members take 41 s, of seven 36 s
        (14.0, 2, 4, "fewer members"),
    ],
)
def test_steps_are_given_up_before_members(left_s: float, members: int, steps: int, choice: str) -> None:
    size = choose_size(FULL, COST, 8, left_s)
    assert (size.members, size.steps, size.choice) == (members, steps, choice)
    assert "89.0 s" in size.reason


def test_less_time_than_the_least_ensemble_takes_is_for_the_next_rung_unless_there_is_none() -> None:
    with pytest.raises(DeadlineUnreachable, match=r"expected 11\.0 s for the least, 2 members of 4 steps; 13\.0 s"):
        choose_size(FULL, COST, 8, 13.0)
    size = choose_size(FULL, COST, 8, -5.0, must=True)
    assert (size.members, size.steps, size.choice) == (2, 4, "fewer members")


def test_one_member_is_an_ensemble_where_one_was_asked_for() -> None:
    assert choose_size(FULL, COST, 1, 100.0).members == 1
    assert choose_size(FULL, COST, 1, 0.0, must=True) == replace(
        choose_size(FULL, COST, 1, 8.0), reason="all of it was expected to take 12.0 s of the 0.0 s left"
    )


@examples(deadline=None)
@given(
    left_s=st.floats(0.1, 1000),
    members=st.integers(1, 50),
    steps=st.integers(1, 100),
    shared_s=st.floats(0, 20),
    member_s=st.floats(0, 5),
    step_s=st.floats(0, 1),
)
def test_what_is_chosen_is_expected_in_time_and_within_its_bounds(
    left_s: float, members: int, steps: int, shared_s: float, member_s: float, step_s: float
) -> None:
    ensembles, cost = replace(FULL, steps=steps), EnsembleCost(shared_s, member_s, step_s)
    least = min(2, members), min(4, steps)
    try:
        size = choose_size(ensembles, cost, members, left_s)
    except DeadlineUnreachable:
        assert cost.seconds(*least) > 0.8 * left_s - 1e-6
        return
    assert cost.seconds(size.members, size.steps) <= 0.8 * left_s + 1e-6
    assert least[0] <= size.members <= members
    assert least[1] <= size.steps <= steps
    assert (size.choice == "full") == ((size.members, size.steps) == (members, steps))
    assert size.members == members or size.steps == least[1]


def test_costs_are_measured_per_stage() -> None:
    cost = EnsembleCost.measured(10.0, {"sampling": 6.0, "decoding": 3.0}, members=3, steps=4)
    assert cost == EnsembleCost(shared_s=1.0, member_s=1.0, step_s=0.5)
    assert cost.seconds(3, 4) == 10.0
