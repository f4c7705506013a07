"""Registered components that a PreDiff training takes as they are instead of training them itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.settings import Settings
from tasks.rungs import find_champion, parse_reference
from tasks.training.sample_set import SampleInfo
from tasks.training.stages.stage import StageResult

if TYPE_CHECKING:
    from torch import Tensor

    from models.prediff.presets import PreDiffPreset

COMPONENTS = ("autoencoder", "denoiser", "alignment")
_FOLDER = "imported"
_SAME_CELLS = 0.05


@dataclass(frozen=True)
class Component:
    """One of PreDiff's networks from the registry.

    Attributes:
        stage: The stage it stands for.
        name: Registered name and version.
        weights: Its state.
    """

    stage: str
    name: str
    weights: Mapping[str, Tensor]


def find_components(preset: str, asked: Mapping[str, str], info: SampleInfo, settings: Settings) -> list[Component]:
    """The components behind `asked` (stage: `NAME@ALIAS` or `NAME/VERSION`), read whole and held to the preset.

    Raises:
        ValueError: no such component, other networks than the preset's, other data than it is meant for, or a denoiser
            or alignment network without the autoencoder whose latents it knows.
        ModelMissing: not registered.
    """
    from models.prediff.presets import preset as find_preset

    if not asked:
        return []
    if unknown := sorted(set(asked) - set(COMPONENTS)):
        raise ValueError(f"expected components of {', '.join(COMPONENTS)}; got {', '.join(unknown)}")
    if "autoencoder" not in asked:
        raise ValueError(f"expected the autoencoder whose latents it knows with {', '.join(asked)}; got none")
    found = find_preset(preset)
    _require_meant_for(preset, found, info)
    return [_read(stage, reference, found, settings) for stage, reference in asked.items()]


def _require_meant_for(name: str, preset: PreDiffPreset, info: SampleInfo) -> None:
    if preset.anchor != "none":
        raise ValueError(f"expected a preset without an anchor, which no imported network has seen; got {name}")
    cells = abs(preset.cell_size_m / info.cell_size_m - 1) <= _SAME_CELLS
    if not cells or preset.cadence_s != info.cadence_s or preset.quantity != info.quantity:
        meant = f"{preset.quantity} on {preset.cell_size_m:.0f} m every {preset.cadence_s} s"
        got = f"{info.quantity} on {info.cell_size_m:.0f} m every {info.cadence_s} s"
        raise ValueError(f"expected data that {name} is meant for, {meant}; got {got}")


def _read(stage: str, reference: str, preset: PreDiffPreset, settings: Settings) -> Component:
    from models.component import load_component

    parsed = parse_reference(reference)
    if parsed is None:
        raise ValueError(f"expected NAME@ALIAS or NAME/VERSION of a registered {stage}; got {reference!r}")
    version = find_champion(*parsed, settings)
    config, network = load_component(version.folder)
    name = f"{version.name} {version.version}"
    wanted, got = getattr(preset.architecture, stage).model_dump(), config.model_dump()
    for key in [*wanted, *got]:
        if wanted.get(key) != got.get(key):
            raise ValueError(f"{name} as {stage}: expected {key} {wanted.get(key)!r}; got {got.get(key)!r}")
    return Component(stage, name, network.state_dict())


def keep_components(folder: Path, components: Sequence[Component]) -> None:
    """Put them beside the stages of a training, so that going on needs the training's folder alone."""
    from safetensors.torch import save_file

    for component in components:
        path = imported_weights(folder, component.stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        save_file({key: value.contiguous() for key, value in component.weights.items()}, partial)
        partial.replace(path)


def imported_weights(folder: Path, stage: str) -> Path:
    """Where a training keeps the component that stands for a stage."""
    return folder / _FOLDER / f"{stage}.safetensors"


def imported_result(folder: Path, stage: str) -> StageResult:
    """What a stage comes to that was not trained here; NaN: nothing validated it."""
    return StageResult(stage, imported_weights(folder, stage), steps=0, seconds=0.0, metrics={}, best=float("nan"))
