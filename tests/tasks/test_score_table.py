"""The score table: rows come back as written, repeating writes nothing, a corrected observation supersedes."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from builders.score_rows import START, score_row, scored_products
from infra.objects import ObjectStore
from tasks.verification.score_table import ScoreRow, read_rows, scored_on, table_key, write_rows

HITS = {"product": 600, "persistence": 400, "extrapolation": 500}


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(str(tmp_path / "store"))


def product_rows(store: ObjectStore, run: str) -> list[ScoreRow]:
    return [row for row in read_rows(store, "testland", START, START + timedelta(hours=1)) if row.run == run]


def test_rows_come_back_as_they_were_written(store: ObjectStore) -> None:
    rows = scored_products(3, HITS)
    assert len(write_rows(store, rows)) == len(rows)
    found = read_rows(store, "testland", START, START + timedelta(hours=1))
    assert sorted(found, key=lambda row: (row.run, row.place)) == sorted(rows, key=lambda row: (row.run, row.place))
    assert read_rows(store, "testland", START + timedelta(minutes=1), START + timedelta(minutes=7)) == [
        row for row in found if row.run == "run-001"
    ]
    assert read_rows(store, "elsewhere", START, START + timedelta(hours=1)) == []


def test_writing_the_same_rows_again_writes_nothing(store: ObjectStore) -> None:
    row = score_row()
    write_rows(store, [row])
    key = table_key("testland", row.init_time, row.run)
    tag = store.etag(key)
    assert write_rows(store, [replace(row, scored_at=row.scored_at + timedelta(hours=1))]) == []
    assert store.etag(key) == tag


def test_a_corrected_observation_supersedes_the_row_and_says_which(store: ObjectStore) -> None:
    row = score_row()
    write_rows(store, [row, score_row(lead=5.0)])
    (written,) = write_rows(store, [replace(row, observation="cd" * 32, hits=(7, 7))])
    assert written.supersedes == "ab" * 32
    found = product_rows(store, row.run)
    assert [(it.lead_minutes, it.observation[:2], it.hits) for it in found] == [
        (5.0, "ab", (500, 500)),
        (15.0, "cd", (7, 7)),
    ]


def test_a_lead_observed_later_joins_the_product(store: ObjectStore) -> None:
    write_rows(store, [score_row(lead=5.0)])
    write_rows(store, [score_row(lead=10.0)])
    assert [row.lead_minutes for row in product_rows(store, "run-000")] == [5.0, 10.0]
    assert product_rows(store, "run-999") == []


def test_what_a_product_was_scored_on_is_told_for_the_rule_in_force(store: ObjectStore) -> None:
    row = score_row()
    key = table_key("testland", row.init_time, row.run)
    assert scored_on(store, key, row.thresholds, row.neighbourhoods_km) == {}
    write_rows(store, [row])
    assert scored_on(store, key, row.thresholds, row.neighbourhoods_km) == {row.valid_time: row.observation}
    assert scored_on(store, key, (99.0,), row.neighbourhoods_km) == {}


def test_two_verifications_at_once_lose_nothing(store: ObjectStore) -> None:
    leads = [float(5 * number) for number in range(1, 9)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda lead: write_rows(store, [score_row(lead=lead)]), leads))
    assert [row.lead_minutes for row in product_rows(store, "run-000")] == leads


def test_any_parquet_reader_opens_a_table(store: ObjectStore) -> None:
    import pandas as pd

    row = score_row()
    write_rows(store, [row])
    frame = pd.read_parquet(io.BytesIO(store.read(table_key("testland", row.init_time, row.run))))
    assert frame.loc[0, "source"] == "product"
    long = frame.explode(["thresholds", "hits", "misses", "false_alarms"])
    assert long[["thresholds", "hits"]].values.tolist() == [[0.5, 500], [2.0, 500]]
