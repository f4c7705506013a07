"""Imported components in place of stages: kept to the bit, never trained, completed by what was not published."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from builders.training import drifting_rain, write
from infra.settings import Domain, Settings
from infra.tracking import ModelMissing, TensorSignature, Tracking
from models.component import ComponentConfig, save_component
from models.forecaster import load_forecaster
from models.prediff.architecture import AutoencoderConfig
from models.prediff.forecaster import PreDiffForecaster
from models.prediff.presets import preset
from models.prediff.published import build
from tasks.prediff_learning import assemble_prediff, encode_windows, fit_alignment, fit_autoencoder, fit_denoiser
from tasks.prediff_plan import plan_prediff, read_plan
from tasks.training.data import TrainingData

TINY = preset("tiny").architecture
PARTS: dict[str, ComponentConfig] = {
    "autoencoder": TINY.autoencoder,
    "denoiser": TINY.denoiser,
    "alignment": TINY.alignment,
    "other": AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4),
}
ALL = {stage: f"published-{stage}@challenger" for stage in ("autoencoder", "denoiser", "alignment")}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return write(tmp_path_factory.mktemp("rain") / "layout", drifting_rain(240))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), threads=1, device="cpu", _env_file=None)


@pytest.fixture(scope="module")
def components(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, nn.Module]:
    """Fresh networks, registered as an import leaves them."""
    tracking, folder = Tracking(settings.tracking_uri), tmp_path_factory.mktemp("components")
    torch.manual_seed(7)
    networks = {name: build(config) for name, config in PARTS.items()}
    with tracking.run("squall/import", "components") as log:
        for name, network in networks.items():
            save_component(folder / name, PARTS[name], network.state_dict())
            registered = f"published-{name}"
            signature = TensorSignature((-1, 4, -1, -1), (-1, -1, 3, -1, -1))
            found = tracking.register(registered, folder / name, run_id=log.run_id, signature=signature)
            tracking.challenge(registered, found.version)
    return networks


@pytest.fixture(scope="module")
def domain() -> Domain:
    place = {"archive": {"url": "unused"}, "product": {"url": "unused"}}
    feed = {"kind": "simulated", "url": "unused", "cadence": "5min", "tolerance": "60s"}
    return Domain.model_validate({"name": "hill", "feed": feed, "training": {"event_limit": "2h"}, **place})


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_three_imported_networks_become_a_forecaster_with_an_estimator_of_its_own(
    domain: Domain, settings: Settings, data: TrainingData, components: dict[str, nn.Module]
) -> None:
    plan = plan_prediff(
        domain, settings, data, preset="prediff/tiny", max_steps=3, train_windows=16, imported=ALL, seed=3
    )
    assert plan.imported == {stage: f"published-{stage} 1" for stage in ALL}
    assert read_plan(settings, plan.run_id) == plan
    first = fit_autoencoder(domain, settings, data, plan)
    encode_windows(domain, settings, data, plan)
    results = first, fit_denoiser(domain, settings, data, plan), fit_alignment(domain, settings, data, plan)
    assert [result.steps for result in results] == [0, 0, 3]
    fitted = assemble_prediff(domain, settings, data, plan, results)
    forecaster = load_forecaster(fitted.checkpoint)
    assert isinstance(forecaster, PreDiffForecaster)
    network = forecaster.network
    for stage in ALL:
        assert_same_weights(getattr(network, stage), components[stage])
    assert network.latent_mean.eq(0).all()
    assert network.latent_std.eq(1).all()
    version = Tracking(settings.tracking_uri).version("hill-prediff", str(fitted.version))
    assert version.tags["squall.imported_denoiser"] == "published-denoiser 1"
    with pytest.raises(ValueError, match="denoiser is published-denoiser 1, imported"):
        plan_prediff(domain, settings, data, preset="prediff/tiny", resume=plan.run_id, stage="denoiser")


def test_what_is_not_imported_is_trained_on_latents_of_what_is(
    domain: Domain, settings: Settings, data: TrainingData, components: dict[str, nn.Module]
) -> None:
    told = {"autoencoder": "published-autoencoder/1"}
    plan = plan_prediff(
        domain, settings, data, preset="prediff/tiny", max_steps=1, train_windows=8, imported=told, seed=3
    )
    assert fit_autoencoder(domain, settings, data, plan).steps == 0
    encode_windows(domain, settings, data, plan)
    assert fit_denoiser(domain, settings, data, plan).steps == 1


@pytest.mark.parametrize(
    ("name", "told", "expected"),
    [
        ("prediff/tiny", {"denoiser": "published-denoiser@challenger"}, "expected the autoencoder whose latents"),
        ("prediff/tiny", {"decoder": "published-autoencoder@challenger"}, "expected components of autoencoder"),
        ("prediff/tiny", {"autoencoder": "published-autoencoder"}, "expected NAME@ALIAS or NAME/VERSION"),
        ("prediff/tiny", {"autoencoder": "published-other@challenger"}, "expected block_out_channels"),
        ("prediff/tiny", {"autoencoder": "published-denoiser@challenger"}, "published-denoiser 1 as autoencoder"),
        ("prediff/small-64", ALL, "expected a preset without an anchor"),
        ("prediff/sevir-lr", ALL, r"vil_code on 3000 m every 600 s; got rainfall_rate on 1000 m every 300 s"),
    ],
)
def test_components_that_do_not_fit_are_refused_before_a_training_begins(
    domain: Domain,
    settings: Settings,
    data: TrainingData,
    components: dict[str, nn.Module],
    name: str,
    told: dict[str, str],
    expected: str,
) -> None:
    trainings = settings.root / "training"
    before = sorted(trainings.glob("*"))
    with pytest.raises(ValueError, match=expected):
        plan_prediff(domain, settings, data, preset=name, imported=told)
    assert sorted(trainings.glob("*")) == before


def test_a_component_that_is_not_registered_is_missing(domain: Domain, settings: Settings, data: TrainingData) -> None:
    with pytest.raises(ModelMissing):
        plan_prediff(domain, settings, data, preset="prediff/tiny", imported={"autoencoder": "nobody@challenger"})
