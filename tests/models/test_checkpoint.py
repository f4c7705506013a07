"""Checkpoints describe themselves; damaged or foreign ones are refused with the first thing that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from builders.networks import batch_of, flow_anchored_config, rain_context, small_architecture, small_config
from models.checkpoint import WEIGHTS_FILE
from models.configuration import ForecasterConfig, build_network
from models.forecaster import CheckpointError, load_checkpoint, load_forecaster, save_checkpoint


def saved(folder: Path, config: ForecasterConfig | None = None) -> Path:
    config = config or small_config()
    torch.manual_seed(0)
    return save_checkpoint(folder, config, build_network(config).state_dict())


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("anchor", ["none", "persistence"])
def test_a_saved_network_comes_back_bit_equal(tmp_path: Path, anchor: str) -> None:
    config = small_config(anchor=anchor)
    network = build_network(config).eval()
    save_checkpoint(tmp_path / "model", config, network.state_dict())
    loaded_config, loaded = load_checkpoint(tmp_path / "model")
    assert loaded_config == config
    x = batch_of(config.architecture)
    assert torch.equal(loaded(x), network(x))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    config = small_config()
    weights = build_network(config).state_dict()
    files = {(save_checkpoint(tmp_path / str(n), config, weights) / WEIGHTS_FILE).read_bytes() for n in range(8)}
    assert len(files) == 1


def test_loading_draws_nothing_from_the_random_generators(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_checkpoint(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_loaded_weights_can_be_trained_on(tmp_path: Path) -> None:
    config, network = load_checkpoint(saved(tmp_path))
    network.train()(batch_of(config.architecture)).square().mean().backward()
    assert any(parameter.grad is not None for parameter in network.parameters())


def test_published_position_indices_are_ignored(tmp_path: Path) -> None:
    weights = load_file(saved(tmp_path) / "model.safetensors")
    weights["encoder.blocks.0.0.attn_l.0.relative_position_index"] = torch.zeros(3, 3, dtype=torch.int64)
    save_file(weights, tmp_path / "model.safetensors")
    load_checkpoint(tmp_path)


def test_the_first_wrong_weight_is_named_with_both_shapes(tmp_path: Path) -> None:
    weights = load_file(saved(tmp_path) / "model.safetensors")
    weights["z_proj.weight"] = torch.zeros(3, 4)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"z_proj.weight: expected \(32, 32\); got \(3, 4\)"):
        load_checkpoint(tmp_path)


def test_a_missing_and_a_foreign_weight_are_named(tmp_path: Path) -> None:
    weights = load_file(saved(tmp_path) / "model.safetensors")
    foreign = weights | {"classifier.weight": torch.zeros(2)}
    save_file(foreign, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"classifier\.weight: expected no such key"):
        load_checkpoint(tmp_path)
    weights.pop("init_global_vectors")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"init_global_vectors: expected \(2, 16\); got no such key"):
        load_checkpoint(tmp_path)


def test_weights_without_the_anchor_do_not_fit_an_anchored_forecaster(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, anchor="persistence")
    with pytest.raises(CheckpointError, match=r"network\.init_global_vectors"):
        load_checkpoint(tmp_path)


def test_weights_that_are_not_finite_are_refused_on_both_ways(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["z_proj.bias"][3] = torch.nan
    with pytest.raises(CheckpointError, match=r"z_proj\.bias: expected finite weights"):
        save_checkpoint(tmp_path / "other", small_config(), weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"z_proj\.bias: expected finite weights"):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 7, 5000])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = saved(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(tmp_path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path) / "model.safetensors"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected config\.json"):
        load_checkpoint(tmp_path)
    (saved(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors"):
        load_checkpoint(tmp_path)


def test_a_configuration_of_another_version_or_content_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, version=99)
    with pytest.raises(CheckpointError, match="expected config version 1; got 99"):
        load_checkpoint(tmp_path)
    edit(tmp_path, version=1, colour="blue")
    with pytest.raises(CheckpointError, match="colour"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(CheckpointError, match="Invalid JSON"):
        load_checkpoint(tmp_path)


def test_a_configuration_must_agree_with_its_architecture() -> None:
    with pytest.raises(ValidationError, match="as the architecture's"):
        small_config(t_out=4)
    with pytest.raises(ValidationError, match="expected a transform of vil"):
        small_config(quantity="vil")
    channels = small_architecture(input_shape=(3, 16, 16, 2))
    with pytest.raises(ValidationError, match="as many channels"):
        small_config(architecture=channels, anchor="persistence")


def test_a_model_can_be_sized_for_another_grid() -> None:
    anchored = flow_anchored_config().resized(t_in=4, t_out=2, patch=(24, 32))
    assert (anchored.t_in, anchored.frames_in) == (4, 6)
    config = small_config().resized(t_in=4, t_out=2, patch=(24, 32))
    assert (config.t_in, config.t_out, config.patch) == (4, 2, (24, 32))
    assert build_network(config)(batch_of(config.architecture)).shape == (2, 2, 24, 32, 1)


def test_a_forecaster_comes_from_its_folder_alone(tmp_path: Path) -> None:
    folder = saved(tmp_path, small_config(anchor="persistence"))
    context = rain_context(3, (16, 16))
    np.testing.assert_allclose(load_forecaster(folder).forecast(context, 2)[0, 0], context[-1], rtol=1e-4)
