"""A PreDiff challenger beside the ensembles it has to beat, on held-out wet windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.settings import Domain, Settings
from infra.tracking import ModelMissing, Tracking
from tasks.contenders import device_of, line_up, load_networks
from tasks.learning import Fitted, cut_samples
from tasks.rungs import RANK_TAG, find_champion, registered_name
from tasks.training.comparability import misfit
from tasks.training.data import TrainingData
from tasks.training.datasets import Sequences
from tasks.training.resumption import experiment_of
from tasks.training.sample_set import SampleSet
from tasks.verification.ensemble_promotion import EnsembleVerdict, decide_ensemble
from tasks.verification.promotion import Unavailable

if TYPE_CHECKING:
    from models.forecaster import Forecaster

JUDGED_WINDOWS, MEMBERS = 64, 8
_RIVALS = ("dressed", "steps", "extrapolation", "persistence")


def compare_ensemble_models(
    domain: Domain,
    settings: Settings,
    data: TrainingData | Sequences,
    fitted: Fitted,
    windows: int = JUDGED_WINDOWS,
    members: int = MEMBERS,
) -> EnsembleVerdict:
    """Judge the challenger beside the champion, an Earthformer dressed with its residuals, STEPS and both baselines.

    The Earthformer is the challenger's own anchor, else the domain's champion; without either it is left out.

    Args:
        domain: Its thresholds and registered models.
        settings: Tracking server, device, threads.
        data: Samples; the windows are those of the test split.
        fitted: The challenger.
        windows: Wet windows, at most.
        members: Of each ensemble.
    """
    import torch

    from models.forecaster import load_forecaster
    from tasks.training.ensemble_comparison import compare_ensembles
    from tasks.training.ensemble_log import log_comparison, log_pictures
    from tasks.training.ensemble_table import tabulate_ensembles

    torch.set_num_threads(settings.threads)
    samples = cut_samples(data, fitted.spec)
    challenger = load_forecaster(fitted.checkpoint, device_of(settings))
    networks: dict[str, Forecaster] = {"challenger": challenger}
    earthformer = _anchor_of(challenger) or _champion_earthformer(domain, settings, data, fitted)
    if earthformer is not None:
        networks["earthformer"] = earthformer
    rivals = [name for name in _RIVALS if name != "dressed" or earthformer is not None]
    forecasters = line_up(["challenger", *rivals], networks, samples)
    lost = _add_champion(forecasters, domain, settings, fitted, samples)
    chosen = samples.held_out("test", windows, wet=True)
    thresholds = domain.training.thresholds or domain.verification.thresholds
    comparison = compare_ensembles(forecasters, samples, chosen, thresholds=thresholds, members=members)
    against = {name: comparison.difference(name, "challenger") for name in forecasters if name != "challenger"}
    rows = tabulate_ensembles(comparison, "challenger")
    verdict = decide_ensemble(
        against, lost, crps={row.name: row.crps for row in rows}, windows=len(chosen), members=members
    )
    with Tracking(settings.tracking_uri).run(experiment_of(domain.name), "", run_id=fitted.run_id) as log:
        log_comparison(log, comparison, rows)
        log_pictures(log, forecasters, samples, chosen, threshold=thresholds[0], members=members, seed=0)
        log.table(verdict.as_dict(), "verdict.json")
        log.tags({"squall.promoted": str(verdict.promote).lower(), RANK_TAG: verdict.ladder_rank})
    return verdict


def _anchor_of(challenger: object) -> Forecaster | None:
    """The deterministic model inside the challenger, as a forecaster of its own."""
    from models.forecaster import NetworkForecaster
    from models.prediff.forecaster import PreDiffForecaster

    if not isinstance(challenger, PreDiffForecaster):
        return None
    inner, network = challenger.config.anchor_model, challenger.network.anchor
    return None if inner is None or network is None else NetworkForecaster(inner, network, device=challenger.device)


def _champion_earthformer(
    domain: Domain, settings: Settings, data: TrainingData | Sequences, fitted: Fitted
) -> Forecaster | None:
    """The domain's best deterministic model, where there is one for these windows."""
    from models.forecaster import NetworkForecaster

    try:
        found = load_networks(["earthformer"], domain, settings, data.info)["earthformer"]
    except (ModelMissing, ValueError):
        return None
    fits = found.t_in <= fitted.spec.t_in and found.t_out >= fitted.spec.t_out
    return found if fits and isinstance(found, NetworkForecaster) else None


def _add_champion(
    forecasters: dict[str, Forecaster], domain: Domain, settings: Settings, fitted: Fitted, samples: SampleSet
) -> Unavailable | None:
    """Put the reigning PreDiff among `forecasters`; why it cannot be compared, where it cannot."""
    from models.forecaster import load_forecaster

    name = registered_name(domain, "prediff")
    try:
        champion = find_champion(name, "champion", settings)
    except ModelMissing:
        return None
    if champion.version == str(fitted.version):
        return None
    told = f"{name} {champion.version}"
    try:
        forecaster = load_forecaster(champion.folder, device_of(settings))
    except (ValueError, OSError, LookupError) as error:
        return Unavailable(told, f"{type(error).__name__}: {error}")
    if (reason := misfit(forecaster, samples)) is not None:
        return Unavailable(told, reason)
    forecasters["champion"] = forecaster
    return None
