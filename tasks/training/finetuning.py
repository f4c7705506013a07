"""Which model a training is for: a preset, or a trained model with other frames, another grid or other channels."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from models.checkpoint import load_config
from models.configuration import ForecasterConfig
from models.earthformer.presets import preset_config


class WindowSize(NamedTuple):
    """Context frames, lead times and cells (y, x) of a model's windows."""

    t_in: int
    t_out: int
    patch: tuple[int, int]


def parse_window(text: str) -> WindowSize:
    """`13:12:64x64` as context frames, lead times and cells (y, x).

    Raises:
        ValueError: another form.
    """
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*):([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise ValueError(f"expected a window such as 13:12:64x64 (frames in, frames out, cells); got {text!r}")
    t_in, t_out, rows, columns = map(int, match.groups())
    return WindowSize(t_in, t_out, (rows, columns))


def choose_model(
    preset: str | None, parent: Path | None, default: str, window: WindowSize | None = None
) -> ForecasterConfig:
    """The model to be trained, before it is completed by what its samples measure.

    Args:
        preset: What was asked for, `family/preset`.
        parent: Checkpoint a fine-tuning starts from: without `preset`, its architecture counts.
        default: The domain's preset, where neither is given.
        window: Other frames and cells than the model's own.

    Raises:
        ValueError: no such preset, another family, auxiliary inputs, or a size the architecture cannot have.
    """
    base = load_config(parent) if parent is not None and preset is None else preset_config(preset or default)
    if not isinstance(base, ForecasterConfig):
        raise ValueError(f"expected an Earthformer to start from; got a {base.family}, which is trained in its stages")
    if base.architecture.auxiliary_channels is not None:
        raise ValueError(f"expected a model without auxiliary inputs, which no archive holds; got {base.preset}")
    size = window or WindowSize(base.t_in, base.t_out, base.patch)
    if base.architecture.input_shape[-1] == 1 and window is None:
        return base
    return base.resized(t_in=size.t_in, t_out=size.t_out, patch=size.patch, channels=1)


def told_model(folder: Path) -> ForecasterConfig:
    """The model that the training in `folder` was told to train, for going on with it."""
    return ForecasterConfig.model_validate(json.loads((folder / "training.json").read_text())["model"])
