"""Skill over products: sums first, equal windows for all columns, and a verdict only on evidence."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from builders.score_rows import START, score_row, scored_products, small_domain
from infra.objects import ObjectStore
from tasks.verification.degradation import judge_skill
from tasks.verification.score_table import write_rows
from tasks.verification.skill_table import summarise, tabulate

BETTER = {"product": 700, "persistence": 400, "extrapolation": 500}
WORSE = {"product": 300, "persistence": 400, "extrapolation": 200}


def test_scores_of_many_products_are_the_ratio_of_their_sums() -> None:
    rows = [score_row(source, number=n, hits=hits) for n, hits in ((0, 1000), (1, 0)) for source in BETTER]
    table = tabulate(small_domain(), rows)
    csi = table.sums["all"]["product"].contingency.csi
    assert csi.shape == (1, 2)
    assert csi[0, 0] == pytest.approx(1000 / (1000 + 1000 + 1000))
    assert table.sums["all"]["product"].errors.mse[0] == pytest.approx(400 / 10_000)
    assert table.sums["all"]["product"].fractions.fss[0, 0].tolist() == pytest.approx([0.5, 0.75])
    metrics = table.metrics()
    assert metrics["wet/product/csi_0.5mm/lead_15min"] == pytest.approx(1 / 3)
    assert metrics["all/persistence/fss_2mm_5km/lead_15min"] == pytest.approx(0.75)
    line = table.records()[0]
    assert line["lead_minutes"] == 15.0
    assert line["product"] == pytest.approx(0.3333)


def test_a_lead_without_all_three_sources_is_left_out_and_counted() -> None:
    rows = [
        row
        for row in scored_products(2, BETTER)
        if (row.run, row.lead_minutes, row.source) != ("run-001", 30.0, "extrapolation")
    ]
    table = tabulate(small_domain(), rows)
    assert table.left_out == 1
    assert table.products == 2
    assert table.sums["all"]["product"].errors.count.tolist() == [20_000, 20_000, 10_000]
    assert table.windows["product"].hits[1, 2].tolist() == [0, 0]


def test_rows_of_other_thresholds_are_left_out() -> None:
    table = tabulate(small_domain(thresholds=(1.0,)), scored_products(2, BETTER))
    assert table.products == 0
    assert table.left_out == 6
    assert table.metrics() == {}
    assert table.records() == []
    assert table.wet_products == 0


def test_dry_products_count_in_all_windows_only() -> None:
    rows = scored_products(2, BETTER) + [score_row(source, number=9, hits=1, observed=5) for source in BETTER]
    table = tabulate(small_domain(), rows)
    assert (table.products, table.wet_products) == (3, 2)
    assert table.sums["wet"]["product"].errors.count[1] == 20_000
    assert table.sums["all"]["product"].errors.count[1] == 30_000


def test_the_summary_reads_the_products_of_its_window(tmp_path: Path) -> None:
    store = ObjectStore(str(tmp_path))
    write_rows(store, scored_products(4, BETTER))
    assert summarise(store, small_domain(), START, START + timedelta(minutes=10)).products == 3


def test_a_model_worse_than_a_baseline_is_degraded() -> None:
    verdict = judge_skill(tabulate(small_domain(), scored_products(12, WORSE)), small_domain())
    assert verdict.degraded
    assert "persistence" in verdict.reason
    assert "extrapolation" not in verdict.reason
    assert (verdict.model_name, verdict.model_version, verdict.products) == ("testland-earthformer", "3", 12)
    assert json.dumps(verdict.as_dict(), allow_nan=False)


def test_a_better_model_is_not_degraded() -> None:
    verdict = judge_skill(tabulate(small_domain(), scored_products(12, BETTER)), small_domain())
    assert not verdict.degraded
    assert verdict.against["extrapolation"].above_zero


def test_a_tolerated_loss_is_not_degraded() -> None:
    domain = small_domain(degraded_below=-0.2)
    assert not judge_skill(tabulate(domain, scored_products(12, WORSE)), domain).degraded


def test_too_few_products_are_no_evidence() -> None:
    verdict = judge_skill(tabulate(small_domain(), scored_products(11, WORSE)), small_domain())
    assert not verdict.degraded
    assert "no evidence: 11 wet products" in verdict.reason


def test_an_empty_table_or_baselines_only_are_no_evidence() -> None:
    for rows in ([], scored_products(12, WORSE, rung="extrapolation", model_name="", model_version="")):
        verdict = judge_skill(tabulate(small_domain(), rows), small_domain())
        assert not verdict.degraded
        assert "no evidence" in verdict.reason


def test_one_wet_product_among_dry_ones_is_no_evidence() -> None:
    rows = [score_row(source, hits=WORSE[source]) for source in WORSE]
    rows += [score_row(source, number=n, hits=0, observed=0) for n in range(1, 24) for source in WORSE]
    assert not judge_skill(tabulate(small_domain(), rows), small_domain()).degraded


def test_products_of_an_older_version_do_not_speak_for_the_newest() -> None:
    rows = scored_products(12, WORSE) + [
        score_row(source, number=n, hits=BETTER[source], model_version="4") for n in (20, 21) for source in BETTER
    ]
    verdict = judge_skill(tabulate(small_domain(), rows), small_domain())
    assert (verdict.degraded, verdict.model_version, verdict.products) == (False, "4", 2)
