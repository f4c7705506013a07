"""What-ifs stand beside the forecasts: an intensity in sigmas, a place of their own, and models that can be steered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from builders.ensembles import drawn, drawn_rung, lost
from infra.clock import Clock
from infra.objects import ObjectStore
from infra.settings import Domain, Settings
from tasks.cycle import make_forecast, publish_forecast
from tasks.forecasting.context import Context
from tasks.forecasting.ensemble import intensity_in_words, parse_intensity
from tasks.forecasting.guardrails import GuardrailTripped, guard
from tasks.forecasting.ladder import NoForecast
from tasks.products.dataset import build_product
from tasks.products.index import expire_products, list_products
from tasks.products.publishing import read_latest, series
from tasks.products.report import read_report, show_product
from tasks.rungs import choose_rungs

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("text", "n"),
    [("+2sigma", 2), ("-1sigma", -1), ("2", 2), ("0", 0), ("-1.5", -1.5), (" +0.5σ ", 0.5), ("2 Sigma", 2)],
)
def test_intensities_are_numbers_of_sigma(text: str, n: float) -> None:
    assert parse_intensity(text) == n


@pytest.mark.parametrize("text", ["", "strong", "2%", "++2sigma", "7sigma", "-100", "nan", "1e1"])
def test_anything_else_is_told_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"such as \+2sigma"):
        parse_intensity(text)


def test_intensities_in_words_and_as_series_of_products() -> None:
    assert [intensity_in_words(n) for n in (2.0, -1.5, 0.0)] == ["mu + 2 sigma", "mu - 1.5 sigma", "mu"]
    assert series("fen") == "fen"
    assert [series("fen", n) for n in (2.0, -1.5, 0.0)] == [
        "fen/what-if/above-2sigma",
        "fen/what-if/below-1.5sigma",
        "fen/what-if/expected",
    ]


def test_only_a_drought_that_was_asked_for_may_dry_the_forecast(context: Context) -> None:
    dry = np.where(np.isnan(context.frames.values[-1]), np.float32(np.nan), np.float32(0))
    values = np.broadcast_to(dry, (4, 3, *dry.shape)).astype(np.float32)
    for intensity in (None, 2.0):
        with pytest.raises(GuardrailTripped, match="wet_area_kept"):
            guard(values, context, intensity)
    assert ("wet_area_kept", 0.0, 0.0) in {(g.name, g.found, g.limit) for g in guard(values, context, -2.0)}


def test_a_what_if_is_published_beside_the_forecasts_and_never_as_one(
    domain: Domain, settings: Settings, context: Context
) -> None:
    store = ObjectStore(domain.product.url)
    plain = make_forecast(domain, settings, context, model=None, members=2, deadline=HOUR, seed=1)
    latest = publish_forecast(domain, settings, Clock(), context, plain)
    steered = make_forecast(domain, settings, context, model=None, members=2, deadline=HOUR, seed=1, intensity=2.0)
    assert steered.rung == "prediff"
    published = publish_forecast(domain, settings, Clock(), context, steered)
    assert published.path.startswith("products/meadow/what-if/above-2sigma/2016/09/28/1535/")
    own, domains = read_latest(store, series("meadow", 2.0)), read_latest(store, "meadow")
    assert own is not None
    assert domains is not None
    assert (own.path, own.supersedes, domains.path) == (published.path, None, latest.path)
    assert [folder.path for folder in list_products(store, "meadow")] == [latest.path]
    report = read_report(store, published.path)
    assert report.intensity == 2.0
    assert "What-if, no forecast: the average intensity is held at mu + 2 sigma" in show_product(store, published.path)
    product = build_product(steered, context, domain)
    assert product.attrs["title"] == "What-if (mu + 2 sigma) for A meadow"
    assert product.attrs["average_intensity"] == "mu + 2 sigma"
    assert product.attrs["comment"].startswith("no forecast")
    forecasts, what_ifs = choose_rungs(domain, settings, context), choose_rungs(domain, settings, context, None, 2.0)
    for rung, forecast in ((forecasts[0], plain), (what_ifs[0], steered)):
        assert rung.ensembles is not None
        assert rung.ensembles.cost is not None
        assert forecast.ensemble is not None
        assert rung.ensembles.cost.step_s == pytest.approx(forecast.ensemble.cost.step_s, abs=1e-6)
    assert choose_rungs(domain, settings, context, None, -1.0)[0].ensembles == replace(what_ifs[0].ensembles, cost=None)


def test_what_ifs_expire_but_for_the_newest_of_each_intensity(
    domain: Domain, settings: Settings, context: Context
) -> None:
    store = ObjectStore(domain.product.url)
    paths = [
        publish_forecast(
            domain,
            settings,
            Clock(),
            context,
            make_forecast(domain, settings, context, model=None, members=2, deadline=HOUR, seed=seed, intensity=n),
        ).path
        for seed, n in ((1, 1.0), (2, 1.0), (1, -1.0))
    ]
    later = datetime.now(UTC) + timedelta(days=1)
    assert expire_products(store, "meadow", now=later, keep=HOUR) == [paths[0]]
    assert store.list(paths[0]) == []
    assert store.list(paths[1])
    assert store.list(paths[2])


def test_a_model_that_cannot_be_steered_answers_no_what_if(
    domain: Domain, settings: Settings, context: Context
) -> None:
    with pytest.raises(NoForecast, match=r"earthformer: Unsteerable: .*mu \+ 2 sigma.*persistence: Unsteerable"):
        make_forecast(
            domain,
            settings,
            context,
            model="meadow-earthformer@champion",
            members=2,
            deadline=HOUR,
            seed=1,
            intensity=2.0,
        )
    assert drawn(context, domain, drawn_rung(), intensity=-1.0).rung == "prediff"
    with pytest.raises(NoForecast, match=r"GuardrailTripped.*Unsteerable"):
        drawn(context, domain, drawn_rung(lost), intensity=-1.0)
