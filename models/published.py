"""Published checkpoints that become ours: what each holds, and what it is saved as.

The files themselves were published by the papers' authors; a training's own file of the same network does as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from models.checkpoint import CheckpointError, save_checkpoint
from models.component import ComponentConfig, save_component
from models.configuration import ForecasterConfig
from models.earthformer import published as earthformer
from models.earthformer.presets import preset_config
from models.prediff import presets as prediff_presets
from models.prediff import published as prediff
from models.weight_files import Shape, check_shapes, read_weight_file, strip_prefix

# What training programs put before the names of the network they train.
_WRAPPERS = ("", "torch_nn_module.", "module.", "model.", "network.", "torch_nn_module.module.")


@dataclass(frozen=True)
class PublishedModel:
    """One kind of published file.

    Attributes:
        file: Name it was published under.
        config: What it becomes: goes into config.json.
        prefixes: Names of the network inside a training's checkpoint, the likeliest first.
        inputs: Shape (-1 = any) of the network's input, batch first.
        outputs: The same of its output.
    """

    file: str
    config: ForecasterConfig | ComponentConfig
    prefixes: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Every published name with its shape, index buffers last."""
        if isinstance(self.config, ForecasterConfig):
            return earthformer.published_shapes(self.config.architecture)
        return prediff.published_shapes(self.config)

    @cached_property
    def index_buffers(self) -> dict[str, Tensor]:
        """The published index buffers, recomputed."""
        if isinstance(self.config, ForecasterConfig):
            return earthformer.index_buffers(self.config.architecture)
        return prediff.index_buffers(self.config)

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A published state under our names; its index buffers are verified and left out.

        Raises:
            ValueError: naming the first thing that is wrong.
        """
        if isinstance(self.config, ForecasterConfig):
            return earthformer.from_published(state, self.config.architecture)
        return prediff.from_published(state, self.config)

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> Path:
        """Write our checkpoint of `state` (our names) into `folder`.

        Raises:
            CheckpointError: weights that are not finite.
        """
        if isinstance(self.config, ForecasterConfig):
            return save_checkpoint(folder, self.config, state)
        return save_component(folder, self.config, state)


def _earthformer(preset: str, file: str) -> PublishedModel:
    config = preset_config(preset)
    inputs, outputs = config.architecture.input_shape, config.architecture.target_shape
    return PublishedModel(f"{file}.pt", config, _WRAPPERS, (-1, *inputs), (-1, *outputs))


def _autoencoder() -> PublishedModel:
    config = prediff_presets.preset("sevir-lr").architecture.autoencoder
    prefixes = (*_WRAPPERS, "first_stage_model.", "cond_stage_model.")
    frames = (-1, config.in_channels, -1, -1)
    return PublishedModel("pretrained_sevirlr_vae_8x8x64_v1.pt", config, prefixes, frames, frames)


def _denoiser() -> PublishedModel:
    config = prediff_presets.preset("sevir-lr").architecture.denoiser
    latent = (-1, *config.target_shape)
    return PublishedModel("pretrained_sevirlr_earthformerunet_v1.pt", config, _WRAPPERS, latent, latent)


def _alignment() -> PublishedModel:
    config = prediff_presets.preset("sevir-lr").architecture.alignment
    prefixes = (*_WRAPPERS, "alignment_model.")
    inputs = (-1, *config.input_shape)
    outputs = (-1, config.input_shape[0], config.out_channels)
    return PublishedModel("pretrained_sevirlr_alignment_avg_x_cuboid_v1.pt", config, prefixes, inputs, outputs)


_MODELS: dict[str, Callable[[], PublishedModel]] = {
    "earthformer-sevir": lambda: _earthformer("sevir", "earthformer_sevir"),
    "earthformer-enso": lambda: _earthformer("enso", "earthformer_icarenso2021"),
    "earthformer-earthnet": lambda: _earthformer("earthnet", "earthformer_earthnet2021"),
    "prediff-vae": _autoencoder,
    "prediff-denoiser": _denoiser,
    "prediff-alignment": _alignment,
}


def published_names() -> tuple[str, ...]:
    """Every kind of published file that can be imported."""
    return tuple(_MODELS)


def published_model(name: str) -> PublishedModel:
    """What the kind `name` is.

    Raises:
        ValueError: no such kind.
    """
    if name not in _MODELS:
        raise ValueError(f"expected one of {', '.join(_MODELS)}; got {name!r}")
    return _MODELS[name]()


def import_weights(model: PublishedModel, path: Path, folder: Path) -> Path:
    """Turn a published file into our checkpoint; nothing is written unless all of it is right.

    Args:
        model: What the file is expected to be.
        path: torch.save, Lightning or safetensors file; index buffers may be missing, half precision becomes float32.
        folder: Where config.json and model.safetensors go.

    Raises:
        CheckpointError: a damaged or foreign file; the first wrong name is told with both shapes.
        OSError: the file cannot be read.
    """
    found = read_weight_file(path)
    shapes, indices = model.shapes, model.index_buffers
    state = strip_prefix(found, shapes, model.prefixes)
    state = {**{key: index for key, index in indices.items() if key not in state}, **state}
    check_shapes(state, shapes, str(path))
    weights = {key: _as_weight(value, key, path) for key, value in state.items() if key not in indices}
    try:
        ours = model.convert({**weights, **{key: state[key] for key in indices}})
        return model.save(folder, ours)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _as_weight(value: Tensor, key: str, path: Path) -> Tensor:
    if not value.is_floating_point():
        raise CheckpointError(f"{path}: {key}: expected floating-point weights; got {value.dtype}")
    return value.float()
