"""Contingency counts over many windows with a known skill, without any field behind them."""

from __future__ import annotations

import numpy as np

from tasks.verification.scores import WindowCounts

EVENTS_OBSERVED = 1000


def windows_with_skill(
    hit_rate: np.ndarray, *, per_event: int = 6, wet: bool = True, leads: tuple[float, ...] = (5.0, 15.0, 30.0, 60.0)
) -> WindowCounts:
    """Windows five minutes apart, `per_event` to an event, events a day apart; as many false alarms as misses.

    Args:
        hit_rate: (window,) in 0..1; the same at every lead and both thresholds.
        per_event: Windows of one event.
        wet: Flag of all windows.
        leads: Lead times in minutes.
    """
    count = len(hit_rate)
    shape = (count, len(leads), 2)
    hits = np.broadcast_to(np.round(hit_rate * EVENTS_OBSERVED).astype(np.int64)[:, None, None], shape).copy()
    rest = EVENTS_OBSERVED - hits
    event = np.arange(count) // per_event
    minutes = event * 1440 + np.arange(count) % per_event * 5
    times = np.datetime64("2020-06-01", "ns") + minutes.astype("timedelta64[m]")
    return WindowCounts(
        hits, rest, rest.copy(), (0.5, 1.0), leads, times, np.array([f"event {n}" for n in event]), np.full(count, wet)
    )


def skill_by_event(events: int, mean: float, spread: float, seed: int, per_event: int = 6) -> np.ndarray:
    """Hit rate per window: one draw per event and a little noise per window."""
    random = np.random.default_rng(seed)
    by_event = mean + spread * random.normal(size=events)
    noise = 0.01 * random.normal(size=events * per_event)
    return np.clip(by_event.repeat(per_event) + noise, 0, 1)
