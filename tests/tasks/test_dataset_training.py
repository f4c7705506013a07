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

from builders.datasets import EVENTS, write_sevir
from infra.settings import Domain, Settings, TrainingSettings, load_domain
from models.forecaster import load_forecaster
from tasks import learning
from tasks.forecasting.adaptation import Needs, adapt, restore
from tasks.training.datasets import DATASETS
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
