"""A domain's clock: now, or a past that every process of the domain agrees on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra.clock import Clock, read_clock, replaying, start_replay, stop_replay
from infra.settings import ArchiveSettings, ClockSettings, Domain, FeedSettings, ProductSettings, Settings

PAST = datetime(2016, 9, 28, 14, 45, tzinfo=UTC)


def domain(clock: ClockSettings | None = None) -> Domain:
    feed = FeedSettings(kind="fmi", url="x", cadence="5min", tolerance="90s")
    return Domain(
        name="here",
        feed=feed,
        archive=ArchiveSettings(url="x"),
        product=ProductSettings(url="x"),
        clock=clock or ClockSettings(),
    )


def test_without_a_replay_the_clock_shows_now(tmp_path: Path) -> None:
    clock = read_clock(domain(), Settings(home=tmp_path, _env_file=None))
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)
    assert not clock.replayed


def test_a_replay_runs_at_its_speed_and_stands_still_at_its_end() -> None:
    started = datetime.now(UTC) - timedelta(seconds=60)
    assert abs(Clock(PAST, started, 60.0).now() - (PAST + timedelta(hours=1))) < timedelta(minutes=2)
    assert Clock(PAST, started, 60.0, PAST + timedelta(minutes=30)).now() == PAST + timedelta(minutes=30)


def test_domain_time_and_wall_time_are_inverse() -> None:
    clock = Clock(PAST, datetime(2026, 1, 1, tzinfo=UTC), 10.0)
    assert clock.wall(PAST + timedelta(minutes=50)) == datetime(2026, 1, 1, 0, 5, tzinfo=UTC)


def test_all_processes_of_a_domain_share_the_anchor(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, _env_file=None)
    started = start_replay(domain(), settings, PAST, None, 60.0)
    assert read_clock(domain(), settings).started_at == started.started_at
    stop_replay(domain(), settings)
    assert not read_clock(domain(), settings).replayed


def test_a_domain_file_can_declare_a_replay(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, _env_file=None)
    declared = domain(ClockSettings(replay_from=PAST, speed=60.0, latency="90s"))
    first, second = read_clock(declared, settings), read_clock(declared, settings)
    assert first.started_at == second.started_at
    assert second.latency == timedelta(seconds=90)


def test_replayed_domains_are_listed_until_their_replay_is_stopped(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, _env_file=None)
    assert replaying(settings) == {}
    started = start_replay(domain(), settings, PAST, PAST + timedelta(hours=1), 60.0)
    assert replaying(settings) == {"here": started}
    stop_replay(domain(), settings)
    assert replaying(settings) == {}
