"""A meadow whose champions are a PreDiff and an Earthformer of random weights, and moving rain above it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builders.ensembles import write_prediff
from builders.networks import small_config
from builders.nowcasts import moving_rain, newest_context, small_domain, write_archive
from infra.settings import Domain, Settings
from infra.tracking import TensorSignature, Tracking
from models.checkpoint import save_checkpoint
from models.configuration import build_network
from tasks.forecasting.context import Context

SIGNATURE = TensorSignature((-1, 4, -1, -1), (-1, -1, 3, -1, -1))


@pytest.fixture(scope="session")
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
