"""PreDiff's stages: latents once, resumable to the bit, restartable alone, one model in the registry in the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from builders.networks import small_config
from builders.training import drifting_rain, write
from infra.settings import Domain, Settings
from infra.tracking import CHAMPION, TensorSignature, Tracking
from models.baselines.persistence import Persistence
from models.checkpoint import save_checkpoint
from models.configuration import build_network
from models.forecaster import load_forecaster
from models.prediff.forecaster import PreDiffForecaster
from models.prediff.network import PreDiffNetwork
from models.prediff.presets import preset
from tasks.ensemble_gate import compare_ensemble_models
from tasks.learning import promote_model
from tasks.prediff_learning import (
    assemble_prediff,
    encode_windows,
    fit_alignment,
    fit_autoencoder,
    fit_denoiser,
)
from tasks.prediff_plan import PreDiffPlan, plan_prediff, read_plan
from tasks.training.comparability import misfit
from tasks.training.data import TrainingData
from tasks.training.resumption import experiment_of, training_folder
from tasks.training.samples import SampleSource, SampleSpec
from tasks.training.stages.assembly import measure_scales, start_network
from tasks.training.stages.denoiser import DenoiserStage, latent_batch, to_device
from tasks.training.stages.latents import LatentSet, build_latents, choose_windows
from tasks.training.stages.loop import fit_stage
from tasks.training.stages.stage import Batch, StageConfig

SPEC = SampleSpec(t_in=4, t_out=3, event_limit=timedelta(hours=2))
QUIET = {"progress_bar": False, "accelerator": "cpu", "precision": "32-true"}


class Killed(RuntimeError):
    """Stands for SIGKILL: nothing after it runs."""


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
def network() -> PreDiffNetwork:
    config = preset("tiny").config("prediff/tiny", cadence_s=300, cell_size_m=1000.0)
    return start_network(config, None, seed=1).eval()


def latents_of(network: PreDiffNetwork, samples: SampleSource, folder: Path, count: int = 20) -> LatentSet:
    return build_latents(network.config, network, samples, folder, choose_windows(samples, 0, count), "train")


def test_latents_hold_what_the_autoencoder_says_of_each_window(
    network: PreDiffNetwork, data: TrainingData, tmp_path: Path
) -> None:
    samples = SampleSource(data, SPEC)
    windows = choose_windows(samples, 0, 20)
    found = latents_of(network, samples, tmp_path)
    fields = samples.reader().read(windows)
    u = torch.nan_to_num(network.config.transform.forward(torch.from_numpy(fields)))
    with torch.no_grad():
        mean, _ = network.autoencoder.encode_sequence(u[..., None])
    assert len(found) == len({(window.frame, window.y) for window in windows}) == 20
    torch.testing.assert_close(found.future, mean[:, 4:], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found.context, mean[:, :4], atol=2e-3, rtol=2e-3)
    observed = np.nanmean(network.config.transform.forward(fields)[:, 4:], axis=(2, 3))
    np.testing.assert_allclose(found.values[..., 0].numpy(), observed, rtol=1e-5)


class Holed(SampleSource):
    """Samples of which some frames, and one cell of the newest observed frame, were not observed."""

    missing: tuple[int, ...] = ()

    def reader(self):  # type: ignore[no-untyped-def, override]
        whole, missing = super().reader(), list(self.missing)

        class Reading:
            def read(self, windows: object) -> NDArray[np.float32]:
                fields = whole.read(windows)  # type: ignore[arg-type]
                fields[:, missing] = np.nan
                fields[:, 3, 5, 5] = np.nan
                return fields

        return Reading()


def test_a_gap_in_the_context_is_neither_dry_nor_filled_from_the_future(
    network: PreDiffNetwork, data: TrainingData, tmp_path: Path
) -> None:
    whole, holed = SampleSource(data, SPEC), Holed(data, SPEC)
    holed.missing = (1, 2)
    windows = choose_windows(whole, 0, 8)
    fields = whole.reader().read(windows)
    found = build_latents(network.config, network, holed, tmp_path, windows, "train")
    seen = fields[:, :4].copy()
    seen[:, [1, 2]] = seen[:, [0, 0]]  # as of the frame before, also where the newest has a hole
    seen[:, 3, 5, 5] = seen[:, 0, 5, 5]
    u = network.config.transform.forward(torch.from_numpy(seen))
    with torch.no_grad():
        mean, _ = network.autoencoder.encode_sequence(torch.nan_to_num(u)[..., None])
    torch.testing.assert_close(found.context, mean, atol=2e-3, rtol=2e-3)
    assert float(found.known.min()) > 0.0
    torch.testing.assert_close(found.known[:, 1], found.known[:, 0])
    torch.testing.assert_close(found.known[:, 2], found.known[:, 0])


def test_service_sees_of_a_holed_context_what_training_saw(
    network: PreDiffNetwork, data: TrainingData, tmp_path: Path
) -> None:
    holed = Holed(data, SPEC)
    holed.missing = (1, 2)
    windows = choose_windows(holed, 0, 3)
    found = build_latents(network.config, network, holed, tmp_path, windows, "train")
    forecaster = PreDiffForecaster(network.config, network)
    with torch.no_grad():
        trained = network.estimator(found.frames, found.known)
    for number, fields in enumerate(holed.reader().read(windows)):
        served = forecaster.anticipate(fields[:4])
        torch.testing.assert_close(served.mean[0], trained.mean[number], atol=2e-3, rtol=2e-3)


def test_an_interrupted_encoding_goes_on_and_a_whole_one_is_only_read(
    network: PreDiffNetwork, data: TrainingData, tmp_path: Path
) -> None:
    samples = SampleSource(data, SPEC)
    windows = choose_windows(samples, 0, 40)
    whole = build_latents(network.config, network, samples, tmp_path / "whole", windows, "train")

    class Dying:
        samples, reads = SampleSource(data, SPEC), 0

        def read(self, chosen: object) -> object:
            self.reads += 1
            if self.reads == 2:
                raise Killed
            return SampleSource(data, SPEC).reader().read(chosen)  # type: ignore[arg-type]

    class Mortal(SampleSource):
        def reader(self) -> Dying:  # type: ignore[override]
            return Dying()

    with pytest.raises(Killed):
        build_latents(network.config, network, Mortal(data, SPEC), tmp_path / "cut", windows, "train")
    again = build_latents(network.config, network, samples, tmp_path / "cut", windows, "train")
    assert torch.equal(whole.future, again.future)
    assert torch.equal(whole.values, again.values)
    read = build_latents(network.config, network, Mortal(data, SPEC), tmp_path / "cut", windows, "train")
    assert torch.equal(read.context, whole.context)


def test_scaled_latents_have_unit_variance_and_come_back(
    network: PreDiffNetwork, data: TrainingData, tmp_path: Path
) -> None:
    latents = latents_of(network, SampleSource(data, SPEC), tmp_path)
    scaled = start_network(network.config, None, seed=1)
    measure_scales(scaled, latents, 0.0)
    batch = latent_batch(scaled, latents, torch.arange(len(latents)), None)
    assert 0.5 < float(batch["residual"].std()) < 2.0
    assert "anchor" not in batch
    torch.testing.assert_close(scaled.from_residual(batch["residual"], None), scaled.standardise(latents.future))


class DyingStage(DenoiserStage):
    """Dies when it is asked for a certain batch."""

    dies_at: int | None = None

    def batch(self, step: int) -> Batch:
        if step == self.dies_at:
            raise Killed
        return super().batch(step)


def stage_of(data: TrainingData, network: PreDiffNetwork, folder: Path) -> DyingStage:
    samples = SampleSource(data, SPEC)
    fresh = start_network(network.config, None, seed=1)
    latents = latents_of(network, samples, folder)
    measure_scales(fresh, latents, 0.0)
    return DyingStage(fresh, latents, latents, seed=5, batch_size=4)


def test_a_killed_stage_ends_with_the_very_weights_of_a_calm_one(
    data: TrainingData, network: PreDiffNetwork, tmp_path: Path
) -> None:
    config = StageConfig(seed=5, batch_size=4, max_steps=6, val_every=3, checkpoint_every=2, **QUIET)  # type: ignore[arg-type]
    calm = fit_stage(stage_of(data, network, tmp_path), config, tmp_path / "calm")
    dying = stage_of(data, network, tmp_path)
    dying.dies_at = 5
    with pytest.raises(Killed):
        fit_stage(dying, config, tmp_path / "killed")
    assert not (tmp_path / "killed" / "done.json").exists()
    resumed = fit_stage(stage_of(data, network, tmp_path), config, tmp_path / "killed")
    assert resumed.steps == calm.steps == 6
    ours, theirs = load_file(resumed.weights), load_file(calm.weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    dying.dies_at = 0
    assert fit_stage(dying, config, tmp_path / "killed") == resumed
    (tmp_path / "killed" / "done.json").unlink()  # killed between its last state and its result
    again = fit_stage(stage_of(data, network, tmp_path), config, tmp_path / "killed")
    assert (again.steps, again.best, again.metrics) == (resumed.steps, resumed.best, resumed.metrics)
    ours = load_file(again.weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_a_prediff_is_trained_registered_and_judged(data: TrainingData, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, threads=1, device="cpu", _env_file=None)
    domain = Domain.model_validate(
        {
            "name": "tiny",
            "feed": {"kind": "simulated", "url": "x", "cadence": "5min", "tolerance": "60s"},
            "archive": {"url": str(tmp_path / "archive")},
            "product": {"url": str(tmp_path / "store")},
            "verification": {"thresholds": [0.5, 2.0]},
            "training": {"event_limit": "2h"},
        }
    )
    told = {"max_steps": 4, "train_windows": 24, "constraint": "exceedance_area:1"}
    plan = plan_prediff(domain, settings, data, preset="prediff/tiny", request="flow-1", **told)  # type: ignore[arg-type]
    assert plan_prediff(domain, settings, data, preset="prediff/tiny", max_steps=4, request="flow-1") == plan
    results = run_stages(domain, settings, data, plan)
    fitted = assemble_prediff(domain, settings, data, plan, results)
    forecaster = load_forecaster(fitted.checkpoint)
    assert isinstance(forecaster, PreDiffForecaster)
    assert forecaster.config.constraint.kind == "exceedance_area"
    context = drifting_rain(4)
    members = forecaster.forecast(context, 3, members=3, seed=1)
    assert members.shape == (3, 3, 16, 16)
    assert np.isnan(members[:, :, 0, 0]).all()
    assert np.isfinite(members[:, :, 1:, 1:]).all()
    tracking = Tracking(settings.tracking_uri)
    champion_earthformer(tracking, tmp_path / "earthformer")
    verdict = compare_ensemble_models(domain, settings, data, fitted, windows=6, members=3)
    assert set(verdict.against) == {"dressed", "steps", "extrapolation", "persistence"}
    promote_model(settings, fitted, replace(verdict, promote=True))
    assert tracking.version("tiny-prediff", CHAMPION).version == fitted.version
    children = [
        tracking.find_tagged(experiment_of("tiny"), "squall.stage", stage)
        for stage in ("autoencoder", "denoiser", "alignment")
    ]
    assert None not in children
    redone = plan_prediff(domain, settings, data, preset="prediff/tiny", resume=plan.run_id, stage="denoiser")
    folder = training_folder(settings, plan.run_id)
    assert redone == plan == read_plan(settings, plan.run_id)
    assert not (folder / "denoiser").exists()
    assert (folder / "alignment" / "done.json").exists()
    with pytest.raises(ValueError, match="expected a stage of autoencoder"):
        plan_prediff(domain, settings, data, preset="prediff/tiny", resume=plan.run_id, stage="decoder")


def test_a_batch_follows_its_network(data: TrainingData) -> None:
    moved = to_device({"context": torch.zeros(2)}, torch.nn.Linear(1, 1, device="meta"))
    assert moved["context"].device.type == "meta"


def test_a_model_of_other_cells_cadence_context_or_leads_cannot_be_compared(
    data: TrainingData, network: PreDiffNetwork
) -> None:
    samples = SampleSource(data, SPEC)

    def of(**changes: object) -> PreDiffForecaster:
        return PreDiffForecaster(network.config.model_copy(update=changes), network)

    assert misfit(of(), samples) is None
    assert misfit(Persistence(t_out=3), samples) is None
    assert misfit(of(cadence_s=600), samples) == "trained on rainfall_rate of 1000 m and 600 s"
    assert misfit(of(cell_size_m=2000.0), samples) == "trained on rainfall_rate of 2000 m and 300 s"
    assert misfit(of(), SampleSource(data, replace(SPEC, t_in=3))) == "needs 4 frames and forecasts 3"
    assert misfit(Persistence(t_out=2), samples) == "needs 1 frames and forecasts 2"


def champion_earthformer(tracking: Tracking, folder: Path) -> None:
    """Register a fresh one of the domain's cells and cadence."""
    config = small_config(anchor="persistence")
    save_checkpoint(folder, config, build_network(config).state_dict())
    with tracking.run(experiment_of("tiny"), "earthformer") as log:
        signature = TensorSignature((-1, 3, -1, -1), (-1, -1, 3, -1, -1))
        found = tracking.register("tiny-earthformer", folder, run_id=log.run_id, signature=signature)
        tracking.promote("tiny-earthformer", found.version, "for this test")


def run_stages(domain: Domain, settings: Settings, data: TrainingData, plan: PreDiffPlan):  # type: ignore[no-untyped-def]
    first = fit_autoencoder(domain, settings, data, plan)
    trained, held_out = encode_windows(domain, settings, data, plan)
    assert trained == 24
    assert held_out > 0
    return first, fit_denoiser(domain, settings, data, plan), fit_alignment(domain, settings, data, plan)
