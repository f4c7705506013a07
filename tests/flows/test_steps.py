"""Steps: what asks the store is tried again, and what is shown says what it is about."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from prefect import flow
from prefect.artifacts import Artifact
from prefect.states import Failed
from prefect.task_engine import TaskRunTimeoutError

from builders.nowcasts import small_domain
from builders.score_rows import score_row
from builders.score_rows import small_domain as scored_domain
from builders.unreachable import free_port, store_away
from builders.weed import KEY, SECRET
from infra.settings import Settings
from tasks import steps
from tasks.verification.degradation import judge_skill
from tasks.verification.score_table import SOURCES
from tasks.verification.skill_table import tabulate


@pytest.mark.parametrize("name", ["look_at", "may_announce_degradation", "may_expire"])
def test_looks_and_claims_are_tried_again_as_often_as_publications(name: str) -> None:
    assert getattr(steps, name).retries == steps.publish_forecast.retries == 5


def test_what_took_too_long_is_not_tried_again() -> None:
    policy = steps.fit_model.retry_condition_fn
    assert policy is not None
    for error, again in ((TaskRunTimeoutError(), False), (OSError("reset"), True), (ValueError("refused"), False)):
        assert policy(steps.fit_model, None, Failed(data=error)) is again


@pytest.mark.parametrize("name", ["nowcast", "verify"])
def test_flows_of_a_cycle_ask_the_store_in_steps_only(name: str) -> None:
    assert not hasattr(importlib.import_module(f"flows.{name}"), "cycle")


@pytest.mark.slow
def test_a_claim_waits_for_a_store_that_comes_back(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    endpoint = str(store_away(monkeypatch, port)["endpoint_url"])
    settings = Settings(home=tmp_path, s3_endpoint=endpoint, s3_key=KEY, s3_secret=SECRET, _env_file=None)
    domain = small_domain(tmp_path)
    product = domain.product.model_copy(update={"url": "s3://bucket/store"})
    domain = domain.model_copy(update={"product": product})
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    policy, failed = steps.may_expire.retry_condition_fn, []
    assert policy is not None

    def store_comes_back(step: Any, run: Any, state: Any) -> bool:
        failed.append(state.result(raise_on_failure=False))
        server.start()
        secrets = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=endpoint, **secrets).create_bucket(Bucket="bucket")
        return policy(step, run, state)

    claim = steps.may_expire.with_options(retry_condition_fn=store_comes_back)

    @flow
    def verification() -> bool:
        return claim(domain, settings)

    try:
        assert verification()
    finally:
        server.stop()
    assert [type(error) for error in failed] == [OSError]


@pytest.mark.slow
@pytest.mark.parametrize(("observed", "windows"), [(5, "all"), (1000, "wet")])
def test_skill_is_shown_on_wet_windows_and_while_there_are_none_on_all(
    prefect_server: None, observed: int, windows: Any
) -> None:
    domain = scored_domain()
    rows = [score_row(source, number=n, hits=1, observed=observed) for n in range(3) for source in SOURCES]
    table = tabulate(domain, rows)

    @flow
    def verification() -> None:
        steps.show_skill("testland", table, judge_skill(table, domain))

    verification()
    shown = Artifact.get("skill-testland")
    assert shown is not None
    assert json.loads(str(shown.data)) == table.records(windows)
    assert all(line["product"] is not None for line in table.records(windows))
    assert str(shown.description).startswith(f"CSI on {windows} windows, 3 products.")
