"""Windows cross no gap and no split, splits go by event, and a batch is a function of seed and step."""

from __future__ import annotations

from datetime import timedelta
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.training import SPEC, drifting_rain, samples, write
from tasks.training.events import UNUSED, EventRule, deal_events, find_events, guard_splits, window_starts
from tasks.training.samples import SampleSource, SampleSpec

RULE = EventRule(dry_gap=3, limit=100, guard=2, wet_fraction=0.1)


def test_a_dry_spell_or_a_gap_of_the_stated_length_ends_an_event() -> None:
    slots = np.array([0, 1, 2, 3, 4, 5, 6, 20, 21])
    wet = np.array([1, 1, 0, 0, 0, 1, 1, 1, 0], np.float32)
    assert find_events(slots, wet, RULE).tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 2]


def test_a_shorter_dry_spell_does_not_end_an_event() -> None:
    assert find_events(np.arange(5), np.array([1, 0, 0, 1, 1], np.float32), RULE).tolist() == [0] * 5


def test_an_endless_event_is_cut() -> None:
    rule = EventRule(dry_gap=3, limit=4, guard=2, wet_fraction=0.1)
    assert find_events(np.arange(10), np.ones(10, np.float32), rule).tolist() == [0] * 4 + [1] * 4 + [2] * 2


def test_unobserved_frames_count_as_dry() -> None:
    wet = np.array([1, np.nan, np.nan, np.nan, 1], np.float32)
    assert find_events(np.arange(5), wet, RULE).tolist() == [0, 0, 0, 0, 1]


@given(st.lists(st.booleans(), min_size=2, max_size=60), st.integers(1, 59))
def test_an_event_keeps_its_split_when_the_archive_grows(wet: list[bool], known: int) -> None:
    events = np.arange(len(wet)) // 2
    known = min(known // 2 * 2, len(wet))  # whole events
    if known == 0:
        return
    shares = (0.7, 0.15, 0.15)
    whole = deal_events(events, np.array(wet), shares)
    assert deal_events(events[:known], np.array(wet[:known]), shares).tolist() == whole[:known].tolist()


def test_the_shares_of_wet_frames_come_out_as_stated() -> None:
    dealt = deal_events(np.arange(400), np.ones(400, bool), (0.7, 0.15, 0.15))
    assert np.bincount(dealt).tolist() == [280, 60, 60]


def test_a_guard_parts_two_splits_and_leaves_one_split_alone() -> None:
    splits = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 1], np.int8)
    assert guard_splits(np.arange(10), splits, 3).tolist() == [0, 0, 0, 0, UNUSED, UNUSED, 1, 1, 1, 1]
    assert guard_splits(np.arange(10), np.zeros(10, np.int8), 3).tolist() == [0] * 10


def test_a_gap_longer_than_the_guard_is_guard_enough() -> None:
    slots = np.array([0, 1, 2, 10, 11])
    splits = np.array([0, 0, 0, 1, 1], np.int8)
    assert guard_splits(slots, splits, 3).tolist() == splits.tolist()


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=80),
    st.integers(1, 6),
    st.integers(0, 5),
)
def test_no_window_crosses_a_gap_a_split_or_comes_near_another_split(
    frames: list[tuple[bool, int]], length: int, guard: int
) -> None:
    slots = np.flatnonzero([present for present, _ in frames]).astype(np.int64)
    splits = np.array([split for present, split in frames if present], np.int8)
    guarded = guard_splits(slots, splits, guard)
    spans = []
    for number, starts in enumerate(window_starts(slots, guarded, length)):
        for start in starts:
            inside = slice(int(start), int(start) + length)
            assert np.diff(slots[inside]).tolist() == [1] * (length - 1)
            assert set(splits[inside].tolist()) == {number}
            spans.append((number, int(slots[inside][0]), int(slots[inside][-1])))
    for one, _, end in spans:
        assert all(begin - end >= guard for other, begin, _ in spans if other != one and begin > end)


def test_every_split_has_windows_and_no_frame_is_in_two(tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    frames = [
        {int(f) + k for f in source.windows(split) for k in range(SPEC.length)} for split in ("train", "val", "test")
    ]
    assert all(frames)
    assert [len(a & b) for a, b in combinations(frames, 2)] == [0, 0, 0]


def test_an_archive_too_short_for_the_splits_is_refused_with_the_counts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 unbroken frames in every split"):
        SampleSource(write(tmp_path / "data", drifting_rain(12)), SPEC)


def test_a_batch_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    again = SampleSource(source.data, SPEC)
    assert source.draw(1, 7, 8) == again.draw(1, 7, 8)
    assert source.draw(1, 7, 8) != source.draw(1, 8, 8)
    assert source.draw(1, 7, 8) != source.draw(2, 7, 8)


def test_only_training_windows_are_drawn(tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    drawn = {window.frame for step in range(50) for window in source.draw(0, step, 8)}
    assert drawn <= set(source.windows("train").tolist())


def test_wet_windows_are_drawn_more_often_by_the_stated_weight(tmp_path: Path) -> None:
    values = drifting_rain(240)
    values[np.arange(240) % 60 < 30] = 0.0
    spec = SampleSpec(t_in=3, t_out=2, event_limit=timedelta(hours=2), floor=0.1, dry_gap=timedelta(hours=9))
    source = SampleSource(write(tmp_path / "data", values), spec)
    starts = source.windows("train")
    expected = 0.1 + 0.9 * (1 - np.exp(-source.wet_share(starts) / spec.wet_fraction))
    drawn = np.array([window.frame for step in range(400) for window in source.draw(0, step, 16)])
    came = np.array([(drawn == start).mean() for start in starts])
    np.testing.assert_allclose(came, expected / expected.sum(), atol=0.004)


def test_crops_stay_inside_the_frame_and_prefer_the_rain(tmp_path: Path) -> None:
    values = np.zeros((240, 64, 96), np.float32)
    values[:, 40:56, 70:90] = 5.0
    spec = SampleSpec(t_in=3, t_out=2, crop=32, event_limit=timedelta(hours=2))
    source = SampleSource(write(tmp_path / "data", values), spec)
    windows = [window for step in range(20) for window in source.draw(0, step, 8)]
    assert all(0 <= w.y <= 32 and 0 <= w.x <= 64 for w in windows)
    touching = [w.y + 32 > 40 and w.x + 32 > 70 for w in windows]
    assert np.mean(touching) > 0.75
    held_out = source.held_out("val", 1)[0]
    assert (held_out.y <= 40, held_out.x <= 70) == (True, True)
    assert (held_out.y + 32 >= 48, held_out.x + 32 >= 80) == (True, True)


def test_held_out_windows_are_thinned_evenly_and_never_drawn_for_training(tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    chosen = [window.frame for window in source.held_out("val", 4)]
    everything = source.windows("val")
    assert len(chosen) == 4
    assert chosen[0] == everything[0]
    assert chosen[-1] == everything[-1]


def test_a_crop_larger_than_the_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="crop of at most 16"):
        samples(tmp_path / "data", spec=SampleSpec(t_in=3, t_out=2, crop=32))
