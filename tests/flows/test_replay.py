"""A replay that is followed: it lasts until its last frame is a product, and a look that fails does not end it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from builders.nowcasts import START, small_domain
from flows import replay
from infra.clock import Clock
from infra.objects import ObjectStore
from infra.settings import Settings
from tasks.products.publishing import latest_key

LAST = START + timedelta(hours=1)


@pytest.mark.parametrize("speed", [1.0, 60.0])
def test_a_replay_lasts_until_its_last_frame_is_visible_and_then_as_long_as_a_cycle_may_take(speed: float) -> None:
    latency, began = timedelta(minutes=5), datetime(2026, 1, 1, tzinfo=UTC)
    clock = Clock(START, began, speed, LAST + latency)
    assert replay._over(clock, LAST) == began + (timedelta(hours=1) + latency) / speed + timedelta(seconds=90)


@pytest.mark.slow
def test_looks_that_fail_are_told_once_and_the_replay_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = small_domain(tmp_path)
    (tmp_path / "store" / latest_key(domain.name)).mkdir(parents=True)  # a folder is no pointer
    began = datetime.now(UTC) - (LAST - START) - timedelta(seconds=84)  # six seconds, three looks, are left
    replay._watch(domain, Settings(home=tmp_path, _env_file=None), Clock(START, began, 1.0, LAST), START, LAST)
    assert capsys.readouterr().out.count("expected the newest product of meadow; got: ") == 1


def test_the_newest_product_is_told_as_soon_as_it_can_be_read(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    store.write(latest_key("meadow"), b"{")
    shown, trouble = replay._newest(store, "meadow")
    assert shown == "unknown"
    assert trouble is not None
    assert trouble.endswith("The replay goes on")
    store.delete(latest_key("meadow"))
    assert replay._newest(store, "meadow") == ("none yet", None)
