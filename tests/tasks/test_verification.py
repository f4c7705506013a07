"""Issued products against what was then observed: by lead, on equal cells, once per observation."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from builders.issued_products import issue
from builders.nowcasts import CRS, START, moving_rain, slot_time, small_domain, write_archive
from infra.objects import ObjectStore
from infra.settings import Domain, VerificationSettings
from tasks.archive.archive import Archive, Received
from tasks.archive.fingerprints import fingerprints
from tasks.feeds.frames import build_frame
from tasks.products.encoding import open_product
from tasks.products.report import read_report
from tasks.verification.score_table import SOURCES, read_rows
from tasks.verification.scores import contingency
from tasks.verification.scoring import NotScorable, list_unscored, score_product, score_sources, verify_products
from tasks.verification.skill_table import summarise

RULE = VerificationSettings(thresholds=(0.5, 2.0), neighbourhoods_km=(1.0, 5.0))
LAST, LEADS = 7, 6
DAY = timedelta(days=1)


@dataclass(frozen=True)
class World:
    domain: Domain
    store: ObjectStore
    archive: Archive
    rain: np.ndarray


def world(root: Path, observed: int = 24) -> World:
    """Rain over 24 slots, of which `observed` have arrived."""
    domain = small_domain(root, lead_times=LEADS).model_copy(update={"verification": RULE})
    rain = moving_rain(24)
    return World(domain, ObjectStore(domain.product.url), write_archive(domain, rain[:observed]), rain)


def deliver(world: World, step: int, values: np.ndarray, content: bytes) -> None:
    """Another frame for a slot: the first, or a correction."""
    grid = world.archive.spec.grid
    frame = build_frame(
        values, quantity="rainfall_rate", time=slot_time(step), crs=CRS, x=np.asarray(grid.x), y=np.asarray(grid.y)
    )
    world.archive.write([Received(frame, f"frame-{step}", f"tag-{content.hex()}", content * 32, None)])


def test_a_product_is_scored_by_lead_beside_both_baselines(tmp_path: Path) -> None:
    it = world(tmp_path)
    path = issue(it.store, it.domain, it.archive, LAST)
    rows = score_product(it.store, path, it.archive, it.domain)
    assert [(row.source, row.lead_minutes) for row in rows] == [
        (source, 5.0 * lead) for source in SOURCES for lead in range(1, LEADS + 1)
    ]
    forecast = open_product(it.store, path)["rainfall_rate_mean"].values
    observed = np.where(np.isfinite(forecast), it.rain[LAST + 1 : LAST + 1 + LEADS], np.nan)
    assert {(row.run, row.rung, row.product, row.units) for row in rows} == {
        ("run-1535", "extrapolation", path, "mm h-1")
    }
    by_place = {row.place: row for row in rows}
    persisted = contingency(it.rain[[LAST] * LEADS], observed, RULE.thresholds)
    for lead in range(LEADS):
        row = by_place["persistence", 5.0 * (lead + 1)]
        assert row.count == np.isfinite(forecast[lead]).sum() > 0.7 * forecast[lead].size
        assert row.hits == tuple(persisted.hits[lead])
        assert row.misses == tuple(persisted.misses[lead])
        assert row.valid_time == slot_time(LAST + 1 + lead)
        product, extrapolation = (by_place[source, row.lead_minutes] for source in ("product", "extrapolation"))
        assert product.hits[0] == pytest.approx(extrapolation.hits[0], abs=5)  # products carry ten bits of mantissa


def test_moving_rain_is_forecast_better_by_extrapolation_than_by_persistence(tmp_path: Path) -> None:
    it = world(tmp_path)
    for last in (LAST, LAST + 1):
        issue(it.store, it.domain, it.archive, last)
    verify_products(it.store, it.archive, it.domain, slot_time(23))
    table = summarise(it.store, it.domain, START, START + DAY)
    csi = {source: sums.contingency.csi[-1, 0] for source, sums in table.sums["all"].items()}
    assert (table.products, table.wet_products, table.left_out) == (2, 2, 0)
    assert csi["product"] > csi["persistence"] + 0.2
    assert csi["product"] == pytest.approx(csi["extrapolation"], abs=0.01)


def test_leads_not_yet_observed_join_later(tmp_path: Path) -> None:
    it = world(tmp_path, observed=LAST + 3)
    issue(it.store, it.domain, it.archive, LAST)
    now = slot_time(23)
    report = verify_products(it.store, it.archive, it.domain, now)
    assert (report.scored, report.rows, report.superseded) == (1, 2 * 3, 0)
    assert list_unscored(it.store, it.archive, it.domain, now) == []
    deliver(it, LAST + 4, it.rain[LAST + 4], b"\x01")
    report = verify_products(it.store, it.archive, it.domain, now)
    assert (report.rows, report.superseded) == (3, 0)
    rows = read_rows(it.store, "meadow", START, START + DAY)
    assert sorted({row.lead_minutes for row in rows}) == [5.0, 10.0, 20.0]


def test_verifying_again_writes_nothing(tmp_path: Path) -> None:
    it = world(tmp_path)
    issue(it.store, it.domain, it.archive, LAST)
    assert verify_products(it.store, it.archive, it.domain, slot_time(23)).rows == 3 * LEADS
    before = [(item.key, item.etag) for item in it.store.list("scores")]
    again = verify_products(it.store, it.archive, it.domain, slot_time(23))
    assert (again.scored, again.rows) == (0, 0)
    assert [(item.key, item.etag) for item in it.store.list("scores")] == before


def test_a_corrected_observation_is_scored_anew_and_supersedes(tmp_path: Path) -> None:
    it = world(tmp_path)
    path = issue(it.store, it.domain, it.archive, LAST)
    verify_products(it.store, it.archive, it.domain, slot_time(23))
    deliver(it, LAST + 2, np.zeros_like(it.rain[0]), b"\x77")
    assert list_unscored(it.store, it.archive, it.domain, slot_time(23)) == [path]
    report = verify_products(it.store, it.archive, it.domain, slot_time(23))
    assert (report.rows, report.superseded) == (3, 3)
    corrected = [row for row in read_rows(it.store, "meadow", START, START + DAY) if row.lead_minutes == 10.0]
    assert {row.observation for row in corrected} == {"77" * 32}
    assert {row.supersedes for row in corrected} == {f"{LAST + 2:02x}" * 32}
    assert {row.hits for row in corrected} == {(0, 0)}


def test_a_correction_of_the_context_changes_no_baseline(tmp_path: Path) -> None:
    it = world(tmp_path, observed=LAST + 1)
    path = issue(it.store, it.domain, it.archive, LAST)
    deliver(it, LAST, it.rain[LAST] * 0, b"\x55")
    deliver(it, LAST + 1, it.rain[LAST + 1], b"\x56")
    rows = score_product(it.store, path, it.archive, it.domain)
    (persisted,) = (row for row in rows if row.source == "persistence")
    assert persisted.hits[0] > 0


def test_changed_thresholds_are_scored_anew(tmp_path: Path) -> None:
    it = world(tmp_path)
    path = issue(it.store, it.domain, it.archive, LAST)
    verify_products(it.store, it.archive, it.domain, slot_time(23))
    other = it.domain.model_copy(
        update={"verification": VerificationSettings(thresholds=(1.0,), neighbourhoods_km=(1.0,))}
    )
    assert list_unscored(it.store, it.archive, other, slot_time(23)) == [path]
    verify_products(it.store, it.archive, other, slot_time(23))
    assert {row.thresholds for row in read_rows(it.store, "meadow", START, START + DAY)} == {(1.0,)}


def test_a_product_without_its_manifest_is_not_issued_yet(tmp_path: Path) -> None:
    it = world(tmp_path)
    path = issue(it.store, it.domain, it.archive, LAST)
    it.store.delete(f"{path}/manifest.json")
    assert list_unscored(it.store, it.archive, it.domain, slot_time(23)) == []


def test_a_product_left_unscored_by_an_outage_is_scored_within_its_retention(tmp_path: Path) -> None:
    it = world(tmp_path)
    path = issue(it.store, it.domain, it.archive, LAST)
    assert list_unscored(it.store, it.archive, it.domain, slot_time(LAST) + 6 * DAY) == [path]
    assert list_unscored(it.store, it.archive, it.domain, slot_time(LAST) + 8 * DAY) == []


def test_a_named_end_bounds_init_times_and_not_observations(tmp_path: Path) -> None:
    it = world(tmp_path)
    issue(it.store, it.domain, it.archive, LAST)
    issue(it.store, it.domain, it.archive, LAST + 1)
    report = verify_products(it.store, it.archive, it.domain, slot_time(23), until=slot_time(LAST))
    assert (report.scored, report.rows) == (1, 3 * LEADS)


def test_nothing_observed_yet_gives_no_rows(tmp_path: Path) -> None:
    it = world(tmp_path, observed=LAST + 1)
    path = issue(it.store, it.domain, it.archive, LAST)
    assert score_product(it.store, path, it.archive, it.domain) == []
    assert list_unscored(it.store, it.archive, it.domain, slot_time(23)) == []


def test_a_product_whose_context_rules_changed_is_skipped_with_the_reason(tmp_path: Path) -> None:
    it = world(tmp_path)
    path = issue(it.store, it.domain, it.archive, LAST)
    other = it.domain.model_copy(update={"context": it.domain.context.model_copy(update={"frames": 3})})
    with pytest.raises(NotScorable, match="expected the context"):
        score_product(it.store, path, it.archive, other)
    report = verify_products(it.store, it.archive, other, slot_time(23))
    assert report.skipped[0][0] == path
    assert report.rows == 0


def test_a_product_whose_snapshot_has_expired_is_skipped_with_the_reason(tmp_path: Path) -> None:
    it = world(tmp_path)
    path = issue(it.store, it.domain, it.archive, LAST)
    report = read_report(it.store, path)
    it.store.write(f"{path}/report.json", report.model_copy(update={"archive_snapshot": "0" * 20}).encode())
    with pytest.raises(NotScorable, match="snapshot"):
        score_product(it.store, path, it.archive, it.domain)


def test_a_cell_that_one_source_does_not_forecast_counts_for_none() -> None:
    observed = np.ones((1, 8, 8), np.float32)
    observed[0, 0] = np.nan
    product, persistence = np.ones_like(observed), np.zeros_like(observed)
    product[0, :, 0] = np.nan
    scores = score_sources({"product": product, "persistence": persistence}, observed, RULE, 1000.0)
    assert scores["product"].errors.count.tolist() == [49]
    assert scores["persistence"].errors.count.tolist() == [49]
    assert scores["persistence"].contingency.misses[0, 0] == 49
    assert scores["product"].fractions.fss[0, 0, 0] == 1.0


def test_fingerprints_tell_the_bytes_of_each_slot_as_of_a_snapshot(tmp_path: Path) -> None:
    it = world(tmp_path, observed=3)
    before = it.archive.snapshot()
    deliver(it, 1, it.rain[1] * 2, b"\xee")
    told = [fingerprints(it.archive, START, START + DAY, as_of=snapshot) for snapshot in (before, None)]
    assert [sorted(hashes) for hashes in told] == [[slot_time(step) for step in range(3)]] * 2
    assert [hashes[slot_time(1)][:2] for hashes in told] == ["01", "ee"]
