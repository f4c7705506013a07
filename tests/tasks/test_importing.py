"""A published file becomes a registered version, or the registry never hears of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from builders.networks import published_state
from infra.tracking import CHAMPION, Tracking
from models.checkpoint import CheckpointError, load_checkpoint
from models.forecaster import load_forecaster
from models.published import published_model
from tasks.training.importing import EXPERIMENT, import_published

KIND = "earthformer-enso"


@pytest.fixture
def registry(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.slow
def test_an_imported_model_waits_as_challenger_and_says_where_it_comes_from(tmp_path: Path, registry: str) -> None:
    path = tmp_path / "earthformer_icarenso2021.pt"
    torch.save(published_state(published_model(KIND)), path)
    version = import_published(KIND, path, registry)
    assert (version.name, version.version, version.aliases) == (KIND, 1, ("challenger",))
    assert version.tags["squall.published_model"] == KIND
    assert version.tags["squall.source_file"] == path.name
    assert version.tags["squall.source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    tracking = Tracking(registry)
    assert tracking.find(KIND, CHAMPION) is None
    folder = tracking.download(KIND, "challenger", tmp_path / "models")
    config, network = load_checkpoint(folder)
    assert config.preset == "earthformer/enso"
    state = published_state(published_model(KIND))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert load_forecaster(folder).t_out == 14
    again = import_published(KIND, path, registry, name="pacific-earthformer")
    assert (again.name, again.version) == ("pacific-earthformer", 1)


def test_a_file_that_is_refused_leaves_no_model_and_no_run(tmp_path: Path, registry: str) -> None:
    path = tmp_path / "other.pt"
    torch.save({"layer.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"initial_encoder\.conv_block\.0\.weight: expected \(64, 1, 3, 3\)"):
        import_published(KIND, path, registry)
    tracking = Tracking(registry)
    assert tracking.models() == []
    assert tracking.find_run(EXPERIMENT, KIND) is None


@pytest.mark.parametrize("name", ["a/b", "-x", "a b", "x:1"])
def test_a_name_the_registry_cannot_keep_is_refused_first(name: str, tmp_path: Path, registry: str) -> None:
    with pytest.raises(ValueError, match="expected a name of letters"):
        import_published(KIND, tmp_path / "absent.pt", registry, name=name)
