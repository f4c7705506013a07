"""Self-describing checkpoints: `config.json` and `model.safetensors` in one folder; nothing is ever pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.configuration import ForecasterConfig, build_network
from models.prediff.configuration import PreDiffConfig
from models.prediff.network import PreDiffNetwork

AnyForecasterConfig = ForecasterConfig | PreDiffConfig
_CONFIG: TypeAdapter[AnyForecasterConfig] = TypeAdapter(Annotated[AnyForecasterConfig, Field(discriminator="family")])

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
# Published Earthformer weights carry this integer buffer; it is recomputed from the geometry.
_REGENERATED = "relative_position_index"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why."""


def save_checkpoint(folder: str | Path, config: AnyForecasterConfig, state_dict: Mapping[str, Tensor]) -> Path:
    """Write both files into `folder` (created), each at once; returns the folder.

    Raises:
        CheckpointError: `state_dict` is not of the network `config` describes.
    """
    metadata = {"preset": config.preset, "version": str(config.version)}
    return write_files(Path(folder), _skeleton(config), state_dict, config.model_dump_json(indent=2), metadata)


def load_checkpoint(folder: str | Path) -> tuple[ForecasterConfig, nn.Module]:
    """The configuration and the network with its weights, on CPU in float32, in eval mode.

    Raises:
        CheckpointError: a file is missing, damaged, of another version, or its weights are not the described network's.
    """
    config, network = load_any(folder)
    if not isinstance(config, ForecasterConfig):
        raise CheckpointError(f"expected a checkpoint of one network in {folder}; got one of family {config.family}")
    return config, network


def load_any(folder: str | Path) -> tuple[AnyForecasterConfig, nn.Module]:
    """As `load_checkpoint`, of any family."""
    config = load_config(folder)
    return config, read_weights(_skeleton(config), Path(folder))


def write_files(
    folder: Path, network: nn.Module, state: Mapping[str, Tensor], config: str, metadata: Mapping[str, str]
) -> Path:
    """Write weights of `network` and the JSON text of its configuration into `folder` (created), each at once.

    The same weights give the same bytes.

    Raises:
        CheckpointError: `state` is not of `network`.
    """
    check_state(network, state, f"state for {folder}")
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".{WEIGHTS_FILE}.{os.getpid()}"
    # One entry: of several safetensors writes the order at random, and equal weights would be unequal files.
    save_file(weights, staged, metadata={"squall": json.dumps(dict(metadata), sort_keys=True)})
    staged.replace(folder / WEIGHTS_FILE)
    staged = folder / f".{CONFIG_FILE}.{os.getpid()}"
    staged.write_text(config + "\n")
    staged.replace(folder / CONFIG_FILE)
    return folder


def read_weights(network: nn.Module, folder: Path) -> nn.Module:
    """`network` with the weights in `folder`, on CPU in float32, in eval mode.

    Raises:
        CheckpointError: the file is missing or damaged, or its weights are not of `network`.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(f"expected {WEIGHTS_FILE} in {folder}; there is none")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    weights = {key: value.float() for key, value in weights.items() if not key.endswith(_REGENERATED)}
    check_state(network, weights, str(path))
    network.load_state_dict(weights, assign=True)
    return network.eval()


def load_config(folder: str | Path) -> AnyForecasterConfig:
    """The configuration of the checkpoint in `folder`.

    Raises:
        CheckpointError: missing, not JSON, of another version, or inconsistent.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"expected {CONFIG_FILE} in {folder}; there is none")
    try:
        return _CONFIG.validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path}: {error}") from error


def check_state(network: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Compare names, shapes and finiteness with `network`.

    Raises:
        CheckpointError: naming the first wrong key and both shapes.
    """
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    for key in [*expected, *(key for key in state if key not in expected)]:
        wanted = expected.get(key, "no such key")
        got = tuple(state[key].shape) if key in state else "no such key"
        if wanted != got:
            raise CheckpointError(f"{where}: {key}: expected {wanted}; got {got}")
        if not bool(torch.isfinite(state[key]).all()):
            raise CheckpointError(f"{where}: {key}: expected finite weights; got NaN or infinity")


def _skeleton(config: AnyForecasterConfig) -> nn.Module:
    """The network without storage: building it draws nothing from the random generators."""
    with torch.device("meta"):
        return PreDiffNetwork(config) if isinstance(config, PreDiffConfig) else build_network(config)
