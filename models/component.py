"""Checkpoints of networks that forecast only together: PreDiff's autoencoder, denoiser and alignment network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from models.checkpoint import CONFIG_FILE, CheckpointError, read_weights, write_files
from models.configuration import CONFIG_VERSION
from models.prediff.architecture import AlignmentConfig, AutoencoderConfig, DenoiserConfig
from models.prediff.published import build

ComponentConfig = AutoencoderConfig | DenoiserConfig | AlignmentConfig
_CONFIG: TypeAdapter[ComponentConfig] = TypeAdapter(Annotated[ComponentConfig, Field(discriminator="family")])


def save_component(folder: str | Path, config: ComponentConfig, state_dict: Mapping[str, Tensor]) -> Path:
    """Write config.json and model.safetensors into `folder` (created), each at once; returns the folder.

    Raises:
        CheckpointError: `state_dict` is not of the network `config` describes.
    """
    text = json.dumps({"version": CONFIG_VERSION, **config.model_dump(mode="json")}, indent=2)
    metadata = {"family": config.family, "version": str(CONFIG_VERSION)}
    return write_files(Path(folder), _skeleton(config), state_dict, text, metadata)


def load_component(folder: str | Path) -> tuple[ComponentConfig, nn.Module]:
    """The configuration and the network with its weights, on CPU in float32, in eval mode.

    Raises:
        CheckpointError: a file is missing, damaged, of another version, or its weights are not the described network's.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"expected {CONFIG_FILE} in {folder}; there is none")
    try:
        fields = json.loads(path.read_bytes())
        version = fields.pop("version", None)
        config = _CONFIG.validate_python(fields)
    except (AttributeError, ValueError) as error:  # not an object, not JSON, or not a known configuration
        raise CheckpointError(f"{path}: {error}") from error
    if version != CONFIG_VERSION:
        raise CheckpointError(f"{path}: expected config version {CONFIG_VERSION}; got {version}")
    return config, read_weights(_skeleton(config), Path(folder))


def _skeleton(config: ComponentConfig) -> nn.Module:
    """The network without storage: building it draws nothing from the random generators."""
    with torch.device("meta"):
        return build(config)
