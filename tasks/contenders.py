"""Who takes part in a comparison: registered models, baselines, dressed models and sampler variants, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from infra.settings import Domain, Settings
from tasks.rungs import find_named
from tasks.training.data import TrainingDataInfo
from tasks.training.sample_set import SampleInfo, SampleSet
from tasks.training.samples import SampleSpec

if TYPE_CHECKING:
    from models.forecaster import Forecaster
    from tasks.training.sampling_steps import SamplerSetting

BASELINES = ("steps", "extrapolation", "persistence")
DRESSED = "dressed"
_SAME_CELLS = 0.05
# Echo above "no echo" [dB] from which STEPS takes it for rain. Weak echo is scored too: from the usual 7 dBZ on, STEPS
# loses it (CRPS 9 % worse on eight windows of TAASRAD19).
_WEAKEST = 1.0


def load_networks(names: Sequence[str], domain: Domain, settings: Settings, info: SampleInfo) -> dict[str, Forecaster]:
    """Every registered model that is needed, by the name it was asked for."""
    from models.forecaster import load_forecaster

    networks: dict[str, Forecaster] = {}
    for name in {_undressed(name) for name in names} - set(BASELINES):
        champion = find_named(name, domain, settings)
        _require_fit(champion.folder, f"{champion.name} {champion.version}", info)
        networks[name] = load_forecaster(champion.folder, device_of(settings))
    return networks


def device_of(settings: Settings) -> str:
    """Torch device of the settings; of `auto`, the GPU where there is one."""
    import torch

    return settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _undressed(name: str) -> str:
    """What a `dressed` name dresses; any other name as it is."""
    head, _, inner = name.partition(":")
    return (inner or "earthformer") if head == DRESSED else name


def _require_fit(folder: str, name: str, info: SampleInfo) -> None:
    """Hold a model to the cells, cadence and quantity of the data.

    Raises:
        ValueError: it was trained on others.
    """
    config = json.loads((Path(folder) / "config.json").read_text())
    cells = abs(float(config.get("cell_size_m", info.cell_size_m)) / info.cell_size_m - 1) <= _SAME_CELLS
    cadence = float(config.get("cadence_s", info.cadence_s)) == float(info.cadence_s)
    if not cells or not cadence or config.get("quantity", info.quantity) != info.quantity:
        ours = f"{info.quantity} on {info.cell_size_m:.0f} m every {info.cadence_s} s"
        raise ValueError(f"expected a model of {ours}; {name} was trained on other data")


def window_spec(domain: Domain, info: SampleInfo, networks: Mapping[str, Forecaster]) -> SampleSpec:
    """Windows long enough for every context, with the leads that all networks have, split as the domain says."""
    rule = domain.training
    t_out = min((one.t_out for one in networks.values()), default=domain.forecast.lead_times)
    patches = [_patch(one) for one in networks.values()]
    side = min((patch[0] for patch in patches if patch is not None), default=min(info.shape))
    return SampleSpec(
        t_in=max((one.t_in for one in networks.values()), default=domain.context.frames),
        t_out=t_out,
        crop=None if info.shape == (side, side) or side > min(info.shape) else side,
        fractions=rule.split,
        guard=rule.guard,
        event_limit=rule.event_limit,
    )


def _patch(forecaster: Forecaster) -> tuple[int, int] | None:
    """Grid that a network was trained on; None where it does not say."""
    patch: tuple[int, int] | None = getattr(getattr(forecaster, "config", None), "patch", None)
    return patch


def line_up(names: Sequence[str], networks: Mapping[str, Forecaster], samples: SampleSet) -> dict[str, Forecaster]:
    """Every asked-for forecaster by its name, in the order asked for."""
    from models.baselines.extrapolation import Extrapolation
    from models.baselines.persistence import Persistence
    from models.baselines.steps import Steps
    from tasks.training.dressing import dress

    info, leads = samples.info, samples.t_out
    no_echo = info.no_echo if isinstance(info, TrainingDataInfo) else None
    grid = info.quantity, info.cell_size_m, float(info.cadence_s)
    found: dict[str, Forecaster] = {}
    for name in names:
        if name == "steps":
            found[name] = Steps(*grid, _WEAKEST + no_echo if no_echo is not None else None, no_echo, t_out=leads)
        elif name == "extrapolation":
            found[name] = Extrapolation(*grid, t_out=leads)
        elif name == "persistence":
            found[name] = Persistence(t_out=leads)
        elif _undressed(name) != name:
            found[name] = dress(networks[_undressed(name)], samples)
        else:
            found[name] = networks[name]
    return found


def sampling_variants(
    forecasters: Mapping[str, Forecaster], texts: Sequence[str], *, calibrated: bool = True
) -> dict[str, tuple[Forecaster, SamplerSetting]]:
    """The models that sample at every asked-for setting (`20`, `ddim:50`), by name, calibrated or as they are drawn.

    Raises:
        ValueError: settings are asked for and no model samples, or one of them cannot be read.
    """
    from tasks.training.sampling_steps import as_drawn, parse_setting, sampler_variants

    settings = [parse_setting(text) for text in texts]
    sampling = {name: one for name, one in forecasters.items() if hasattr(one, "steps")}
    if settings and not sampling:
        raise ValueError(f"expected a model with sampler steps among {', '.join(forecasters)}; got none")
    found: dict[str, tuple[Forecaster, SamplerSetting]] = {}
    for name, forecaster in sampling.items():
        found |= sampler_variants(name, forecaster if calibrated else as_drawn(forecaster), settings)
    return found
