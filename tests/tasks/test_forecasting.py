"""The ladder: who answers, who is passed over and why, and what no forecast may break."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from builders.nowcasts import moving_rain, newest_context, slot_time, small_domain, write_archive
from infra.settings import Domain
from models.baselines.persistence import Persistence
from models.forecaster import Forecaster
from tasks.forecasting.adaptation import Needs, Unsuitable, adapt, restore
from tasks.forecasting.context import Context
from tasks.forecasting.guardrails import GuardrailTripped, guard
from tasks.forecasting.ladder import ModelIdentity, NoForecast, Rung, baseline_rung, run_ladder

Fields = NDArray[np.float32]
MINUTE = timedelta(seconds=60)


class Altered:
    """A forecaster whose answer is persistence changed by a function."""

    family, t_out = "altered", 12

    def __init__(self, change: Callable[[Fields], Fields], t_in: int = 5) -> None:
        self.change, self.t_in = change, t_in
        self.seen: Fields | None = None

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """Persistence, changed."""
        assert context.shape[0] == self.t_in
        self.seen = context
        return self.change(Persistence().forecast(context[-1:], lead_times, members=members))


def rung(forecaster: Forecaster, needs: Needs | None = None, expected_s: float | None = None) -> Rung:
    """The rung of a model at hand."""
    return Rung("model", lambda: forecaster, ModelIdentity("m", "3", "run-9"), needs or Needs(5), expected_s)


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    """Five frames of context, three leads."""
    return small_domain(tmp_path, lead_times=3)


@pytest.fixture
def context(domain: Domain) -> Context:
    """A complete context of moving rain whose first columns are not observed."""
    rain = moving_rain(10)
    rain[:, :, :3] = np.nan
    return newest_context(domain, write_archive(domain, rain), 9)


def test_the_first_rung_that_answers_is_quoted_in_full(domain: Domain, context: Context) -> None:
    forecast = run_ladder(context, [rung(Altered(lambda f: f))], domain, deadline=MINUTE, seed=4, members=2)
    data = forecast.dataset
    assert data["rainfall_rate"].dims == ("member", "lead_time", "y", "x")
    assert data["rainfall_rate"].shape == (1, 3, 64, 72)  # two were wanted: all of this forecaster's would be equal
    assert np.isnan(data["rainfall_rate"].values[..., :3]).all()
    assert np.isfinite(data["rainfall_rate"].values[..., 3:]).all()
    assert data["time"].values[0] == np.datetime64(slot_time(10).replace(tzinfo=None), "ns")
    assert data["lead_time"].values[-1] == np.timedelta64(15, "m")
    assert {name: data.attrs[name] for name in ("model_name", "model_version", "seed", "rung", "verdict")} == {
        "model_name": "m",
        "model_version": "3",
        "seed": 4,
        "rung": "model",
        "verdict": "complete",
    }
    assert data.attrs["archive_snapshot"] == context.snapshot
    assert data.attrs["code_revision"]
    assert (forecast.skipped, forecast.late) == ((), False)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda f: np.full_like(f, np.nan), "known_share_of_observed"),
        (lambda f: np.where(f > 5, np.float32(np.inf), f), "infinite_cells"),
        (lambda f: f - np.float32(1), "minimum"),
        (lambda f: f * np.float32(100), "maximum"),
        (lambda f: f * np.float32(0), "wet_area_kept"),
    ],
)
def test_a_forecast_that_breaks_a_guardrail_falls_a_rung(
    domain: Domain, context: Context, change: Callable[[Fields], Fields], broken: str
) -> None:
    rungs = [rung(Altered(change)), baseline_rung("extrapolation", context, domain)]
    forecast = run_ladder(context, rungs, domain, deadline=MINUTE, seed=0)
    assert forecast.rung == "extrapolation"
    assert [entry.kind for entry in forecast.skipped] == ["GuardrailTripped"]
    assert forecast.skipped[0].reason.startswith(broken)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("no weights"), "FileNotFoundError"),
        (RuntimeError("CUDA out of memory"), "RuntimeError"),
        (ValueError("wrong key decoder.0"), "ValueError"),
        (LookupError("no champion"), "LookupError"),
    ],
)
def test_a_model_that_does_not_load_costs_its_rung_only(
    domain: Domain, context: Context, error: Exception, kind: str
) -> None:
    def load() -> Forecaster:
        raise error

    rungs = [Rung("model", load, ModelIdentity("m"), Needs(5)), baseline_rung("persistence", context, domain)]
    forecast = run_ladder(context, rungs, domain, deadline=MINUTE, seed=0)
    assert (forecast.rung, forecast.skipped[0].kind, forecast.skipped[0].reason) == ("persistence", kind, str(error))


def test_a_context_too_short_for_the_model_falls_to_extrapolation_then_to_persistence(domain: Domain) -> None:
    rain = moving_rain(10)
    archive = write_archive(domain, {9: rain[9], 8: rain[8]})
    two = newest_context(domain, archive, 9)
    ladder = [rung(Altered(lambda f: f)), *(baseline_rung(n, two, domain) for n in ("extrapolation", "persistence"))]
    assert run_ladder(two, ladder, domain, deadline=MINUTE, seed=0).rung == "extrapolation"
    one = replace(two, frames=two.frames[1:], slots=two.slots[1:])
    ladder = [rung(Altered(lambda f: f)), *(baseline_rung(n, one, domain) for n in ("extrapolation", "persistence"))]
    forecast = run_ladder(one, ladder, domain, deadline=MINUTE, seed=0)
    assert (forecast.rung, [entry.kind for entry in forecast.skipped]) == ("persistence", ["Unsuitable", "Unsuitable"])


def test_a_rung_known_to_be_too_slow_is_not_started_but_the_last_one_always_is(
    domain: Domain, context: Context
) -> None:
    slow = rung(Altered(lambda f: f), expected_s=90.0)
    rungs = [slow, replace(baseline_rung("persistence", context, domain), expected_s=90.0)]
    forecast = run_ladder(context, rungs, domain, deadline=MINUTE, seed=0)
    assert (forecast.rung, forecast.skipped[0].kind, forecast.late) == ("persistence", "DeadlineUnreachable", False)
    assert run_ladder(context, rungs, domain, deadline=timedelta(0), seed=0).late
    assert run_ladder(context, rungs, domain, deadline=timedelta(seconds=91), seed=0).rung == "model"


def test_no_rung_no_forecast_and_every_reason_is_told(domain: Domain, context: Context) -> None:
    with pytest.raises(NoForecast, match=r"model: GuardrailTripped: wet_area_kept"):
        run_ladder(context, [rung(Altered(lambda f: f * 0))], domain, deadline=MINUTE, seed=0)
    with pytest.raises(NoForecast, match="empty"):
        run_ladder(context, [], domain, deadline=MINUTE, seed=0)


@pytest.mark.parametrize(("no_echo", "dry"), [(None, -33.0), (0.0, 0.0), (-32.0, -32.0)])
def test_a_model_of_other_cells_and_quantity_is_given_its_own_terms(
    domain: Domain, context: Context, no_echo: float | None, dry: float
) -> None:
    model = Altered(lambda f: f, t_in=3)
    quantity = "equivalent_reflectivity_factor"
    needs = Needs(3, quantity=quantity, cell_size_m=4000.0, cadence_s=300.0, no_echo=no_echo)
    forecast = run_ladder(context, [rung(model, needs)], domain, deadline=MINUTE, seed=0)
    assert model.seen is not None
    assert model.seen.shape == (3, 16, 18)
    assert np.nanmin(model.seen) == dry
    assert 40 < np.nanmax(model.seen) < 47  # 30 mm h-1 are 46.6 dBZ
    assert "block means of 4 x 4" in forecast.note
    assert "converted" in forecast.note
    field, newest = forecast.dataset["rainfall_rate"].values[0, 0], context.frames.values[-1]
    known = np.isfinite(field)
    assert known[:, 3:].mean() > 0.95
    assert np.corrcoef(field[known], newest[known])[0, 1] > 0.9
    assert field[known].mean() == pytest.approx(newest[known].mean(), rel=0.15)


def test_cells_that_fill_no_block_are_forecast_too(context: Context) -> None:
    frames = context.frames[:, :62, :71]
    needs = Needs(5, cell_size_m=3000.0)
    adapted = adapt(frames, needs, 300.0)
    assert adapted.values.shape == (5, 21, 24)
    back = restore(adapted.values[None], adapted, frames, needs)
    assert back.shape == (1, 5, 62, 71)
    assert np.isfinite(back[0, :, :, 6:]).all()
    assert np.isnan(back[0, :, :, :2]).all()


def test_a_model_of_another_cadence_or_of_an_inconvertible_quantity_is_unsuitable(context: Context) -> None:
    with pytest.raises(Unsuitable, match="every 600 s"):
        adapt(context.frames, Needs(5, cadence_s=600.0), 300.0)
    with pytest.raises(Unsuitable, match="vil"):
        adapt(context.frames, Needs(5, quantity="vil"), 300.0)


def test_rounding_below_zero_is_clipped_and_more_is_not(domain: Domain, context: Context) -> None:
    rounded = run_ladder(context, [rung(Altered(lambda f: f - np.float32(5e-4)))], domain, deadline=MINUTE, seed=0)
    assert np.nanmin(rounded.dataset["rainfall_rate"].values) == 0
    values = context.frames.values[None, -1:] - np.float32(0.1)
    with pytest.raises(GuardrailTripped, match="minimum"):
        guard(values, context)


def test_a_dry_context_may_be_forecast_dry(domain: Domain) -> None:
    archive = write_archive(domain, np.zeros((10, 16, 16), np.float32))
    context = newest_context(domain, archive, 9)
    rungs = [baseline_rung(name, context, domain) for name in ("extrapolation", "persistence")]
    forecast = run_ladder(context, rungs, domain, deadline=MINUTE, seed=0)
    assert forecast.rung == "extrapolation"
    assert isinstance(forecast.dataset, xr.Dataset)
    assert not forecast.dataset["rainfall_rate"].values.any()
