"""Slots: exact rounding on a fixed step and on months."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.archive.slots import UNKNOWN, FixedStep, Months, as_datetime, as_times, moment, seconds, window

START = datetime(2026, 1, 1, tzinfo=UTC)
FIVE = FixedStep(START, timedelta(minutes=5))

steps = st.integers(1, 86400).map(lambda s: timedelta(seconds=s))
offsets = st.integers(-(10**15), 10**15).map(lambda us: timedelta(microseconds=us))


def test_a_frame_forty_seconds_late_is_in_its_slot_and_halfway_goes_to_the_later() -> None:
    assert FIVE.nearest(START + timedelta(minutes=5, seconds=40)) == 1
    assert FIVE.nearest(START + timedelta(minutes=7, seconds=30)) == 2
    assert FIVE.nearest(START + timedelta(minutes=7, seconds=29, microseconds=999_999)) == 1
    assert FIVE.nearest(START - timedelta(minutes=5)) == -1


@given(steps, offsets)
def test_the_nearest_slot_is_at_most_half_a_step_away(step: timedelta, offset: timedelta) -> None:
    calendar = FixedStep(START, step)
    slot = calendar.nearest(START + offset)
    assert abs(2 * (START + offset - calendar.time(slot))) <= step


@given(steps, st.integers(-(10**5), 10**6))
def test_a_slots_own_time_is_that_slot(step: timedelta, slot: int) -> None:
    calendar = FixedStep(START, step)
    assert calendar.nearest(calendar.time(slot)) == slot
    assert calendar.seconds(slot, slot + 1)[0] == seconds(calendar.time(slot))


@given(st.integers(-1200, 1200))
def test_months_end_where_the_next_begins(slot: int) -> None:
    calendar = Months(datetime(1950, 2, 1, tzinfo=UTC))
    time = calendar.time(slot)
    assert (time.day, time.hour) == (1, 0)
    assert calendar.nearest(time) == slot
    assert calendar.nearest(time + timedelta(days=13)) == slot
    assert calendar.nearest(time - timedelta(days=13)) == slot
    assert moment(int(calendar.seconds(slot, slot + 1)[0])) == time


def test_february_and_a_leap_year() -> None:
    calendar = Months(datetime(2024, 1, 1, tzinfo=UTC))
    assert calendar.time(2) - calendar.time(1) == timedelta(days=29)
    assert calendar.time(12) == datetime(2025, 1, 1, tzinfo=UTC)
    assert calendar.time(-1) == datetime(2023, 12, 1, tzinfo=UTC)


def test_a_window_includes_both_ends() -> None:
    assert window(FIVE, START, START + timedelta(minutes=60)) == (0, 13)
    assert window(FIVE, START + timedelta(seconds=1), START + timedelta(minutes=9)) == (1, 2)
    assert window(FIVE, START + timedelta(seconds=1), START + timedelta(minutes=4)) == (1, 1)
    assert window(FIVE, START - timedelta(minutes=10), START) == (-2, 1)


@given(steps, offsets, st.integers(0, 10**9).map(lambda us: timedelta(microseconds=us)))
def test_a_window_holds_exactly_the_slots_inside(step: timedelta, offset: timedelta, width: timedelta) -> None:
    calendar, start = FixedStep(START, step), START + offset
    first, stop = window(calendar, start, start + width)
    assert calendar.time(first) >= start
    assert calendar.time(first - 1) < start
    assert calendar.time(stop) > start + width or first == stop
    assert first == stop or calendar.time(stop - 1) <= start + width


def test_times_survive_numpy_and_unknown_is_nat() -> None:
    assert np.isnat(as_times(np.array([UNKNOWN]))).all()
    assert as_datetime(as_times(np.array([seconds(START)]))[0]) == START
    assert seconds(START + timedelta(microseconds=500_000)) == seconds(START) + 1


def test_steps_and_starts_are_whole_seconds() -> None:
    with pytest.raises(ValueError, match="whole seconds"):
        FixedStep(START, timedelta(milliseconds=1500))
    with pytest.raises(ValueError, match="first instant of a month"):
        Months(datetime(2026, 1, 2, tzinfo=UTC))
