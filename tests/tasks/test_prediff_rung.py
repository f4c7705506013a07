"""Ensembles as a rung: what a deadline leaves of them, what their product says, and what-ifs beside forecasts."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray

from builders.ensembles import drawn_rung, tiny_prediff, write_prediff
from builders.networks import small_config
from builders.nowcasts import moving_rain, newest_context, small_domain, write_archive
from infra.clock import Clock
from infra.objects import ObjectStore
from infra.settings import Domain, Settings
from infra.tracking import TensorSignature, Tracking
from models.checkpoint import save_checkpoint
from models.configuration import build_network
from models.prediff.forecaster import PreDiffForecaster
from tasks.cycle import make_forecast, publish_forecast
from tasks.forecasting.adaptation import Needs, first_cell
from tasks.forecasting.context import Context
from tasks.forecasting.ensemble import (
    DeadlineUnreachable,
    EnsembleCost,
    Ensembles,
    choose_size,
    intensity_in_words,
    parse_intensity,
)
from tasks.forecasting.guardrails import GuardrailTripped, guard
from tasks.forecasting.ladder import Forecast, NoForecast, Rung, baseline_rung, run_ladder
from tasks.products.dataset import build_product
from tasks.products.exceedance import member_quantiles
from tasks.products.index import expire_products, list_products
from tasks.products.publishing import read_latest, series
from tasks.products.quicklook import draw_quicklooks
from tasks.products.report import read_report, show_product
from tasks.rungs import choose_rungs

Fields = NDArray[np.float32]
HOUR = timedelta(hours=1)
FULL = Ensembles(steps=10, sampler="euler", least_steps=4, least_members=2)
COST = EnsembleCost(shared_s=1.0, member_s=1.0, step_s=1.0)  # of 8 members and 10 steps: 1 + 8 + 80 = 89 s
SIGNATURE = TensorSignature((-1, 4, -1, -1), (-1, -1, 3, -1, -1))


@pytest.mark.parametrize(
    ("left_s", "members", "steps", "choice"),
    [
        (112.0, 8, 10, "full"),  # four fifths of the time left are planned: 89.6 s
        (111.0, 8, 9, "fewer steps"),
        (60.0, 8, 4, "fewer steps"),  # (48 - 1 - 8) / 8
        (50.0, 7, 4, "fewer members"),  # four steps of eight members take 41 s, of seven 36 s
        (14.0, 2, 4, "fewer members"),
    ],
)
def test_steps_are_given_up_before_members(left_s: float, members: int, steps: int, choice: str) -> None:
    size = choose_size(FULL, COST, 8, left_s)
    assert (size.members, size.steps, size.choice) == (members, steps, choice)
    assert "89.0 s" in size.reason


def test_less_time_than_the_least_ensemble_takes_is_for_the_next_rung_unless_there_is_none() -> None:
    with pytest.raises(DeadlineUnreachable, match=r"expected 11\.0 s for the least, 2 members of 4 steps; 13\.0 s"):
        choose_size(FULL, COST, 8, 13.0)
    size = choose_size(FULL, COST, 8, -5.0, must=True)
    assert (size.members, size.steps, size.choice) == (2, 4, "fewer members")


def test_one_member_is_an_ensemble_where_one_was_asked_for() -> None:
    assert choose_size(FULL, COST, 1, 100.0).members == 1
    assert choose_size(FULL, COST, 1, 0.0, must=True) == replace(
        choose_size(FULL, COST, 1, 8.0), reason="all of it was expected to take 12.0 s of the 0.0 s left"
    )


@examples(deadline=None)
@given(
    left_s=st.floats(0.1, 1000),
    members=st.integers(1, 50),
    steps=st.integers(1, 100),
    shared_s=st.floats(0, 20),
    member_s=st.floats(0, 5),
    step_s=st.floats(0, 1),
)
def test_what_is_chosen_is_expected_in_time_and_within_its_bounds(
    left_s: float, members: int, steps: int, shared_s: float, member_s: float, step_s: float
) -> None:
    ensembles, cost = replace(FULL, steps=steps), EnsembleCost(shared_s, member_s, step_s)
    least = min(2, members), min(4, steps)
    try:
        size = choose_size(ensembles, cost, members, left_s)
    except DeadlineUnreachable:
        assert cost.seconds(*least) > 0.8 * left_s - 1e-6
        return
    assert cost.seconds(size.members, size.steps) <= 0.8 * left_s + 1e-6
    assert least[0] <= size.members <= members
    assert least[1] <= size.steps <= steps
    assert (size.choice == "full") == ((size.members, size.steps) == (members, steps))
    assert size.members == members or size.steps == least[1]


def test_costs_are_measured_per_stage() -> None:
    cost = EnsembleCost.measured(10.0, {"sampling": 6.0, "decoding": 3.0}, members=3, steps=4)
    assert cost == EnsembleCost(shared_s=1.0, member_s=1.0, step_s=0.5)
    assert cost.seconds(3, 4) == 10.0


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


def test_quantiles_are_linear_between_members_and_nan_where_one_is() -> None:
    values = np.array([[[3.0, 5.0]], [[1.0, np.nan]], [[2.0, 5.0]]], np.float32)
    found = member_quantiles(values, [0.0, 0.25, 0.5, 0.9, 1.0])
    assert found[:, 0, 0] == pytest.approx([1.0, 1.5, 2.0, 2.8, 3.0])
    assert np.isnan(found[:, 0, 1]).all()
    draws = np.random.default_rng(0).gamma(0.5, 4.0, (9, 5, 6)).astype(np.float32)
    assert np.allclose(member_quantiles(draws, [0.1, 0.9]), np.quantile(draws, [0.1, 0.9], axis=0), rtol=1e-5)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry whose domain `meadow` has a PreDiff and an Earthformer, both with random weights, as champions."""
    folder = tmp_path_factory.mktemp("registry")
    tracking = Tracking(f"sqlite:///{folder}/mlflow.db")
    config = small_config(anchor="persistence")
    save_checkpoint(folder / "earthformer", config, build_network(config).state_dict())
    write_prediff(folder / "prediff")
    with tracking.run("squall/meadow/training", "ensembles") as log:
        for family in ("prediff", "earthformer"):
            name = f"meadow-{family}"
            found = tracking.register(name, folder / family, run_id=log.run_id, signature=SIGNATURE)
            tracking.promote(name, found.version, "for this test")
    return tracking.uri


@pytest.fixture
def settings(tmp_path: Path, registry: str) -> Settings:
    """A state folder that has seen no model yet."""
    return Settings(home=tmp_path / "home", mlflow_uri=registry, device="cpu", threads=1, _env_file=None)


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    """Five frames of context, three leads, the whole ladder, three members."""
    small = small_domain(tmp_path, lead_times=3)
    ladder = ("prediff", "earthformer", "extrapolation", "persistence")
    forecast = small.forecast.model_copy(update={"ladder": ladder, "members": 3, "least_steps": 2})
    return small.model_copy(update={"forecast": forecast})


@pytest.fixture
def context(domain: Domain) -> Context:
    """A complete context of moving rain on a grid of no whole tiles; its first columns are not observed."""
    rain = moving_rain(8, (20, 26))
    rain[:, :, :3] = np.nan
    return newest_context(domain, write_archive(domain, rain), 7)


@pytest.mark.parametrize(
    ("deadline_s", "rung", "members", "steps", "skipped"),
    [
        (4000, "prediff", 3, 4, 0),  # 100 + 3 · (100 + 4 · 100) = 1600 s in full
        (1700, "prediff", 3, 3, 0),
        (1300, "prediff", 3, 2, 0),  # 1000 s of 1040
        (1100, "prediff", 2, 2, 0),  # 700 s of 880
        (800, "earthformer", 1, None, 1),
        (60, "extrapolation", 1, None, 2),
        (5, "persistence", 1, None, 3),
    ],
)
def test_the_deadline_decides_how_far_down_the_ladder_the_answer_comes_from(
    domain: Domain,
    settings: Settings,
    context: Context,
    deadline_s: float,
    rung: str,
    members: int,
    steps: int | None,
    skipped: int,
) -> None:
    rungs = choose_rungs(domain, settings, context)
    assert [entry.name for entry in rungs] == ["prediff", "earthformer", "extrapolation", "persistence"]
    ensembles = rungs[0].ensembles
    assert ensembles == Ensembles(steps=4, sampler="dpmpp2m", least_steps=2, least_members=2)
    known = replace(rungs[0], ensembles=replace(ensembles, cost=EnsembleCost(100.0, 100.0, 100.0)))
    slow = [known, *(replace(entry, expected_s=s) for entry, s in zip(rungs[1:], (500.0, 50.0, 5000.0), strict=True))]
    forecast = run_ladder(
        context, slow, domain, deadline=timedelta(seconds=deadline_s), seed=1, members=domain.forecast.members
    )
    field = forecast.dataset["rainfall_rate"]
    assert (forecast.rung, field.sizes["member"]) == (rung, members)
    assert {entry.kind for entry in forecast.skipped} <= {"DeadlineUnreachable"}
    assert len(forecast.skipped) == skipped
    assert np.isnan(field.values[..., :3]).all()
    assert np.isfinite(field.values[:, 0, :, 6:]).mean() > 0.9  # extrapolation knows nothing of air from outside
    assert (forecast.ensemble.steps if forecast.ensemble else None) == steps
    assert forecast.dataset.attrs.get("sampling_steps") == steps
    if forecast.ensemble:
        shrunk = "full" if (members, steps) == (3, 4) else "fewer steps" if members == 3 else "fewer members"
        assert forecast.ensemble.choice == forecast.dataset.attrs["ensemble_choice"] == shrunk
        assert (forecast.ensemble.members_asked, forecast.ensemble.steps_asked) == (3, 4)


def test_a_first_run_times_a_step_and_its_product_tells_the_next_what_to_expect(
    domain: Domain, settings: Settings, context: Context
) -> None:
    forecast = make_forecast(domain, settings, context, model=None, members=None, deadline=HOUR, seed=1)
    assert forecast.ensemble is not None
    assert (forecast.rung, forecast.ensemble.choice, forecast.ensemble.members) == ("prediff", "full", 3)
    published = publish_forecast(domain, settings, Clock(), context, forecast)
    (rung, *_) = choose_rungs(domain, settings, context)
    assert rung.ensembles is not None
    cost = rung.ensembles.cost
    assert cost is not None
    assert min(cost.load_s, cost.shared_s, cost.member_s, cost.step_s) > 0
    spent = forecast.seconds["load"] + forecast.seconds["forecast"]
    assert cost.seconds(3, 4) <= spent + 1e-3
    other = replace(rung.ensembles, steps=4000, cost=cost)
    hurried = replace(rung, ensembles=other)
    again = run_ladder(
        context,
        [hurried, *choose_rungs(domain, settings, context)[1:]],
        domain,
        seed=1,
        members=3,
        deadline=timedelta(),
    )
    assert again.skipped[0].kind == "DeadlineUnreachable"
    assert read_report(ObjectStore(domain.product.url), published.path).ensemble is not None


def test_a_context_too_short_for_the_ensemble_leaves_its_rung(domain: Domain, settings: Settings) -> None:
    rain = moving_rain(8, (20, 26))
    short = newest_context(domain, write_archive(domain, {7: rain[7], 6: rain[6]}), 7)
    forecast = make_forecast(domain, settings, short, model=None, members=None, deadline=HOUR, seed=1)
    assert forecast.rung == "extrapolation"
    assert [entry.kind for entry in forecast.skipped] == ["Unsuitable", "Unsuitable"]
    assert forecast.ensemble is None


def test_a_product_of_members_holds_their_mean_quantiles_and_probabilities(
    domain: Domain, settings: Settings, context: Context
) -> None:
    forecast = make_forecast(domain, settings, context, model=None, members=4, deadline=HOUR, seed=2)
    published = publish_forecast(domain, settings, Clock(), context, forecast)
    store = ObjectStore(domain.product.url)
    import xarray as xr

    product = xr.open_zarr(Path(domain.product.url) / published.path / "forecast.zarr")
    values = product["rainfall_rate"].values
    assert values.shape == (4, 3, 20, 26)
    assert np.allclose(product["rainfall_rate_mean"].values, values.mean(axis=0), rtol=4e-3, equal_nan=True)
    quantile = product["rainfall_rate_quantile"]
    assert quantile.dims == ("quantile", "lead_time", "y", "x")
    assert product["quantile"].values.tolist() == [0.1, 0.5, 0.9]
    assert np.allclose(
        quantile.values, np.quantile(values, [0.1, 0.5, 0.9], axis=0), rtol=4e-3, atol=1e-6, equal_nan=True
    )
    share = np.where(np.isfinite(values).all(axis=0), (values >= 5).mean(axis=0), np.nan)
    found = product["probability_above_threshold"].sel(threshold=5).values
    assert np.allclose(found, share, atol=3e-3, equal_nan=True)
    assert len(np.unique(found[np.isfinite(found)].round(2))) > 2
    report = read_report(store, published.path)
    assert report.ensemble is not None
    assert (report.members, report.ensemble.members_asked, report.ensemble.steps) == (4, 4, 4)
    assert (report.ensemble.sampler, report.ensemble.intensity) == ("dpmpp2m", None)
    assert {
        name: product.attrs[name] for name in ("members_asked", "sampler", "sampling_steps", "ensemble_choice")
    } == {
        "members_asked": 4,
        "sampler": "dpmpp2m",
        "sampling_steps": 4,
        "ensemble_choice": "full",
    }
    assert "average_intensity" not in product.attrs
    assert "4 of 4 members, 4 of 4 steps of dpmpp2m (full" in show_product(store, published.path)
    keys = {item.key.rpartition("/")[2] for item in store.list(f"{published.path}/quicklook")}
    leads = ("005min.png", "010min.png", "015min.png")
    assert keys == {f"{kind}_{lead}" for kind in ("lead", "probability", "members") for lead in leads} | {
        "animation.gif"
    }


def test_the_same_members_give_the_same_product(domain: Domain, settings: Settings, context: Context) -> None:
    first, second = (
        publish_forecast(
            domain,
            settings,
            Clock(),
            context,
            make_forecast(domain, settings, context, model=None, members=2, deadline=deadline, seed=2),
        )
        for deadline in (HOUR, 2 * HOUR)
    )
    assert (second.path, second.already) == (first.path, True)


def drawn(context: Context, domain: Domain, rung: Rung, intensity: float | None = None, members: int = 6) -> Forecast:
    """The ensemble of a rung above extrapolation."""
    rungs = [rung, baseline_rung("extrapolation", context, domain)]
    return run_ladder(context, rungs, domain, deadline=HOUR, seed=0, members=members, intensity=intensity)


def test_pictures_show_members_probabilities_and_what_is_unknown(domain: Domain, context: Context) -> None:
    from PIL import Image

    product = build_product(drawn(context, domain, drawn_rung()), context, domain)
    pictures = draw_quicklooks(product, "rainfall_rate")
    for name in ("probability_005min", "members_010min", "lead_015min"):
        page = np.asarray(Image.open(io.BytesIO(pictures[f"quicklook/{name}.png"])))
        assert {11, 12} <= set(np.unique(page)), name  # grey and hatched
        assert (page == 10).any(), name  # the top of the scale: chances of 0.9, rain of 100 mm h-1 in the legend
    one = build_product(drawn(context, domain, drawn_rung(), members=1), context, domain)
    assert "rainfall_rate_quantile" not in one
    assert not any("probability" in name for name in draw_quicklooks(one, "rainfall_rate"))


def lost(values: Fields) -> Fields:
    """One member is not known anywhere."""
    values[2] = np.nan
    return values


def dried(values: Fields) -> Fields:
    """All members but one are dry: that one does not stand for the rest."""
    values[1:] = 0
    return values * np.float32(0.4)


def equal(values: Fields) -> Fields:
    """Every member is the first."""
    return np.repeat(values[:1], len(values), axis=0)


@pytest.mark.parametrize(
    ("change", "broken"),
    [(lost, "known_share_of_observed"), (dried, "wet_area_kept"), (equal, "largest_member_difference")],
)
def test_an_ensemble_that_breaks_a_guardrail_falls_a_rung(
    domain: Domain, context: Context, change: Callable[[Fields], Fields], broken: str
) -> None:
    forecast = drawn(context, domain, drawn_rung(change), members=20)
    assert forecast.rung == "extrapolation"
    assert forecast.skipped[0].reason.startswith(broken)
    kept = {guardrail.name for guardrail in drawn(context, domain, drawn_rung()).guardrails}
    assert {broken, "largest_member_difference"} <= kept


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


def test_a_domain_without_a_champion_loses_the_rung_and_keeps_the_ladder(
    domain: Domain, settings: Settings, context: Context
) -> None:
    bare = domain.model_copy(update={"name": "moor"})
    forecast = make_forecast(bare, settings, context, model=None, members=None, deadline=HOUR, seed=1)
    assert forecast.rung == "extrapolation"
    assert [(entry.rung, entry.kind) for entry in forecast.skipped] == [
        ("prediff", "ModelMissing"),
        ("earthformer", "ModelMissing"),
    ]


def test_windows_of_one_domain_count_their_cells_from_the_same_origin(
    domain: Domain, settings: Settings, context: Context
) -> None:
    """Noise is a function of the place: y falls from 7 000 km north, x rises from 100 km east, cells of 1 km."""
    assert first_cell(context.frames, Needs(5)) == (-7000, 100)
    assert first_cell(context.frames[:, 6:, 4:], Needs(5)) == (-6994, 104)
    assert first_cell(context.frames, Needs(5, cell_size_m=2000.0)) == (-3500, 50)
    loaded = choose_rungs(domain, settings, context)[0].load()
    assert isinstance(loaded, PreDiffForecaster)
    assert loaded.origin == (-3500, 50)  # two cells of one latent cell
    assert loaded.config == tiny_prediff()
