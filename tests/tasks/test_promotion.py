"""The promotion rule: degenerate evidence refuses, a better model passes, a worse one never does."""

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from builders.windows import skill_by_event, windows_with_skill
from tasks.verification.promotion import Unavailable, decide
from tasks.verification.resampling import NotPaired, blocks_of, mean_csi, paired_difference

EVENTS = 12
flat = np.full(EVENTS * 6, 0.5)
persistence = windows_with_skill(flat)
extrapolation = windows_with_skill(flat + 0.05)
better = windows_with_skill(skill_by_event(EVENTS, 0.7, 0.03, seed=1))
quick = {"resamples": 1000}


def test_mean_csi_is_the_ratio_of_the_sums_counted_by_hand() -> None:
    assert mean_csi(windows_with_skill(np.array([0.5, 1.0]))) == pytest.approx(1500 / (2000 + 500))


def test_a_clearly_better_model_becomes_the_first_champion_and_ranks_above_extrapolation() -> None:
    verdict = decide(better, None, persistence, extrapolation)
    assert verdict.promote
    assert verdict.beats_persistence is not None
    assert verdict.beats_persistence.lower > 0
    assert verdict.ladder_rank == "above"
    assert verdict.against_champion is None
    assert verdict.evidence.lead_minutes == (15.0, 30.0, 60.0)
    assert verdict.evidence.mean_csi["challenger"] > verdict.evidence.mean_csi["extrapolation"]


def test_a_champion_below_extrapolation_is_promoted_and_ranked_below_it() -> None:
    middling = windows_with_skill(skill_by_event(EVENTS, 0.53, 0.005, seed=1))
    verdict = decide(middling, None, persistence, windows_with_skill(flat + 0.2))
    assert verdict.promote
    assert verdict.ladder_rank == "below"
    assert verdict.against_extrapolation is not None
    assert verdict.against_extrapolation.below_zero


def test_an_identical_model_is_not_promoted() -> None:
    verdict = decide(persistence, None, persistence, extrapolation)
    assert not verdict.promote
    assert "not above persistence" in verdict.reason


def test_a_tie_keeps_the_champion() -> None:
    verdict = decide(better, better, persistence, extrapolation)
    assert not verdict.promote
    assert "champion" in verdict.reason


def test_a_challenger_must_beat_the_champion_too() -> None:
    stronger = windows_with_skill(skill_by_event(EVENTS, 0.8, 0.03, seed=2))
    assert decide(stronger, better, persistence, extrapolation).promote
    assert not decide(better, stronger, persistence, extrapolation).promote


def test_a_champion_that_does_not_load_is_not_a_win() -> None:
    verdict = decide(better, Unavailable("finland-earthformer@champion", "wrong key"), persistence, extrapolation)
    assert not verdict.promote
    assert "wrong key" in verdict.reason
    verdict = decide(better, None, Unavailable("persistence", "no scores"), extrapolation)
    assert not verdict.promote
    verdict = decide(better, None, persistence, Unavailable("extrapolation", "pysteps is missing"))
    assert verdict.promote
    assert verdict.ladder_rank == "below"


@pytest.mark.parametrize("events", [1, 5])
def test_too_few_blocks_are_no_evidence(events: int) -> None:
    few = slice(0, events * 6)
    verdict = decide(windows_with_skill(flat[few] + 0.3), None, windows_with_skill(flat[few]), extrapolation_of(few))
    assert not verdict.promote
    assert "no evidence" in verdict.reason
    assert f"{events} blocks" in verdict.reason


def extrapolation_of(few: slice) -> object:
    return windows_with_skill(flat[few] + 0.05)


def test_only_dry_windows_are_no_evidence() -> None:
    dry = [windows_with_skill(rate, wet=False) for rate in (flat + 0.3, flat, flat)]
    verdict = decide(dry[0], None, dry[1], dry[2])
    assert not verdict.promote
    assert verdict.evidence.wet_windows == 0
    assert "no evidence" in verdict.reason


def test_windows_without_any_event_are_no_evidence() -> None:
    nothing = [
        replace(windows_with_skill(flat * 0), misses=np.zeros((72, 4, 2), int), false_alarms=np.zeros((72, 4, 2), int))
    ]
    verdict = decide(nothing[0], None, nothing[0], nothing[0])
    assert not verdict.promote
    assert "no evidence" in verdict.reason


def test_no_lead_of_ten_minutes_is_no_evidence() -> None:
    short = [windows_with_skill(rate, leads=(5.0,)) for rate in (flat + 0.3, flat)]
    assert not decide(short[0], None, short[1], short[1]).promote


def test_forecasters_scored_on_other_cells_cannot_be_compared() -> None:
    other = replace(persistence, misses=persistence.misses + 1)
    with pytest.raises(NotPaired, match="observed events"):
        decide(better, None, other, extrapolation)
    with pytest.raises(NotPaired, match="windows"):
        decide(better, None, replace(persistence, init_times=persistence.init_times + 1), extrapolation)


def test_the_same_seed_gives_the_same_interval_and_order_does_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(better))
    names = ("hits", "misses", "false_alarms", "init_times", "events", "wet")
    forecasters = (better, persistence, extrapolation)
    shuffled = [replace(it, **{name: getattr(it, name)[order] for name in names}) for it in forecasters]
    one, two = (decide(it[0], None, it[1], it[2], seed=3) for it in (forecasters, shuffled))
    assert one == two == decide(better, None, persistence, extrapolation, seed=3)


def test_a_long_event_is_cut_and_its_pieces_are_drawn_in_pairs() -> None:
    one_event = windows_with_skill(np.full(72, 0.5), per_event=72)
    labels, run = blocks_of(one_event, timedelta(hours=1))
    assert np.bincount(labels).tolist() == [12] * 6
    assert run == 2
    assert blocks_of(persistence)[1] == 1


def test_a_worse_model_is_never_promoted_in_200_seeds() -> None:
    for seed in range(200):
        worse = windows_with_skill(skill_by_event(EVENTS, 0.45, 0.05, seed=seed))
        assert not decide(worse, None, persistence, extrapolation, seed=seed, **quick).promote


@pytest.mark.parametrize("events", [6, 24])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(events: int) -> None:
    reference = windows_with_skill(np.full(events * 6, 0.5))
    truth = 0.0
    covered = 0
    for seed in range(200):
        equal = windows_with_skill(skill_by_event(events, 0.5, 0.05, seed=seed))
        labels, run = blocks_of(equal)
        interval = paired_difference(equal, reference, labels, run=run, seed=seed, **quick)
        covered += interval.lower <= truth <= interval.upper
    assert covered / 200 >= 0.90


def test_a_verdict_is_plain_json_without_nan() -> None:
    verdict = decide(windows_with_skill(flat[:6]), None, windows_with_skill(flat[:6]), windows_with_skill(flat[:6]))
    again = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert again["promote"] is False
    assert again["beats_persistence"]["lower"] is None
