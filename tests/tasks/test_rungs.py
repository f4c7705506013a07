"""Which rungs the ladder has: ranks, an asked-for model, missing models, a tracking server that is away."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from builders.networks import small_config
from builders.nowcasts import moving_rain, newest_context, small_domain, write_archive
from infra.clock import Clock
from infra.settings import Domain, Settings
from infra.tracking import ModelMissing, TensorSignature, Tracking, TrackingUnavailable
from models.checkpoint import save_checkpoint
from models.configuration import build_network
from tasks.cycle import publish_forecast
from tasks.forecasting.context import Context
from tasks.forecasting.ladder import Forecast, Rung, run_ladder
from tasks.rungs import RANK_TAG, choose_rungs, find_champion, find_named

SIGNATURE = TensorSignature((-1, 3, -1, -1), (-1, -1, 3, -1, -1))
NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there
GOOD, POOR, RETIRED = "meadow-earthformer", "fen-earthformer", "bog-earthformer"
PLAIN = "downpour"  # a name that tells no family


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with a champion above extrapolation, one below it, and a model whose only version was refused.

    Their networks are fresh, anchored to persistence: they add nothing to it.
    """
    folder = tmp_path_factory.mktemp("registry")
    tracking = Tracking(f"sqlite:///{folder}/mlflow.db")
    config = small_config(anchor="persistence")
    save_checkpoint(folder / "checkpoint", config, build_network(config).state_dict())
    with tracking.run("squall/meadow/training", "rungs") as log:
        for name, rank in ((GOOD, "above"), (POOR, "below"), (RETIRED, "below"), (PLAIN, "above")):
            found = tracking.register(
                name, folder / "checkpoint", run_id=log.run_id, signature=SIGNATURE, tags={RANK_TAG: rank}
            )
            act = tracking.refuse if name == RETIRED else tracking.promote
            act(name, found.version, "for this test")
    return tracking.uri


@pytest.fixture
def settings(tmp_path: Path, registry: str) -> Settings:
    """A state folder that has seen no model yet."""
    return Settings(home=tmp_path / "home", mlflow_uri=registry, _env_file=None)


@contextmanager
def away(settings: Settings) -> Iterator[None]:
    """Meanwhile the settings' tracking server cannot answer who is champion."""
    database = settings.tracking_uri.removeprefix("sqlite:///")
    _rename_table(database, "registered_model_aliases", "out_of_reach")
    try:
        yield
    finally:
        _rename_table(database, "out_of_reach", "registered_model_aliases")


def _rename_table(database: str, before: str, after: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"ALTER TABLE {before} RENAME TO {after}")


def elsewhere(settings: Settings) -> Settings:
    """The same with another tracking server, which does not answer."""
    return settings.model_copy(update={"mlflow_uri": NOBODY})


def named(domain: Domain, name: str, borrowed: str | None = None) -> Domain:
    """The same domain under another name, with the model it borrows until it has one of its own."""
    forecast = domain.forecast.model_copy(update={"model": borrowed})
    return domain.model_copy(update={"name": name, "forecast": forecast})


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    """Five frames of context, three leads, an Earthformer on top of the ladder."""
    small = small_domain(tmp_path, lead_times=3)
    ladder = ("earthformer", "extrapolation", "persistence")
    return small.model_copy(update={"forecast": small.forecast.model_copy(update={"ladder": ladder})})


@pytest.fixture
def context(domain: Domain) -> Context:
    """A complete context of moving rain."""
    return newest_context(domain, write_archive(domain, moving_rain(8, (32, 32))), 7)


def names(rungs: list[Rung]) -> list[str]:
    return [rung.name for rung in rungs]


def answer(rungs: list[Rung], context: Context, domain: Domain) -> Forecast:
    return run_ladder(context, rungs, domain, deadline=timedelta(minutes=5), seed=0)


def test_a_champion_above_extrapolation_stands_first_and_answers(
    domain: Domain, settings: Settings, context: Context, registry: str
) -> None:
    rungs = choose_rungs(domain, settings, context)
    assert names(rungs) == ["earthformer", "extrapolation", "persistence"]
    forecast = answer(rungs, context, domain)
    assert (forecast.rung, forecast.skipped) == ("earthformer", ())
    version = Tracking(registry).version(GOOD, "champion")
    assert (forecast.model.name, forecast.model.version) == (GOOD, str(version.version))
    assert forecast.model.run_id == version.run_id


def test_a_champion_below_extrapolation_stands_below_it(domain: Domain, settings: Settings, context: Context) -> None:
    rungs = choose_rungs(named(domain, "fen"), settings, context)
    assert names(rungs) == ["extrapolation", "earthformer", "persistence"]
    assert answer(rungs, context, domain).rung == "extrapolation"


@pytest.mark.parametrize("which", ["@champion", "/1"])
def test_a_model_asked_for_by_name_stands_first_whatever_its_rank(
    domain: Domain, settings: Settings, context: Context, which: str
) -> None:
    rungs = choose_rungs(domain, settings, context, f"{POOR}{which}")
    assert names(rungs) == ["earthformer", "extrapolation", "persistence"]
    assert answer(rungs, context, domain).model.name == POOR


def test_a_rung_asked_for_by_name_stands_first(domain: Domain, settings: Settings, context: Context) -> None:
    assert names(choose_rungs(domain, settings, context, "persistence")) == ["persistence", "extrapolation"]
    asked = choose_rungs(named(domain, "fen"), settings, context, "earthformer")
    assert names(asked) == ["earthformer", "extrapolation", "persistence"]


@pytest.mark.parametrize("name", ["moor", "bog"])
def test_a_domain_without_a_champion_loses_the_rung_and_says_why(
    domain: Domain, settings: Settings, context: Context, name: str
) -> None:
    rungs = choose_rungs(named(domain, name), settings, context)
    assert names(rungs) == ["earthformer", "extrapolation", "persistence"]
    forecast = answer(rungs, context, domain)
    assert forecast.rung == "extrapolation"
    assert [(skipped.rung, skipped.kind) for skipped in forecast.skipped] == [("earthformer", "ModelMissing")]
    assert f"{name}-earthformer@champion" in forecast.skipped[0].reason


def test_a_domain_borrows_a_model_until_it_has_a_champion_of_its_own(
    domain: Domain, settings: Settings, context: Context
) -> None:
    borrowing, owning = named(domain, "bog", borrowed=GOOD), named(domain, "fen", borrowed=GOOD)
    assert choose_rungs(borrowing, settings, context)[0].model.name == GOOD
    assert choose_rungs(owning, settings, context)[1].model.name == POOR


def test_a_borrowed_model_serves_the_rung_of_its_own_family_alone(
    domain: Domain, settings: Settings, context: Context
) -> None:
    borrowing = named(domain, "bog", borrowed=GOOD)
    ladder = ("prediff", "earthformer", "extrapolation", "persistence")
    whole = borrowing.model_copy(update={"forecast": borrowing.forecast.model_copy(update={"ladder": ladder})})
    rungs = choose_rungs(whole, settings, context)
    assert [rung.model.name for rung in rungs] == ["bog-prediff", GOOD, "extrapolation", "persistence"]
    forecast = answer(rungs, context, domain)
    assert (forecast.rung, [skipped.rung for skipped in forecast.skipped]) == ("earthformer", ["prediff"])
    assert "bog-prediff@champion" in forecast.skipped[0].reason


def test_another_familys_model_is_not_even_downloaded_and_a_name_without_a_family_is_judged_by_its_checkpoint(
    domain: Domain, settings: Settings, registry: str
) -> None:
    with pytest.raises(ModelMissing, match="bog-prediff@champion"):
        find_named("prediff", named(domain, "bog", borrowed=GOOD), settings)
    assert not (settings.root / "models" / GOOD).exists()
    plain = named(domain, "bog", borrowed=PLAIN)
    assert find_named("earthformer", plain, settings).name == PLAIN
    with pytest.raises(ModelMissing, match="bog-prediff@champion"):
        find_named("prediff", plain, settings)


def test_an_unknown_version_is_missing_and_not_replaced_by_another(settings: Settings) -> None:
    with pytest.raises(ModelMissing, match=f"{GOOD}@99"):
        find_champion(GOOD, "99", settings)


def test_the_last_known_champion_answers_while_the_tracking_server_is_away(
    domain: Domain, settings: Settings, context: Context
) -> None:
    known = find_champion(GOOD, "champion", settings)
    with away(settings):
        assert find_champion(GOOD, "champion", settings) == known
        forecast = answer(choose_rungs(domain, settings, context), context, domain)
    assert (forecast.rung, forecast.model.version, forecast.skipped) == ("earthformer", known.version, ())


def test_the_rank_of_the_last_known_champion_counts_too(domain: Domain, settings: Settings, context: Context) -> None:
    poor = named(domain, "fen")
    first = names(choose_rungs(poor, settings, context))
    with away(settings):
        assert names(choose_rungs(poor, settings, context)) == first


def test_a_borrowed_champion_answers_too_while_the_tracking_server_is_away(
    domain: Domain, settings: Settings, context: Context
) -> None:
    borrowing = named(domain, "bog", borrowed=GOOD)
    assert answer(choose_rungs(borrowing, settings, context), context, domain).rung == "earthformer"
    with away(settings):
        assert answer(choose_rungs(borrowing, settings, context), context, domain).rung == "earthformer"


def test_what_another_tracking_server_answered_does_not_count_while_this_one_is_away(settings: Settings) -> None:
    find_champion(GOOD, "champion", settings)
    with pytest.raises(TrackingUnavailable, match=NOBODY):
        find_champion(GOOD, "champion", elsewhere(settings))


def test_a_tracking_server_that_was_never_there_costs_the_rung_with_the_reason(
    domain: Domain, settings: Settings, context: Context
) -> None:
    with pytest.raises(TrackingUnavailable, match=NOBODY):
        find_champion(GOOD, "champion", elsewhere(settings))
    forecast = answer(choose_rungs(domain, elsewhere(settings), context), context, domain)
    assert forecast.rung == "extrapolation"
    assert [skipped.kind for skipped in forecast.skipped] == ["TrackingUnavailable"]
    assert NOBODY in forecast.skipped[0].reason


def test_a_checkpoint_damaged_on_this_machine_costs_the_rung(
    domain: Domain, settings: Settings, context: Context
) -> None:
    champion = find_champion(GOOD, "champion", settings)
    weights = Path(champion.folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    forecast = answer(choose_rungs(domain, settings, context), context, domain)
    assert forecast.rung == "extrapolation"
    assert [skipped.rung for skipped in forecast.skipped] == ["earthformer"]


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_weights_gone_from_this_machine_cost_the_rung_while_the_server_is_away(
    domain: Domain, settings: Settings, context: Context, lost: str
) -> None:
    (Path(find_champion(GOOD, "champion", settings).folder) / lost).unlink()
    with away(settings):
        forecast = answer(choose_rungs(domain, settings, context), context, domain)
    assert forecast.rung == "extrapolation"
    assert lost in forecast.skipped[0].reason


def test_artifacts_gone_from_the_store_cost_the_rung(
    domain: Domain, settings: Settings, context: Context, registry: str
) -> None:
    artifacts = Path(registry.removeprefix("sqlite:///")).with_name("mlflow-artifacts")
    hidden = artifacts.rename(artifacts.with_name("hidden"))
    try:
        forecast = answer(choose_rungs(domain, settings, context), context, domain)
    finally:
        hidden.rename(artifacts)
    assert [(skipped.rung, skipped.kind) for skipped in forecast.skipped] == [("earthformer", "TrackingUnavailable")]


@pytest.mark.parametrize("left", [None, b'{"domain": "mea'])
def test_a_damaged_newest_product_does_not_keep_the_next_nowcast_from_coming(
    domain: Domain, settings: Settings, context: Context, left: bytes | None
) -> None:
    forecast = answer(choose_rungs(domain, settings, context), context, domain)
    published = publish_forecast(domain, settings, Clock(), context, forecast)
    report = Path(domain.product.url) / published.path / "report.json"
    report.unlink()
    if left is not None:
        report.write_bytes(left)
    assert names(choose_rungs(domain, settings, context)) == ["earthformer", "extrapolation", "persistence"]
