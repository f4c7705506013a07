"""Which rungs a domain's ladder has today: registered models by alias, and the baselines below them.

The tracking server is asked who is champion, but a nowcast does not depend on it: the answer is kept beside the
downloaded weights, and while the server is away the last one counts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from infra.objects import ObjectStore
from infra.settings import Domain, Settings
from infra.tracking import CHAMPION, ModelMissing, Tracking, TrackingUnavailable
from tasks.forecasting.adaptation import Needs, first_cell
from tasks.forecasting.context import Context
from tasks.forecasting.ensemble import EnsembleCost, Ensembles
from tasks.forecasting.ladder import ModelIdentity, Rung, baseline_rung
from tasks.products.publishing import read_latest, series
from tasks.products.report import Report, read_report

if TYPE_CHECKING:
    from models.forecaster import Forecaster

BASELINES = ("extrapolation", "persistence")
TRAINED = ("earthformer", "prediff")  # families of registered models
RANK_TAG = "squall.ladder_rank"


@dataclass(frozen=True)
class Champion:
    """A registered version as last answered by the tracking server.

    Attributes:
        name: Registered name.
        version: Its number.
        run_id: The training run.
        rank: `below` when the gate found it below extrapolation, else `above`.
        folder: Its checkpoint on this machine.
    """

    name: str
    version: str
    run_id: str | None
    rank: str
    folder: str


@dataclass(frozen=True)
class _Measured:
    """What the newest product of a series tells about the time that its own model takes."""

    report: Report | None

    def seconds(self, name: str, version: str) -> float | None:
        """Of a model that gives one member; None where that product is not its own."""
        report = self._of(name, version)
        if report is None:
            return None
        return report.seconds.get("forecast.load", 0.0) + report.seconds.get("forecast.forecast", 0.0)

    def cost(self, name: str, version: str) -> EnsembleCost | None:
        """Of an ensemble; None where that product is not its own."""
        report = self._of(name, version)
        return report.ensemble.cost if report and report.ensemble else None

    def _of(self, name: str, version: str) -> Report | None:
        report = self.report
        return report if report and (report.model.name, report.model.version) == (name, version) else None


def choose_rungs(
    domain: Domain, settings: Settings, context: Context, model: str | None = None, intensity: float | None = None
) -> list[Rung]:
    """The domain's ladder, best first.

    A champion that the promotion gate found below extrapolation stands below it. An asked-for model comes first, and
    the baselines stay below it: an answer is worth more than none, and the product says which rung it is.

    Args:
        domain: Its ladder and registered model.
        settings: Tracking server, device, state folder.
        context: For the baselines, and the place of the grid.
        model: `NAME@ALIAS`, `NAME/VERSION`, or a rung's name; None takes the ladder as it is.
        intensity: Of a what-if, whose times are those of earlier ones; None: a forecast.
    """
    expected = _measured(domain, settings, intensity)
    names = [model, *(name for name in BASELINES if name != model)] if model else list(domain.forecast.ladder)
    rungs = [_rung(name, domain, settings, context, expected) for name in names]
    if model is None:
        rungs.sort(key=lambda pair: pair[1])
    return [rung for rung, _ in rungs]


def _rung(name: str, domain: Domain, settings: Settings, context: Context, measured: _Measured) -> tuple[Rung, float]:
    """A rung and its place: models 0 (1.5 below extrapolation), extrapolation 1, persistence 2."""
    if name in BASELINES:
        return baseline_rung(name, context, domain, measured.seconds(name, "1")), 1.0 + BASELINES.index(name)
    try:
        champion = find_named(name, domain, settings)
        needs = _needs(champion)
        rung = Rung(
            name=str(_config(champion)["family"]),
            load=lambda: _load(champion, settings, context, needs),
            model=ModelIdentity(champion.name, champion.version, champion.run_id),
            needs=needs,
            expected_s=measured.seconds(champion.name, champion.version),
            ensembles=_ensembles(champion, domain, measured.cost(champion.name, champion.version)),
        )
    except (ModelMissing, TrackingUnavailable, ValueError, KeyError, OSError) as error:
        return _missing(name, registered_name(domain, name), error), 0.0
    return rung, 1.5 if champion.rank == "below" else 0.0


def registered_name(domain: Domain, family: str) -> str:
    """Name under which a domain's own models of a family are registered."""
    return f"{domain.name}-{family}"


def parse_reference(text: str) -> tuple[str, str] | None:
    """`NAME@ALIAS` or `NAME/VERSION` as (name, alias or version); None for anything else."""
    for mark in ("@", "/"):
        name, found, which = text.partition(mark)
        if found:
            return name, which
    return None


def find_named(name: str, domain: Domain, settings: Settings) -> Champion:
    """The version behind `NAME@ALIAS`, `NAME/VERSION`, or a rung's name.

    A rung is the champion of the domain's own models; until there is one, that of `[forecast] model`, if it is of the
    rung's family.

    Raises:
        ModelMissing: the server answers that there is none.
        TrackingUnavailable: the server is away, and nothing is known of it from before.
    """
    reference = parse_reference(name)
    if reference is not None:
        return find_champion(*reference, settings)
    own = registered_name(domain, name)
    if domain.forecast.model is None or domain.forecast.model == own:
        return find_champion(own, CHAMPION, settings)
    try:
        return find_champion(own, CHAMPION, settings)
    except (ModelMissing, TrackingUnavailable):  # away: what is remembered of the borrowed one may still do
        borrowed = _borrowed(domain.forecast.model, name, settings)
        if borrowed is None:
            raise
        return borrowed


def _borrowed(model: str, family: str, settings: Settings) -> Champion | None:
    """The champion of another domain's `model`; None where it is of another family.

    A name that ends in a family tells it without a download; of any other name its checkpoint does.
    """
    told = next((known for known in TRAINED if model.endswith(f"-{known}")), None)
    if told not in (None, family):
        return None
    champion = find_champion(model, CHAMPION, settings)
    return champion if told or _config(champion)["family"] == family else None


def find_champion(name: str, which: str, settings: Settings) -> Champion:
    """A registered version with its weights on this machine; the last known one while the server is away.

    Raises:
        ModelMissing: the server answers that there is none.
        TrackingUnavailable: the server is away, and nothing is known of it from before.
    """
    memory = _memory(name, which, settings)
    try:
        tracking = Tracking(settings.tracking_uri)
        version = tracking.version(name, which)
        weights = tracking.download(name, version.version, settings.root / "models")
    except TrackingUnavailable:
        if memory.exists():
            return Champion(**json.loads(memory.read_text()))
        raise
    rank = version.tags.get(RANK_TAG, "above")
    champion = Champion(name, str(version.version), version.run_id, rank, str(weights))
    partial = memory.with_name(f"{memory.name}.{uuid4().hex}.part")
    partial.write_text(json.dumps(asdict(champion)))
    partial.replace(memory)
    return champion


def _memory(name: str, which: str, settings: Settings) -> Path:
    """Where the last answer is kept: one per tracking server, by a digest of its address (it may hold a password)."""
    server = hashlib.sha256(settings.tracking_uri.encode()).hexdigest()[:12]
    return settings.root / "models" / name / f"{which}-{server}.json"


def _load(champion: Champion, settings: Settings, context: Context, needs: Needs) -> Forecaster:
    import torch

    from models.forecaster import load_forecaster
    from models.prediff.forecaster import PreDiffForecaster

    torch.set_num_threads(settings.threads)
    device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    forecaster = load_forecaster(champion.folder, device)
    if not isinstance(forecaster, PreDiffForecaster):
        return forecaster
    downscale = forecaster.config.architecture.autoencoder.downscale
    row, column = first_cell(context.frames, needs)
    fast = True if forecaster.device.type == "cuda" else None  # on a CPU as configured: few have bfloat16 arithmetic
    return replace(forecaster, origin=(row // downscale, column // downscale), bf16=fast)


def _config(champion: Champion) -> dict[str, object]:
    config: dict[str, object] = json.loads((Path(champion.folder) / "config.json").read_text())
    return config


def _needs(champion: Champion) -> Needs:
    config = _config(champion)
    no_echo = config.get("no_echo")
    return Needs(
        t_in=int(str(config["t_in"])),
        quantity=str(config["quantity"]),
        cell_size_m=float(str(config["cell_size_m"])),
        cadence_s=float(str(config["cadence_s"])),
        no_echo=None if no_echo is None else float(str(no_echo)),
    )


def _ensembles(champion: Champion, domain: Domain, cost: EnsembleCost | None) -> Ensembles | None:
    sampler = _config(champion).get("sampler")
    if not isinstance(sampler, dict):
        return None
    return Ensembles(
        steps=int(sampler["steps"]),
        sampler=str(sampler["method"]),
        least_steps=domain.forecast.least_steps,
        least_members=domain.forecast.least_members,
        cost=cost,
    )


def _missing(name: str, registered: str, error: Exception) -> Rung:
    def load() -> Forecaster:
        raise error

    return Rung(name, load, ModelIdentity(registered, "none"), Needs(1))


def _measured(domain: Domain, settings: Settings, intensity: float | None) -> _Measured:
    store = ObjectStore(domain.product.url, settings.storage_options(domain.product.url))
    try:
        latest = read_latest(store, series(domain.name, intensity))
        return _Measured(read_report(store, latest.path) if latest else None)
    except (ValueError, OSError):  # neither a damaged product nor a store that is away keeps the next from coming
        return _Measured(None)
