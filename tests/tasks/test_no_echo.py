"""A model of reflectivity sees dry cells as it was trained on them, and what it gives for dry is dry again."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from builders.ensembles import tiny_prediff, write_prediff
from builders.networks import small_config
from builders.nowcasts import moving_rain, newest_context, small_domain, write_archive
from builders.training import SPEC, drifting_rain, info, samples, small_model
from infra.settings import Settings
from infra.tracking import TensorSignature, Tracking
from models.checkpoint import load_any, load_config, save_checkpoint
from models.configuration import ForecasterConfig, build_network
from models.transform import Transform
from tasks.forecasting.adaptation import Needs, adapt, restore
from tasks.forecasting.ladder import run_ladder
from tasks.rungs import choose_rungs
from tasks.training.config import TrainConfig
from tasks.training.data import FrameBatch, write_training_data
from tasks.training.fit import forecaster_config, train
from tasks.training.samples import SampleSource

Fields = NDArray[np.float32]
RAIN, DBZ = "rainfall_rate", "equivalent_reflectivity_factor"
TRENTINO = Needs(1, quantity=DBZ, no_echo=0.0)
UNKNOWN = Needs(1, quantity=DBZ)
LEVELS = (-33.0, -32.1, -19.8, 0.0, 5.0)


def frames(values: Fields | list[float], quantity: str, no_echo: float | None = None) -> xr.DataArray:
    """One frame of one row."""
    attrs = {} if no_echo is None else {"no_echo": no_echo}
    field = np.asarray(values, np.float32).reshape(1, 1, -1)
    return xr.DataArray(field, dims=("time", "y", "x"), name=quantity, attrs=attrs)


def seen(domain: xr.DataArray, needs: Needs) -> Fields:
    """What the model is given, (x,)."""
    return adapt(domain, needs, 300.0).values[0, 0]


def told(forecast: Fields | list[float], domain: xr.DataArray, needs: Needs) -> Fields:
    """What becomes of a model's forecast (x,) in the domain."""
    values = np.asarray(forecast, np.float32).reshape(1, 1, 1, -1)
    return restore(values, adapt(domain, needs, 300.0), domain, needs)[0, 0, 0]


def test_rain_is_given_with_the_models_dry_value_and_comes_back_dry() -> None:
    rain = frames([0, 0.01, 30, np.nan], RAIN)
    shown = seen(rain, TRENTINO)
    assert shown[0] == 0
    assert 0 < shown[1] <= 0.2  # -9 dBZ: weaker than any echo that the model knows, and yet not dry
    assert shown[2] == pytest.approx(46.6, abs=0.1)
    assert np.isnan(shown[3])
    back = told(shown, rain, TRENTINO)
    assert back[0] == 0
    assert 0 < back[1] < 0.04
    assert back[2] == pytest.approx(30, rel=1e-5)
    assert np.isnan(back[3])


def test_what_a_model_gives_at_or_below_its_dry_value_is_dry() -> None:
    rain, echo = frames([0, 0, 0], RAIN), frames([-33, -33, -33], DBZ, -33.0)
    for domain, dry in ((rain, 0), (echo, -33)):
        back = told([0, -4, 0.5], domain, TRENTINO)
        assert back[:2].tolist() == [dry, dry]
        assert back[2] > dry
    sensitive = Needs(1, quantity=DBZ, no_echo=-33.0)  # its almost dry cells are below the domain's faintest echo
    assert told([-33, -32.6, -1, 0.5], frames([0] * 4, DBZ, 0.0), sensitive).tolist() == [0, 0, 0, 0.5]
    own = frames([0, 0, 0], DBZ, 0.0)
    assert told([0, -4, 0.5], own, TRENTINO).tolist() == [0, 0, 0.5]


@given(
    st.lists(st.one_of(st.just(float("nan")), st.floats(-40, 60, width=32)), min_size=1, max_size=20),
    st.sampled_from(LEVELS),
    st.sampled_from(LEVELS),
)
def test_reflectivity_keeps_what_is_dry_wet_and_not_observed_both_ways(
    values: list[float], ours: float, theirs: float
) -> None:
    field = np.maximum(np.asarray(values, np.float32), np.float32(ours))
    domain, needs = frames(field, DBZ, ours), Needs(1, quantity=DBZ, no_echo=theirs)
    shown = seen(domain, needs)
    back = told(shown, domain, needs)
    dry, wet = field == np.float32(ours), field > np.float32(ours)
    for changed, level in ((shown, np.float32(theirs)), (back, np.float32(ours))):
        assert (changed[dry] == level).all()
        assert (changed[wet] > level).all()
        np.testing.assert_array_equal(np.isnan(changed), np.isnan(field))
    strong = field > max(ours, theirs) + 0.2
    np.testing.assert_array_equal(shown[strong], field[strong])
    np.testing.assert_array_equal(back[strong], field[strong])


def test_a_model_that_does_not_tell_is_given_what_there_is() -> None:
    echo, rain = frames([0, -5, 12, np.nan], DBZ, 0.0), frames([0, 1], RAIN)
    np.testing.assert_array_equal(seen(echo, UNKNOWN), echo.values[0, 0])
    np.testing.assert_array_equal(told(echo.values, echo, UNKNOWN), echo.values[0, 0])
    assert seen(rain, UNKNOWN)[0] == -33
    assert told([-33, -20], rain, UNKNOWN).tolist() == pytest.approx([0, 0.002], abs=1e-3)


def test_a_moved_dry_value_is_noted_and_an_equal_one_is_not() -> None:
    assert adapt(frames([-33], DBZ, -33.0), TRENTINO, 300.0).note == "no echo at 0 dBZ instead of -33 and back"
    assert adapt(frames([0], DBZ, 0.0), TRENTINO, 300.0).note == ""


def reflectivity_model(**changes: object) -> ForecasterConfig:
    """A small Earthformer of reflectivity."""
    return small_config(quantity=DBZ, transform=Transform.of_quantity(DBZ), anchor="persistence", **changes)


def test_a_checkpoint_holds_the_dry_value_where_it_is_known_and_only_there(tmp_path: Path) -> None:
    for number, config in enumerate((reflectivity_model(no_echo=0.0), reflectivity_model())):
        folder = save_checkpoint(tmp_path / str(number), config, build_network(config).state_dict())
        written = json.loads((folder / "config.json").read_text())
        assert ("no_echo" in written, written.get("no_echo")) == (config.no_echo is not None, config.no_echo)
        assert load_config(folder) == config
    assert reflectivity_model(no_echo=0.0).resized(t_in=3, t_out=3, patch=(32, 32)).no_echo == 0.0


def test_a_prediff_keeps_its_dry_value_too(tmp_path: Path) -> None:
    plain = tiny_prediff()
    assert "no_echo" not in json.loads(plain.model_dump_json())
    known = tiny_prediff(quantity=DBZ, no_echo=-32.0)
    assert load_any(write_prediff(tmp_path, known))[0].no_echo == -32.0


def reflectivity_samples(folder: Path) -> SampleSource:
    """Echoes of up to 8 dBZ whose dry cells have 0 dBZ."""
    echoes = FrameBatch(np.arange(240), drifting_rain(240))
    data = write_training_data([echoes], replace(info(), quantity=DBZ, no_echo=0.0), folder)
    return SampleSource(data, SPEC)


def test_a_training_tells_its_model_what_dry_was_in_its_samples(tmp_path: Path) -> None:
    model = forecaster_config(small_model(), reflectivity_samples(tmp_path / "dbz"))
    assert (model.quantity, model.no_echo) == (DBZ, 0.0)
    assert forecaster_config(model, samples(tmp_path / "rain")).no_echo is None


def test_a_training_begun_without_a_dry_value_goes_on_with_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    source = reflectivity_samples(tmp_path / "dbz")
    model = forecaster_config(small_model(), source)
    config = TrainConfig(
        domain="tiny",
        preset=model.preset,
        max_steps=2,
        batch_size=4,
        val_windows=4,
        precision="32-true",
        accelerator="cpu",
        progress_bar=False,
    )
    train(config, source, tmp_path / "run", model=model.model_copy(update={"no_echo": None}))
    again = train(config, source, tmp_path / "run", model=model, resume=True)
    assert again.steps == 2


def test_a_domain_of_rain_that_borrows_a_model_of_reflectivity_stays_dry_where_it_is(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", mlflow_uri=f"sqlite:///{tmp_path}/mlflow.db", _env_file=None)
    config, tracking = reflectivity_model(no_echo=0.0), Tracking(settings.tracking_uri)
    save_checkpoint(tmp_path / "checkpoint", config, build_network(config).state_dict())
    signature = TensorSignature((-1, 3, -1, -1), (-1, -1, 3, -1, -1))
    with tracking.run("squall/alps/training", "alps") as log:
        made = tracking.register(
            "alps-earthformer", tmp_path / "checkpoint", run_id=log.run_id, signature=signature, tags={}
        )
    tracking.promote("alps-earthformer", made.version, "for this test")
    small = small_domain(tmp_path, lead_times=3)
    borrowing = small.forecast.model_copy(update={"model": "alps-earthformer", "ladder": ("earthformer",)})
    domain = small.model_copy(update={"forecast": borrowing})
    context = newest_context(domain, write_archive(domain, moving_rain(8, (32, 32))), 7)
    rungs = choose_rungs(domain, settings, context)
    assert rungs[0].needs.no_echo == 0.0
    forecast = run_ladder(context, rungs, domain, deadline=timedelta(minutes=5), seed=0)
    first, newest = forecast.dataset[RAIN].values[0, 0], context.frames.values[-1]
    assert forecast.rung == "earthformer"
    np.testing.assert_array_equal(first == 0, newest == 0)
    np.testing.assert_allclose(first, newest, rtol=1e-3)
