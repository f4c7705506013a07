"""PreDiff as a rung of a ladder: what it costs, when it answers, and what makes it fall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from numpy.typing import NDArray

from builders.ensembles import drawn, drawn_rung, lost, tiny_prediff
from builders.nowcasts import moving_rain, newest_context, write_archive
from infra.clock import Clock
from infra.objects import ObjectStore
from infra.settings import Domain, Settings
from models.prediff.forecaster import PreDiffForecaster
from tasks.cycle import make_forecast, publish_forecast
from tasks.forecasting.adaptation import Needs, first_cell
from tasks.forecasting.context import Context
from tasks.forecasting.ensemble import EnsembleCost, Ensembles
from tasks.forecasting.ladder import run_ladder
from tasks.products.report import read_report
from tasks.rungs import choose_rungs

Fields = NDArray[np.float32]
HOUR = timedelta(hours=1)


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


def dried(values: Fields) -> Fields:
    """All members but one are dry: that one does not stand for the rest."""
    values[1:] = 0
    return values * np.float32(0.4)


def equal(values: Fields) -> Fields:
    """Every member is the first."""
    return np.repeat(values[:1], len(values), axis=0)


def overshot(cells: int) -> Callable[[Fields], Fields]:
    """Some cells of one member rain 5 m an hour."""

    def change(values: Fields) -> Fields:
        values[1, 2].flat[200 : 200 + cells] = 5000
        return values

    return change


def test_one_cell_beyond_the_physical_costs_not_the_ensemble_and_is_not_shown(domain: Domain, context: Context) -> None:
    forecast = drawn(context, domain, drawn_rung(overshot(1)), members=100)
    assert forecast.rung == "prediff"
    assert float(forecast.dataset["rainfall_rate"].max()) == 1000.0


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lost, "known_share_of_observed"),
        (dried, "wet_area_kept"),
        (equal, "largest_member_difference"),
        (overshot(40), "maximum"),
    ],
)
def test_an_ensemble_that_breaks_a_guardrail_falls_a_rung(
    domain: Domain, context: Context, change: Callable[[Fields], Fields], broken: str
) -> None:
    forecast = drawn(context, domain, drawn_rung(change), members=20)
    assert forecast.rung == "extrapolation"
    assert forecast.skipped[0].reason.startswith(broken)
    kept = {guardrail.name for guardrail in drawn(context, domain, drawn_rung()).guardrails}
    assert {broken, "largest_member_difference"} <= kept
