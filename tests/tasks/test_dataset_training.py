"""A domain that names a dataset trains on it: from its file to a judged, registered model, and on to a nowcast."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

from builders.datasets import EVENTS, codes, tiny_nbody, write_enso, write_sevir
from infra.settings import Domain, Settings, TrainingSettings, load_domain
from models.baselines.persistence import Persistence
from models.configuration import ForecasterConfig
from models.earthformer.presets import preset_config
from models.forecaster import load_forecaster
from models.transform import Transform
from tasks import learning
from tasks.forecasting.adaptation import Needs, adapt, restore
from tasks.training.config import TrainConfig
from tasks.training.datasets import DATASETS, open_dataset
from tasks.training.datasets.enso import Enso
from tasks.training.datasets.sampling import DatasetSamples
from tasks.training.evaluation import evaluate
from tasks.training.fit import train
from tasks.training.samples import SampleSpec
from tasks.units import sevir_to_vil

DOMAIN = """
[feed]
kind = "mrms"
url = "{home}/frames"
cadence = "5min"
tolerance = "90s"
quantity = "vil"
[archive]
url = "{home}/archive"
[product]
url = "{home}/store"
[training]
preset = "earthformer/small-64"
batch_size = 2
loss = "mse"
dataset = "sevir"
dataset_url = "{home}/sevir"
thresholds = [16, 74, 133]
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "domains").mkdir()
    (tmp_path / "domains" / "storms.toml").write_text(DOMAIN)
    return Settings(home=tmp_path, domains=tmp_path / "domains", threads=1, device="cpu", _env_file=None)


def write_storms(folder: Path) -> None:
    """SEVIR's layout with discs of VIL that move four cells a frame."""
    write_sevir(folder, (64, 64, 49))
    y, x = np.mgrid[:64, :64]
    for number, (_, file, row, _, _) in enumerate(EVENTS):
        frames = [200 * np.exp(-(np.hypot(y - 20 - 3 * number, (x - 4 * t) % 64 - 32) ** 2) / 150) for t in range(49)]
        with h5py.File(folder / "data" / file, "r+") as store:
            store["vil"][row] = np.stack(frames, axis=-1).astype(np.uint8)


@pytest.mark.slow
def test_a_training_on_sevir_ends_with_a_verdict_and_a_registered_model(settings: Settings, tmp_path: Path) -> None:
    write_storms(tmp_path / "sevir")
    domain = load_domain("storms", settings)
    data = learning.sample_data(domain, settings)
    assert data.info.archive_snapshot.startswith("sevir-")
    fitted = learning.fit_model(domain, settings, data, max_steps=2)
    assert (fitted.name, fitted.steps) == ("storms-earthformer", 2)
    verdict = learning.compare_models(domain, settings, data, fitted)
    assert {"challenger", "persistence", "extrapolation"} <= set(verdict.evidence.mean_csi)
    learning.promote_model(settings, fitted, verdict)
    model = load_forecaster(fitted.checkpoint)
    assert (model.config.quantity, model.config.transform.scale) == ("vil_code", 255.0)
    assert torch.get_num_threads() == 1


@pytest.mark.slow
def test_a_training_that_is_tried_again_goes_on_with_the_run_it_began(settings: Settings, tmp_path: Path) -> None:
    """What a step does whose store or registry was away: the same request asks once more, with the same words."""
    write_storms(tmp_path / "sevir")
    domain = load_domain("storms", settings)
    data = learning.sample_data(domain, settings)
    first, again = (learning.fit_model(domain, settings, data, max_steps=2, request="flow run 1") for _ in range(2))
    other = learning.fit_model(domain, settings, data, max_steps=2, request="flow run 2")
    assert (again.run_id, again.version, again.steps) == (first.run_id, first.version, 2)
    assert other.run_id != first.run_id


def small(preset: str, samples: DatasetSamples) -> ForecasterConfig:
    """The preset's kind of model, thinned to train in a second on the dataset at hand."""
    told = preset_config(preset).model_dump()
    thin = {"base_units": 16, "num_global_vectors": 0, "separate_global_qkv": False, "use_global_self_attn": False}
    stem = {"initial_downsample_type": "conv", "initial_downsample_scale": 4, "initial_downsample_conv_layers": 1}
    told["architecture"] |= thin | stem | {"final_upsample_conv_layers": 1, "enc_depth": (1, 1), "dec_depth": (1, 1)}
    told |= {"quantity": samples.info.quantity, "transform": Transform.of_quantity(samples.info.quantity).model_dump()}
    config = ForecasterConfig.model_validate(told | {"cadence_s": samples.info.cadence_s})
    return config.resized(t_in=samples.t_in, t_out=samples.t_out, patch=samples.size)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_on_sevir_runs_from_files_to_checkpoint_and_scores(tmp_path: Path, workers: int) -> None:
    torch.set_num_threads(1)
    samples = DatasetSamples(open_dataset("sevir", str(write_sevir(tmp_path / "sevir"))), SampleSpec(t_in=13, t_out=12))
    config = TrainConfig(
        domain="benchmark",
        preset="earthformer/sevir",
        batch_size=2,
        max_steps=4,
        loss="mse",
        thresholds=(16.0, 74.0, 133.0),
        val_every=4,
        workers=workers,
        precision="32-true",
        accelerator="cpu",
        progress_bar=False,
        ema_decay=0.9,
    )
    result = train(config, samples, tmp_path / "run", model=small("earthformer/sevir", samples))
    assert result.steps == 4
    assert {"val/loss", "val/csi_16/lead_5min", "val/mse/lead_60min"} <= set(result.metrics)
    found = evaluate({"persistence": Persistence(12)}, samples, split="test", thresholds=(16.0, 74.0))
    counts = found.counts["persistence"]
    assert len(counts) == 6
    assert set(counts.events) == {"R2", "R3"}
    event = np.moveaxis(codes(3, (16, 16, 49)), -1, 0)
    hits = np.sum((event[12] >= 74) & (event[13] >= 74))
    assert counts.hits[0, 0, 1] == hits


@pytest.mark.parametrize("name", ["icar-enso", "nbody"])
def test_trainings_on_other_datasets_run(tmp_path: Path, name: str) -> None:
    torch.set_num_threads(1)
    if name == "nbody":
        samples = DatasetSamples(tiny_nbody(tmp_path), SampleSpec(t_in=10, t_out=10))
    else:
        dataset = Enso(str(write_enso(tmp_path / "data")), models=(2, 4), years=(3, 2))
        samples = DatasetSamples(dataset, SampleSpec(t_in=12, t_out=14))
    preset = "earthformer/nbody" if name == "nbody" else "earthformer/enso"
    config = TrainConfig(
        domain="benchmark",
        preset=preset,
        batch_size=2,
        max_steps=2,
        loss="mse",
        thresholds=(0.5,),
        val_windows=4,
        precision="32-true",
        accelerator="cpu",
        progress_bar=False,
    )
    result = train(config, samples, tmp_path / "run", model=small(preset, samples))
    assert result.steps == 2
    assert np.isfinite(result.metrics["val/loss"])


def vil_frames(values: np.ndarray) -> xr.DataArray:
    axes = {"y": np.arange(values.shape[1]) * 1000.0, "x": np.arange(values.shape[2]) * 1000.0}
    return xr.DataArray(values, axes, ("time", "y", "x"), "vil", {"units": "kg m-2"})


def test_a_model_of_sevir_codes_serves_a_feed_of_vil() -> None:
    codes = np.array([[0, 16, 74], [133, 219, 254]], np.float32)
    vil = sevir_to_vil(codes)
    vil[0, 0] = 0.0
    frames = vil_frames(np.stack([vil] * 3))
    frames[:, 1, 2] = np.nan
    adapted = adapt(frames, Needs(3, quantity="vil_code"), 300.0)
    np.testing.assert_array_equal(adapted.values[0][:, :2], codes[:, :2])
    assert np.isnan(adapted.values[:, 1, 2]).all()
    back = restore(adapted.values[None], adapted, frames, Needs(3))
    np.testing.assert_allclose(back[0], frames.values, rtol=1e-6)
    beyond = restore(np.full((1, 1, 2, 3), 300.0, np.float32), adapted, frames, Needs(3))
    assert beyond.max() == sevir_to_vil(254)


def test_a_domain_may_name_every_dataset_and_only_with_its_place(settings: Settings) -> None:
    told = TrainingSettings.model_fields["dataset"].annotation
    names = {name for option in get_args(told) for name in get_args(option)}
    assert names == set(DATASETS)
    with pytest.raises(ValueError, match="dataset and dataset_url together"):
        TrainingSettings(dataset="sevir")
    domain: Domain = load_domain("storms", settings)
    assert domain.training.dataset_url == f"{settings.root}/sevir"
    assert domain.training.budget == timedelta(minutes=20)
