"""Publishing: a reader never sees a mixture, a crash anywhere leaves the last whole product, repeating is harmless."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from builders.nowcasts import LATENCY, moving_rain, newest_context, slot_time, small_domain, write_archive
from infra.objects import ObjectStore
from infra.settings import Domain
from tasks.archive.archive import Archive
from tasks.forecasting.context import Context
from tasks.forecasting.ladder import Forecast, baseline_rung, run_ladder
from tasks.products.dataset import build_product
from tasks.products.encoding import open_product
from tasks.products.index import expire_products, list_products
from tasks.products.manifest import verify_product
from tasks.products.publishing import Latest, Published, PublishFailed, latest_key, publish, read_latest
from tasks.products.report import read_report, show_product

MINUTE = timedelta(minutes=1)


class Died(OSError):
    """The process is gone."""


class MortalStore(ObjectStore):
    """A store whose process dies after so many writes."""

    def __init__(self, url: str, writes: int) -> None:
        super().__init__(url)
        self.left = writes
        self.turn = threading.Lock()

    def _spend(self) -> None:
        with self.turn:
            self.left -= 1
            if self.left < 0:
                raise Died("killed")

    def write(self, key: str, data: bytes) -> None:
        """Write unless dead."""
        self._spend()
        super().write(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write unless dead."""
        self._spend()
        return super().put_if_absent(key, data)

    def replace(self, key: str, data: bytes, if_match: str | None) -> bool:
        """Swap unless dead."""
        self._spend()
        return super().replace(key, data, if_match)


class World:
    """A domain whose products are made at will."""

    def __init__(self, root: Path, lead_times: int = 3) -> None:
        self.domain: Domain = small_domain(root, lead_times=lead_times)
        rain = moving_rain(20, (32, 36), (1.0, 0.5))
        self.archive: Archive = write_archive(self.domain, rain)
        self.store = ObjectStore(self.domain.product.url)

    def nowcast(self, last: int, rung: str = "extrapolation") -> tuple[Context, Forecast]:
        """The forecast from slot `last`."""
        context = newest_context(self.domain, self.archive, last)
        rungs = [baseline_rung(rung, context, self.domain)]
        return context, run_ladder(context, rungs, self.domain, deadline=MINUTE, seed=0)

    def publish(
        self,
        last: int,
        store: ObjectStore | None = None,
        rung: str = "extrapolation",
        now: datetime = slot_time(20),  # noqa: B008 (a constant)
    ) -> Published:
        """Publish the forecast from slot `last`, by default after all frames have come."""
        context, forecast = self.nowcast(last, rung)
        product = build_product(forecast, context, self.domain)
        return publish(store or self.store, product, context, forecast, self.domain, now=now)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Twenty frames of rain, nothing published."""
    return World(tmp_path)


def whole(store: ObjectStore) -> Latest | None:
    """What `latest` names, after checking that it is whole."""
    latest = read_latest(store, "meadow")
    if latest is not None:
        assert verify_product(store, latest.path) == []
        assert latest.run == latest.path.rpartition("/")[2]
    return latest


def test_a_product_is_found_through_latest_whole_and_with_its_provenance(world: World) -> None:
    done = world.publish(9)
    latest = whole(world.store)
    assert latest is not None
    assert (latest.path, latest.verdict, latest.rung, latest.supersedes) == (
        done.path,
        "complete",
        "extrapolation",
        None,
    )
    assert done.path.startswith("products/meadow/2016/09/28/1545/")
    assert (done.already, done.latest) == (False, True)
    report = read_report(world.store, done.path)
    assert report.archive_snapshot == world.archive.snapshot()
    assert [frame.source_key for frame in report.frames] == [f"frame-{step}" for step in range(5, 10)]
    assert report.received_rule == "valid_time + latency"
    assert {"encode", "quicklook", "forecast.forecast"} <= set(report.seconds)
    assert report.software["numpy"] == np.__version__
    keys = {item.key.removeprefix(f"{done.path}/") for item in world.store.list(done.path)}
    assert {"manifest.json", "report.json", "quicklook/lead_005min.png", "quicklook/animation.gif"} <= keys
    assert "forecast.zarr/zarr.json" in keys
    words = show_product(world.store, done.path)
    assert "extrapolation, the first rung" in words
    assert report.archive_snapshot in words


def test_publishing_twice_is_harmless(world: World) -> None:
    first = world.publish(9)
    before = {item.key: item.etag for item in world.store.list()}
    second = world.publish(9)
    assert second.already
    assert (second.path, second.manifest_sha256) == (first.path, first.manifest_sha256)
    assert {item.key: item.etag for item in world.store.list()} == before


def test_an_older_forecast_never_replaces_a_newer_one_and_says_what_is_used_instead(world: World) -> None:
    newer = world.publish(10)
    older = world.publish(9)
    latest = whole(world.store)
    assert latest is not None
    assert latest.path == newer.path
    assert (older.latest, newer.latest) == (False, True)
    assert newer.path in world.store.read(f"{older.path}.superseded_by.json").decode()
    assert verify_product(world.store, older.path) == []


def test_a_replayed_past_takes_the_pointer_from_a_product_of_its_future(world: World) -> None:
    ahead = world.publish(18)
    replayed = world.publish(9, now=slot_time(9) + LATENCY)
    latest = whole(world.store)
    assert latest is not None
    assert (latest.path, latest.supersedes, replayed.latest) == (replayed.path, ahead.path, True)
    assert not world.publish(8, now=slot_time(9) + LATENCY).latest
    back = world.publish(18)
    assert back.already
    assert back.latest


def test_a_superseded_product_stays_untouched_and_says_by_what(world: World) -> None:
    first, second = world.publish(9), world.publish(10)
    assert verify_product(world.store, first.path) == []
    assert second.path in world.store.read(f"{first.path}.superseded_by.json").decode()
    latest = whole(world.store)
    assert latest is not None
    assert latest.supersedes == first.path


def test_a_reissue_of_the_same_init_time_takes_the_pointer(world: World) -> None:
    first, second = world.publish(9), world.publish(9, rung="persistence")
    latest = whole(world.store)
    assert latest is not None
    assert (latest.path, latest.supersedes) == (second.path, first.path)
    assert first.path != second.path


def test_dying_between_any_two_writes_leaves_latest_whole_and_the_next_attempt_heals(tmp_path: Path) -> None:
    world = World(tmp_path, lead_times=1)
    first = world.publish(9)
    url = world.domain.product.url
    context, forecast = world.nowcast(10)
    product = build_product(forecast, context, world.domain)
    died = 0
    for writes in range(200):
        try:
            done = publish(MortalStore(url, writes), product, context, forecast, world.domain, now=context.at)
        except Died:
            died += 1
            latest = whole(world.store)
            assert latest is not None
            swapped = latest.path != first.path
            assert not swapped or verify_product(world.store, latest.path) == []
            world.store.delete(f"{latest.path if swapped else 'none'}.superseded_by.json")
            if not swapped:  # start from nothing again, so that every length of life is tried
                for folder in {item.key.rpartition("/forecast.zarr")[0] for item in world.store.list("products")}:
                    if folder and folder != first.path:
                        world.store.delete(folder)
            continue
        break
    assert died > 30
    latest = whole(world.store)
    assert latest is not None
    assert latest.path == done.path
    assert done.path in world.store.read(f"{first.path}.superseded_by.json").decode()
    assert len(list_products(world.store, "meadow")) == 2


def test_an_attempt_that_died_is_completed_in_place(world: World) -> None:
    with pytest.raises(Died):
        world.publish(9, MortalStore(world.domain.product.url, 20))
    assert read_latest(world.store, "meadow") is None
    assert list_products(world.store, "meadow") == []
    done = world.publish(9)
    assert whole(world.store) is not None
    assert [folder.path for folder in list_products(world.store, "meadow")] == [done.path]


def test_two_publishers_at_once_make_one_product(world: World) -> None:
    context, forecast = world.nowcast(9)
    product = build_product(forecast, context, world.domain)
    results: list[Published] = []

    def run(seconds: float) -> None:
        store = ObjectStore(world.domain.product.url)
        results.append(
            publish(store, product, context, forecast, world.domain, now=context.at, seconds={"context": seconds})
        )

    threads = [threading.Thread(target=run, args=(float(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len({(done.path, done.manifest_sha256) for done in results}) == 1
    assert whole(world.store) is not None
    assert len(list_products(world.store, "meadow")) == 1


def test_a_reader_that_polls_while_products_appear_never_sees_a_mixture(world: World) -> None:
    stop = threading.Event()
    seen: list[str] = []
    failures: list[str] = []

    def poll() -> None:
        store = ObjectStore(world.domain.product.url)
        while not stop.is_set():
            latest = read_latest(store, "meadow")
            if latest is None:
                time.sleep(0.001)
                continue
            data = open_product(store, latest.path)
            init = data["init_time"].values.astype("datetime64[s]").item()
            field = data["rainfall_rate"].values
            if init != latest.init_time.replace(tzinfo=None) or not np.isfinite(field).any(axis=(2, 3)).all():
                failures.append(f"{latest.path}: a mixture")
            failures.extend(verify_product(store, latest.path))
            seen.append(latest.path)

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        paths = [world.publish(last).path for last in range(6, 16)]
    finally:
        time.sleep(0.2)
        stop.set()
        reader.join()
    assert failures == []
    assert len(set(seen)) >= 3
    assert [path for path in paths if path in seen] == sorted(set(seen), key=paths.index)


def test_damage_is_found_and_named(world: World) -> None:
    done = world.publish(9)
    chunk = f"{done.path}/forecast.zarr/rainfall_rate/c/0/0/0/0"
    data = world.store.read(chunk)
    world.store.write(chunk, data[:-1] + bytes([data[-1] ^ 1]))
    world.store.delete(f"{done.path}/quicklook/lead_005min.png")
    world.store.write(f"{done.path}/extra.txt", b"x")
    problems = verify_product(world.store, done.path)
    assert [any(word in problem for problem in problems) for word in ("rainfall_rate", "lead_005min", "extra")] == [
        True
    ] * 3
    assert len(problems) == 3
    assert "not a complete product" in verify_product(world.store, "products/meadow/none")[0]


class LossyStore(ObjectStore):
    """A store that keeps only half of one object."""

    def write(self, key: str, data: bytes) -> None:
        """Truncate one chunk."""
        super().write(key, data[: len(data) // 2] if key.endswith("rainfall_rate/c/0/0/0/0") else data)


def test_a_store_that_loses_bytes_is_found_out_before_the_pointer_moves(world: World) -> None:
    first = world.publish(9)
    with pytest.raises(PublishFailed, match="rainfall_rate/c/0/0/0/0 differs"):
        world.publish(10, LossyStore(world.domain.product.url))
    latest = whole(world.store)
    assert latest is not None
    assert latest.path == first.path


def test_retention_removes_old_products_but_never_the_one_in_use(world: World) -> None:
    paths = [world.publish(last).path for last in (6, 7, 8)]
    world.store.write("products/meadow/2016/09/28/1500/half/report.json", b"{}")
    week, wall = timedelta(days=7), datetime.now(UTC)
    assert expire_products(world.store, "meadow", now=wall + timedelta(days=6), keep=week) == []  # of 2016, made today
    gone = expire_products(world.store, "meadow", now=wall + MINUTE, keep=timedelta(0))
    assert gone == paths[:2]
    latest = whole(world.store)
    assert latest is not None
    assert latest.path == paths[2]
    keys = [item.key for item in world.store.list("products/meadow")]
    assert not [key for key in keys if any(path in key for path in gone)]
    assert "products/meadow/2016/09/28/1500/half/report.json" in keys  # it may be in the making
    late = expire_products(world.store, "meadow", now=wall + timedelta(days=8), keep=week)
    assert late == ["products/meadow/2016/09/28/1500/half"]


def test_products_are_listed_by_init_time(world: World) -> None:
    paths = [world.publish(last).path for last in (6, 7, 8)]
    start = world.nowcast(7)[0].init_time
    assert [item.path for item in list_products(world.store, "meadow", start)] == paths[1:]
    assert [item.path for item in list_products(world.store, "meadow", start, start)] == paths[1:2]
    assert [item.path for item in list_products(world.store, "meadow", end=start)] == paths[:2]
    assert list_products(world.store, "elsewhere") == []


def test_a_stale_context_is_told_in_pointer_and_report(world: World) -> None:
    context, forecast = world.nowcast(9)
    stale = replace(context, at=context.at + 2 * MINUTE, reasons=("the newest expected frame is missing",))
    product = build_product(forecast, stale, world.domain)
    done = publish(world.store, product, stale, forecast, world.domain, now=stale.at)
    assert "newest expected frame is missing" in show_product(world.store, done.path)


@pytest.fixture
def weed(tmp_path: Path) -> Iterator[dict[str, object]]:
    """Storage options of a running SeaweedFS."""
    from builders.weed import start_weed, stop_weed, storage_options

    endpoint, key, secret, process = start_weed(tmp_path)
    try:
        yield storage_options(endpoint, key, secret)
    finally:
        stop_weed(process)


@pytest.mark.stack
@pytest.mark.slow
def test_products_on_s3_are_published_verified_superseded_and_expired(world: World, weed: dict[str, object]) -> None:
    from builders.weed import BUCKET

    store = ObjectStore(f"s3://{BUCKET}/squall", weed)
    first, second = world.publish(9, store), world.publish(10, store)
    assert world.publish(9, store).already
    latest = whole(store)
    assert latest is not None
    assert latest.path == second.path
    assert store.exists(latest_key("meadow"))
    opened = open_product(store, second.path)
    assert np.isfinite(opened["rainfall_rate_mean"].values).any()
    later = datetime.now(UTC) + timedelta(days=30)
    assert expire_products(store, "meadow", now=later, keep=timedelta(days=7)) == [first.path]
    assert [item.path for item in list_products(store, "meadow")] == [second.path]
