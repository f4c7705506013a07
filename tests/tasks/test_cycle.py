"""What a cycle decides by itself: how far back it looks, and what only one run a day may do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

from builders.nowcasts import START, moving_rain, slot_time, small_domain, write_archive
from infra.objects import ObjectStore
from infra.settings import Settings, load_domain
from tasks import cycle
from tasks.claims import claim
from tasks.verification.degradation import SkillVerdict

DAY = timedelta(days=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def settings(root: Path) -> Settings:
    return Settings(home=root, _env_file=None)


def test_one_of_many_takes_a_turn_and_it_comes_round_again(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    for now, winners in ((NOW, 1), (NOW + DAY / 2, 0), (NOW + DAY, 1), (NOW + 1.5 * DAY, 0)):
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(lambda moment: claim(store, "turns/one", moment, DAY), [now] * 4)) == winners


def test_a_model_is_announced_as_degraded_once_a_day_and_another_by_itself(tmp_path: Path) -> None:
    domain = small_domain(tmp_path)
    verdicts = [SkillVerdict(True, "", "meadow/rain", version, 12, {}) for version in ("1", "1", "2")]
    assert [cycle.may_announce_degradation(domain, settings(tmp_path), it) for it in verdicts] == [True, False, True]


def test_retention_has_its_turn_once_a_day(tmp_path: Path) -> None:
    domain = small_domain(tmp_path)
    assert [cycle.may_expire(domain, settings(tmp_path)) for _ in range(2)] == [True, False]


def test_ingest_looks_back_from_the_newest_frame_but_never_beyond_what_it_heals(tmp_path: Path) -> None:
    domain = small_domain(tmp_path, frames=5, lead_times=20)
    reach = 45 * domain.feed.cadence
    assert cycle._since(domain, settings(tmp_path), START) == START - reach
    write_archive(domain, moving_rain(4, (16, 16)))
    newest = slot_time(3)
    for now, since in (
        (newest - DAY, newest - DAY - reach),
        (newest + timedelta(hours=1), newest - reach),
        (newest + 300 * DAY, newest + 300 * DAY - cycle.HEAL),
    ):
        assert cycle._since(domain, settings(tmp_path), now) == since


def test_a_snapshot_is_tagged_once(tmp_path: Path) -> None:
    domain = small_domain(tmp_path)
    archive = write_archive(domain, moving_rain(4, (16, 16)))
    for _ in range(2):
        cycle.tag_snapshot(domain, settings(tmp_path), "train-1", archive.snapshot())
    assert archive.repository.lookup_tag("train-1") == archive.snapshot()


def test_a_feed_with_its_own_storage_is_never_asked_through_our_endpoint(tmp_path: Path) -> None:
    stack = Settings(home=tmp_path, s3_endpoint="http://127.0.0.1:1", s3_key="ours", s3_secret="ours", _env_file=None)
    domain = load_domain("conus", stack)
    public = domain.feed.model_copy(update={"url": "s3://public-bucket/CONUS", "storage": {"anon": True}})
    assert cycle.open_source(domain.model_copy(update={"feed": public}), stack).source.storage == {"anon": True}
    own = domain.feed.model_copy(update={"url": "s3://squall/feeds/conus"})
    assert cycle.open_source(domain.model_copy(update={"feed": own}), stack).source.storage["key"] == "ours"
