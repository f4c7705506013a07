"""Slots of a regular time axis: a fixed step or whole months, in exact integer arithmetic; times END an interval."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.datetime64]
UNKNOWN = np.iinfo(np.int64).min  # int64 seconds of a time that was not recorded; numpy's own NaT

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


def seconds(moment: datetime) -> int:
    """Whole seconds since 1970-01-01 UTC, rounded to the nearest (half up)."""
    return int((2 * (moment - _EPOCH) + _SECOND) // (2 * _SECOND))


def moment(value: int) -> datetime:
    """The aware UTC time of whole seconds since 1970-01-01."""
    return _EPOCH + timedelta(seconds=int(value))


def as_times(values: NDArray[np.int64]) -> Times:
    """int64 seconds as datetime64[ns]; `UNKNOWN` becomes NaT."""
    return values.astype("datetime64[s]").astype("datetime64[ns]")


def as_datetime(value: np.datetime64) -> datetime:
    """A datetime64 (UTC) as an aware datetime, to the microsecond."""
    return _EPOCH + timedelta(microseconds=int(value.astype("datetime64[us]").astype(np.int64)))


class Calendar(Protocol):
    """Where slots lie in time."""

    def time(self, slot: int) -> datetime:
        """The (aware, UTC) time of a slot."""

    def nearest(self, moment: datetime) -> int:
        """The slot nearest to a time; halfway goes to the later one."""

    def seconds(self, first: int, stop: int) -> NDArray[np.int64]:
        """Times of slots [first, stop) as int64 seconds since 1970-01-01."""


@dataclass(frozen=True)
class FixedStep:
    """Slot n at start + n * cadence.

    Attributes:
        start: Time of slot 0 (aware, UTC, whole seconds).
        cadence: Step (whole seconds).
    """

    start: datetime
    cadence: timedelta

    def __post_init__(self) -> None:
        if self.cadence < _SECOND or self.cadence % _SECOND or self.start.microsecond:
            raise ValueError(f"expected a start and a step in whole seconds; got {self.start}, {self.cadence}")

    def time(self, slot: int) -> datetime:
        """start + slot * cadence."""
        return self.start + slot * self.cadence

    def nearest(self, moment: datetime) -> int:
        """round((moment - start) / cadence), half up, in exact microseconds."""
        return int((2 * (moment - self.start) + self.cadence) // (2 * self.cadence))

    def seconds(self, first: int, stop: int) -> NDArray[np.int64]:
        """Times of slots [first, stop), int64 seconds."""
        return seconds(self.start) + np.arange(first, stop, dtype=np.int64) * (self.cadence // _SECOND)


@dataclass(frozen=True)
class Months:
    """Slot n at the END of month n after `start`: the first instant of the month that follows.

    Attributes:
        start: First instant of a month (aware, UTC); slot 0.
    """

    start: datetime

    def __post_init__(self) -> None:
        if self.start != self.start.replace(day=1, hour=0, minute=0, second=0, microsecond=0):
            raise ValueError(f"expected the first instant of a month; got {self.start}")

    @property
    def _first(self) -> int:
        return self.start.year * 12 + self.start.month - 1

    def time(self, slot: int) -> datetime:
        """The first instant of month start + slot."""
        years, months = divmod(self._first + slot, 12)
        return datetime(years, months + 1, 1, tzinfo=UTC)

    def nearest(self, moment: datetime) -> int:
        """The nearer of the month boundaries around `moment`."""
        below = moment.astimezone(UTC).year * 12 + moment.astimezone(UTC).month - 1 - self._first
        return below + (moment - self.time(below) >= self.time(below + 1) - moment)

    def seconds(self, first: int, stop: int) -> NDArray[np.int64]:
        """Times of slots [first, stop), int64 seconds."""
        return np.array([seconds(self.time(slot)) for slot in range(first, stop)], np.int64)


def window(calendar: Calendar, start: datetime, end: datetime) -> tuple[int, int]:
    """Slots [first, stop) whose times lie in [start, end], both included; slots before slot 0 count too."""
    first = calendar.nearest(start)
    first += calendar.time(first) < start
    stop = calendar.nearest(end)
    stop += calendar.time(stop) <= end
    return first, max(first, stop)
