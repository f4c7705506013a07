"""Ensembles side by side: the same held-out windows, the same number of members, the same cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from models.forecaster import Forecaster
from models.transform import Transform
from tasks.training.sample_set import SampleSet
from tasks.training.samples import Window
from tasks.verification.ensemble_frechet import FeatureMoments, feature_moments, frechet_distance
from tasks.verification.ensemble_pooling import PooledCounts, pooled_counts
from tasks.verification.ensemble_reliability import Reliability, reliability
from tasks.verification.ensemble_scores import EnsembleSums, ensemble_sums
from tasks.verification.ensemble_spectrum import Spectra, spectra
from tasks.verification.resampling import Interval, blocks_of, paired_mean_difference
from tasks.verification.scores import Counts, Sums

Fields = NDArray[np.float32]
ClipFeatures = Callable[[Fields], NDArray[np.float64]]
"""Clips (clip, lead, y, x) scaled to 0..1 without NaN -> features (clip, feature)."""


@dataclass(frozen=True)
class EnsembleEvidence:
    """Everything summed about one forecaster; all but the spectra over the cells that every forecaster knows.

    Attributes:
        sums: CRPS, spread, ranks and intensity.
        reliability: Forecast probabilities and what happened.
        pooled: CSI of block maxima.
        spectra: Power, over the forecaster's own cells (a hole cut for another one's sake would be a shape in it).
        crps: Sum of the fair CRPS of each window and lead, float64 (window, lead).
        seconds: What each window's ensemble took.
        moments: Of the features of its members' clips; None without a feature network.
    """

    sums: EnsembleSums
    reliability: Reliability
    pooled: PooledCounts
    spectra: Spectra
    crps: Sums
    seconds: tuple[float, ...]
    moments: FeatureMoments | None = None

    def __add__(self, other: EnsembleEvidence) -> EnsembleEvidence:
        both = self.moments is not None and other.moments is not None
        return EnsembleEvidence(
            self.sums + other.sums,
            self.reliability + other.reliability,
            self.pooled + other.pooled,
            self.spectra + other.spectra,
            np.concatenate([self.crps, other.crps]),
            self.seconds + other.seconds,
            self.moments + other.moments if both else None,  # type: ignore[operator]
        )


@dataclass(frozen=True)
class EnsembleComparison:
    """Several ensembles on the same windows.

    Attributes:
        evidence: By forecaster.
        members: Of each ensemble.
        seed: Of the comparison; every window has its own, made from it.
        quantity: CF-style name.
        lead_minutes: Minutes from init time to each lead.
        cell_size_m: Side of a cell [m].
        cells: Cells judged per window and lead, int64 (window, lead).
        observed: Cells observed, judged or not, same dims.
        init_times: datetime64[ns] UTC (window,).
        events: Event that each window was cut from.
        observed_moments: Features of the observed clips; None without a feature network.
    """

    evidence: Mapping[str, EnsembleEvidence]
    members: int
    seed: int
    quantity: str
    lead_minutes: tuple[float, ...]
    cell_size_m: float
    cells: Counts
    observed: Counts
    init_times: NDArray[np.datetime64]
    events: NDArray[np.str_]
    observed_moments: FeatureMoments | None = None

    def __len__(self) -> int:
        return len(self.init_times)

    @property
    def judged_share(self) -> float:
        """Share of the observed cells that every forecaster had a value for, and that were judged."""
        return float(self.cells.sum() / max(int(self.observed.sum()), 1))

    def difference(self, one: str, other: str) -> Interval:
        """Fair CRPS of `one` minus that of `other` with a paired block bootstrap interval; below zero is better.

        Blocks are events, cut every two hours; see `tasks.verification.resampling`.
        """
        labels, run = blocks_of(self)
        ours, theirs = (self.evidence[name].crps.sum(axis=1) for name in (one, other))
        return paired_mean_difference(ours, theirs, self.cells.sum(axis=1), labels, run=run, seed=self.seed)

    def frechet(self, name: str) -> float:
        """Fréchet distance between the clips of a forecaster's members and the observed ones; NaN without features."""
        moments = self.evidence[name].moments
        if moments is None or self.observed_moments is None:
            return float("nan")
        return frechet_distance(moments, self.observed_moments)


def compare_ensembles(
    forecasters: Mapping[str, Forecaster],
    samples: SampleSet,
    windows: Sequence[Window],
    *,
    thresholds: Sequence[float],
    members: int = 8,
    seed: int = 0,
    features: ClipFeatures | None = None,
    progress: Callable[[int], None] | None = None,
) -> EnsembleComparison:
    """Forecast every window with every ensemble and sum up.

    A cell counts only where it was observed and every member of every forecaster has a value. A forecaster without
    randomness gives equal members: its fair CRPS is its absolute error.

    Args:
        forecasters: By name.
        samples: What the windows are cut from.
        windows: Held out from training and from fitting: `samples.held_out("test", 64, wet=True)`.
        thresholds: In the quantity's units, ascending.
        members: Of each ensemble, at least 2.
        seed: Of everything random.
        features: Network for the Fréchet distance of clips.
        progress: Called with the number of windows done.

    Raises:
        ValueError: no window, no forecaster, or a single member.
    """
    if not windows or not forecasters or members < 2:
        told = f"{len(windows)} windows, {len(forecasters)} forecasters, {members} members"
        raise ValueError(f"expected windows, a forecaster and at least 2 members; got {told}")
    reader, judge = samples.reader(), _Judge(samples.info.quantity, tuple(thresholds), features)
    parts: dict[str, list[EnsembleEvidence]] = {name: [] for name in forecasters}
    for number, window in enumerate(windows):
        fields = reader.read([window])[0]
        context, observed = fields[: samples.t_in], fields[samples.t_in :]
        drawn = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        ensembles = forecast_ensembles(forecasters, context, len(observed), members, drawn)
        judge.observe(observed, [forecast for forecast, _ in ensembles.values()])
        for name, (forecast, seconds) in ensembles.items():
            parts[name].append(judge.evidence(forecast, seconds))
        if progress is not None:
            progress(number + 1)
    return EnsembleComparison(
        evidence={name: _added(found) for name, found in parts.items()},
        members=members,
        seed=seed,
        quantity=samples.info.quantity,
        lead_minutes=tuple((lead + 1) * samples.info.cadence_s / 60 for lead in range(samples.t_out)),
        cell_size_m=samples.info.cell_size_m,
        cells=np.array(judge.cells),
        observed=np.array(judge.seen),
        init_times=np.array([samples.init_time(window) for window in windows], "datetime64[ns]"),
        events=np.array([samples.event(window) for window in windows], dtype=np.str_),
        observed_moments=judge.moments,
    )


def forecast_ensembles(
    forecasters: Mapping[str, Forecaster], context: Fields, leads: int, members: int, seed: int
) -> dict[str, tuple[Fields, float]]:
    """Ensemble (member, lead, y, x) of every forecaster from `context` (t_in, y, x), and the seconds it took."""
    found = {}
    for name, forecaster in forecasters.items():
        start = perf_counter()
        forecast = forecaster.forecast(context[-forecaster.t_in :], leads, members=members, seed=seed)
        found[name] = forecast, perf_counter() - start
    return found


class _Judge:
    """Judges one window after the other by what was observed then."""

    def __init__(self, quantity: str, thresholds: tuple[float, ...], features: ClipFeatures | None) -> None:
        self.transform, self.thresholds, self.features = Transform.of_quantity(quantity), thresholds, features
        self.cells: list[Counts] = []
        self.seen: list[Counts] = []
        self.moments: FeatureMoments | None = None

    def observe(self, observed: Fields, forecasts: Sequence[Fields]) -> None:
        """Take the next window: what was observed, (lead, y, x), and the ensembles whose cells count."""
        known = np.logical_and.reduce([np.isfinite(forecast).all(axis=0) for forecast in forecasts])
        self.observed, self.judged = observed, np.where(known, observed, np.float32(np.nan))
        self.cells.append(np.isfinite(self.judged).sum(axis=(-2, -1), dtype=np.int64))
        self.seen.append(np.isfinite(observed).sum(axis=(-2, -1), dtype=np.int64))
        if self.features is not None:
            found = feature_moments(self.features(self._clips(observed[None])))
            self.moments = found if self.moments is None else self.moments + found

    def evidence(self, forecast: Fields, seconds: float) -> EnsembleEvidence:
        """What this window says about one ensemble (member, lead, y, x)."""
        sums = ensemble_sums(forecast, self.judged, self.thresholds[0])
        return EnsembleEvidence(
            sums=sums,
            reliability=reliability(forecast, self.judged, self.thresholds),
            pooled=pooled_counts(forecast, self.judged, self.thresholds),
            spectra=spectra(self.transform.forward(forecast), self.transform.forward(self.observed)),
            crps=sums.crps_fair[None],
            seconds=(seconds,),
            moments=None if self.features is None else feature_moments(self.features(self._clips(forecast))),
        )

    def _clips(self, fields: Fields) -> Fields:
        clips: Fields = np.clip(np.nan_to_num(self.transform.forward(fields)), 0.0, 1.0)
        return clips


def _added(parts: Sequence[EnsembleEvidence]) -> EnsembleEvidence:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
