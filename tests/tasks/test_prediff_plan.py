"""What a PreDiff training is told counts or is refused; nothing is silently ignored."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from builders.training import drifting_rain, write
from infra.settings import Domain, Settings
from infra.tracking import ModelMissing
from models.prediff import presets
from tasks.prediff_plan import PreDiffPlan, plan_prediff
from tasks.training.data import TrainingData
from tasks.training.resumption import training_folder

MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), _env_file=None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return write(tmp_path_factory.mktemp("rain") / "layout", drifting_rain(40))


@pytest.fixture(scope="module")
def domain() -> Domain:
    place = {"archive": {"url": "unused"}, "product": {"url": "unused"}}
    feed = {"kind": "simulated", "url": "unused", "cadence": "5min", "tolerance": "60s"}
    return Domain.model_validate({"name": "hill", "feed": feed, **place})


@pytest.fixture(scope="module")
def begun(domain: Domain, settings: Settings, data: TrainingData) -> PreDiffPlan:
    told: dict[str, Any] = {"budget": 10 * MINUTE, "train_windows": 400, "seed": 4}
    return plan_prediff(domain, settings, data, preset="prediff/tiny", request="flow-1", **told)


def test_a_model_to_start_from_is_refused_by_a_preset_that_is_not_anchored_to_one(
    domain: Domain, settings: Settings, data: TrainingData
) -> None:
    for name, anchor in (("prediff/small-64", "extrapolation"), ("prediff/tiny", "none")):
        told = f"expected no from_model with {name}, whose anchor is '{anchor}'; got 'dale-earthformer@champion'"
        with pytest.raises(ValueError, match=told):
            plan_prediff(domain, settings, data, preset=name, from_model="dale-earthformer@champion")


def test_a_preset_anchored_to_an_earthformer_takes_the_one_that_is_named(
    domain: Domain, settings: Settings, data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchored = replace(presets.preset("prediff/tiny"), anchor="earthformer")
    monkeypatch.setitem(presets._PRESETS, "prediff/anchored", anchored)
    for asked, sought in (("dale-earthformer@champion", "dale-earthformer@champion"), (None, "hill-earthformer")):
        with pytest.raises(ModelMissing, match=sought):
            plan_prediff(domain, settings, data, preset="prediff/anchored", from_model=asked)


@pytest.mark.parametrize(
    "same",
    [{}, {"budget": 10 * MINUTE}, {"seed": 4}, {"train_windows": 400}, {"budget": 10 * MINUTE, "seed": 4}],
)
def test_a_training_goes_on_with_the_options_that_it_was_told(
    domain: Domain, settings: Settings, data: TrainingData, begun: PreDiffPlan, same: dict[str, Any]
) -> None:
    assert plan_prediff(domain, settings, data, preset="prediff/tiny", resume=begun.run_id, **same) == begun


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"preset": "prediff/small-64"}, r"preset prediff/small-64 \(was prediff/tiny\)"),
        ({"budget": 20 * MINUTE}, r"budget 0:20:00 \(was 0:10:00\)"),
        ({"max_steps": 8}, r"max_steps 8 \(was not given\)"),
        ({"train_windows": 24}, r"windows 24 \(was 400\)"),
        ({"seed": 5}, r"seed 5 \(was 4\)"),
        ({"seed": 0}, r"seed 0 \(was 4\)"),
        ({"constraint": "domain_mass"}, r"constraint domain_mass \(was average_intensity\)"),
        ({"from_model": "dale-earthformer@champion"}, r"from_model dale-earthformer@champion \(was not given\)"),
    ],
)
def test_a_training_that_goes_on_refuses_options_that_could_not_count(
    domain: Domain, settings: Settings, data: TrainingData, begun: PreDiffPlan, other: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=f"as it was told; got {told}"):
        plan_prediff(domain, settings, data, **{"preset": "prediff/tiny", "resume": begun.run_id, **other})


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"constraint": "area"}, "expected average_intensity, domain_mass or exceedance_area:THRESHOLD; got 'area'"),
        ({"constraint": "exceedance_area"}, "expected average_intensity, domain_mass or exceedance_area:THRESHOLD"),
        ({"constraint": "domain_mass:3"}, "expected average_intensity, domain_mass or exceedance_area:THRESHOLD"),
        (
            {"constraint": "domain_mass", "imported": {"alignment": "published-alignment@challenger"}},
            "expected average_intensity of an imported alignment network; got domain_mass",
        ),
        (
            {"perceptual": "lpips.safetensors", "imported": {"autoencoder": "published-autoencoder@challenger"}},
            "expected no perceptual loss of an imported autoencoder",
        ),
    ],
)
def test_what_members_are_steered_to_and_a_perceptual_loss_are_read_before_anything_is_trained(
    domain: Domain, settings: Settings, data: TrainingData, asked: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        plan_prediff(domain, settings, data, preset="prediff/tiny", **asked)


def test_a_file_that_is_no_perceptual_distance_is_refused(
    domain: Domain, settings: Settings, data: TrainingData, tmp_path: Path
) -> None:
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"features\.0\.weight: expected \(64, 3, 3, 3\); got \(1,\)"):
        plan_prediff(domain, settings, data, preset="prediff/tiny", perceptual=str(tmp_path / "other.safetensors"))


def test_a_request_that_is_repeated_goes_on_whatever_it_asks(
    domain: Domain, settings: Settings, data: TrainingData, begun: PreDiffPlan
) -> None:
    assert plan_prediff(domain, settings, data, preset="prediff/tiny", request="flow-1", max_steps=3) == begun


def test_a_stage_asked_for_again_is_dropped_once_by_each_request(
    domain: Domain, settings: Settings, data: TrainingData, begun: PreDiffPlan
) -> None:
    state = training_folder(settings, begun.run_id) / "denoiser" / "state"
    kept = []
    for request in ("flow-2", "flow-2", "flow-3"):  # the second is flow-2 again, after its process was killed
        state.parent.mkdir(exist_ok=True)
        state.touch()
        told = {"resume": begun.run_id, "stage": "denoiser", "request": request}
        plan_prediff(domain, settings, data, preset="prediff/tiny", **told)
        kept.append(state.exists())
    assert kept == [False, True, False]
