"""A domain's clock: now, or a replayed past that runs at a stated speed.

Every age, schedule and future-date check of a domain reads this clock. A replay's anchor is one small JSON file
under the state folder, so that all processes of a domain agree on the time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra.settings import Domain, Settings


def parse_time(text: str | None) -> datetime | None:
    """ISO 8601 as an aware UTC time (a time without an offset is UTC); None stays None.

    Raises:
        ValueError: another form.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"expected a time such as 2016-09-28T14:45Z; got {text!r}") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


@dataclass(frozen=True)
class Clock:
    """Maps wall time to domain time.

    Attributes:
        replay_from: Domain time at the anchor; None for the live clock.
        started_at: Wall time of the anchor.
        speed: Domain seconds per wall second.
        replay_to: Domain time at which a replay stands still.
        latency: Delay after which a replayed frame becomes visible; None for the feed's own.
    """

    replay_from: datetime | None = None
    started_at: datetime | None = None
    speed: float = 1.0
    replay_to: datetime | None = None
    latency: timedelta | None = None

    @property
    def replayed(self) -> bool:
        """Whether the past is being replayed."""
        return self.replay_from is not None

    def now(self) -> datetime:
        """Domain time (aware, UTC)."""
        wall = datetime.now(UTC)
        if self.replay_from is None or self.started_at is None:
            return wall
        elapsed = (wall - self.started_at) * self.speed
        moment = self.replay_from + elapsed
        return min(moment, self.replay_to) if self.replay_to else moment

    def wall(self, moment: datetime) -> datetime:
        """Wall time at which the domain's clock shows `moment`."""
        if self.replay_from is None or self.started_at is None:
            return moment
        return self.started_at + (moment - self.replay_from) / self.speed


def _anchor_file(domain: Domain, settings: Settings) -> Path:
    return settings.root / "clocks" / f"{domain.name}.json"


def start_replay(domain: Domain, settings: Settings, start: datetime, end: datetime | None, speed: float) -> Clock:
    """Anchor a replay of `domain` at wall time now; later calls of `read_clock` follow it."""
    clock = Clock(start, datetime.now(UTC), speed, end, domain.clock.latency)
    path = _anchor_file(domain, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {
            "replay_from": start.isoformat(),
            "started_at": clock.started_at.isoformat() if clock.started_at else None,
            "speed": speed,
            "replay_to": end.isoformat() if end else None,
        }
    )
    partial = path.with_suffix(".part")
    partial.write_text(text)
    partial.replace(path)
    return clock


def stop_replay(domain: Domain, settings: Settings) -> None:
    """Return the domain to the live clock (or to its file's `[clock]`)."""
    _anchor_file(domain, settings).unlink(missing_ok=True)


def replaying(settings: Settings) -> dict[str, Clock]:
    """Clocks of the domains that are replayed now or whose replay was never ended, by domain.

    Such a clock knows no latency: that is in the domain's file.
    """
    return {path.stem: _read_anchor(path, None) for path in sorted((settings.root / "clocks").glob("*.json"))}


def read_clock(domain: Domain, settings: Settings) -> Clock:
    """The domain's clock: a running replay, else the replay its file declares (anchored on first use), else now."""
    path = _anchor_file(domain, settings)
    if path.exists():
        return _read_anchor(path, domain.clock.latency)
    if domain.clock.replay_from is not None:
        return start_replay(domain, settings, domain.clock.replay_from, domain.clock.replay_to, domain.clock.speed)
    return Clock(latency=domain.clock.latency)


def _read_anchor(path: Path, latency: timedelta | None) -> Clock:
    raw = json.loads(path.read_text())
    moments = {
        k: datetime.fromisoformat(raw[k]) if raw[k] else None for k in ("replay_from", "started_at", "replay_to")
    }
    return Clock(speed=raw["speed"], latency=latency, **moments)
