"""Ensembles side by side in a world where it is known which is right: drifting rain whose truth one of them draws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from builders.training import SPEC, samples
from infra.tracking import Tracking
from models.baselines.persistence import Persistence
from models.baselines.steps import Steps
from models.forecaster import Fields, Forecaster
from tasks.training.dressing import DressedForecaster, dress
from tasks.training.ensemble_comparison import EnsembleComparison, compare_ensembles
from tasks.training.ensemble_log import log_comparison, log_pictures, log_steps
from tasks.training.ensemble_table import as_dataset, as_text, tabulate_ensembles
from tasks.training.samples import SampleSource
from tasks.training.sampling_steps import (
    SamplerSetting,
    StepsRow,
    fewest_steps,
    parse_setting,
    sampler_variants,
    steps_table,
    vary,
)

THRESHOLDS = (0.5, 2.0)


@dataclass(frozen=True)
class Drift:
    """Knows that the rain moves a cell a frame, and errs by noise that shrinks with the number of steps."""

    steps: int = 4
    sampler: str = "exact"
    family: str = "drift"
    t_in: int = 1
    t_out: int = 2

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """Moved by one cell a lead time, plus noise where it rains."""
        moved = np.stack([np.roll(np.nan_to_num(context[-1]), lead + 1, axis=1) for lead in range(lead_times)])
        noise = np.random.default_rng(seed).normal(0.0, 1.0 / self.steps, (members, *moved.shape))
        return np.where(moved > 0, np.maximum(moved + noise, 0.0), 0.0).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SampleSource:
    return samples(tmp_path_factory.mktemp("home") / "layout")


@pytest.fixture(scope="module")
def comparison(source: SampleSource) -> EnsembleComparison:
    windows = source.held_out("test", 12, wet=True)
    forecasters: dict[str, Forecaster] = {"drift": Drift(), "still": Persistence(t_out=2)}
    return compare_ensembles(forecasters, source, windows, thresholds=THRESHOLDS, members=4, seed=3)


def test_the_forecaster_that_knows_the_motion_has_the_lower_crps(comparison: EnsembleComparison) -> None:
    best, worst = tabulate_ensembles(comparison)
    assert (best.name, worst.name) == ("drift", "still")
    assert worst.against is not None
    assert worst.against.difference == pytest.approx(worst.crps - best.crps)
    assert worst.spread_skill == 0.0
    assert best.csi > worst.csi
    assert np.isnan(best.csi_pool16) == (16 not in comparison.evidence["drift"].pooled.pools)


def test_the_crps_of_equal_members_is_the_absolute_error_of_persistence(
    comparison: EnsembleComparison, source: SampleSource
) -> None:
    windows = source.held_out("test", 12, wet=True)
    fields = source.reader().read(windows)
    error = np.abs(fields[:, SPEC.t_in :] - fields[:, SPEC.t_in - 1 : SPEC.t_in])
    assert comparison.evidence["still"].sums.mean_crps == pytest.approx(float(np.nanmean(error)), rel=1e-6)


def test_only_cells_that_every_forecaster_knows_are_judged(source: SampleSource) -> None:
    class Half(Drift):
        def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
            found = super().forecast(context, lead_times, members=members, seed=seed)
            found[-1, :, :, :8] = np.nan
            return found

    windows = source.held_out("test", 3, wet=True)
    found = compare_ensembles({"half": Half(), "drift": Drift()}, source, windows, thresholds=THRESHOLDS, members=2)
    assert (found.cells == 16 * 8).all()
    assert (found.observed == 16 * 16 - 1).all()
    assert found.judged_share == pytest.approx(128 / 255)


def test_the_same_seed_gives_the_same_comparison_and_windows_have_seeds_of_their_own(source: SampleSource) -> None:
    windows = source.held_out("test", 2, wet=True)

    def run(seed: int) -> EnsembleComparison:
        return compare_ensembles({"drift": Drift()}, source, windows, thresholds=THRESHOLDS, members=2, seed=seed)

    one, again, other = run(1), run(1), run(2)
    np.testing.assert_array_equal(one.evidence["drift"].crps, again.evidence["drift"].crps)
    assert not np.array_equal(one.evidence["drift"].crps, other.evidence["drift"].crps)


def test_a_comparison_without_windows_or_with_one_member_is_refused(source: SampleSource) -> None:
    with pytest.raises(ValueError, match="0 windows"):
        compare_ensembles({"drift": Drift()}, source, [], thresholds=THRESHOLDS)
    with pytest.raises(ValueError, match="at least 2 members"):
        compare_ensembles({"drift": Drift()}, source, source.held_out("test", 1), thresholds=THRESHOLDS, members=1)


def test_the_interval_is_paired_and_by_blocks(comparison: EnsembleComparison) -> None:
    scaled = {"drift": comparison.evidence["drift"], "worse": comparison.evidence["drift"]}
    scaled["worse"] = replace(scaled["worse"], crps=2 * scaled["worse"].crps)
    events = np.array([f"event {number}" for number in range(len(comparison))])
    found = replace(comparison, evidence=scaled, events=events)
    interval = found.difference("worse", "drift")
    assert interval.blocks == len(comparison)
    assert interval.above_zero
    assert interval.difference == pytest.approx(comparison.evidence["drift"].sums.mean_crps)
    few = replace(found, events=np.full(len(found), "one"), init_times=np.full(len(found), found.init_times[0]))
    assert not few.difference("worse", "drift").conclusive


def test_the_table_says_what_was_compared_in_words_and_numbers(comparison: EnsembleComparison) -> None:
    rows = tabulate_ensembles(comparison, "still")
    text = as_text(rows, comparison)
    assert "12 windows" in text
    assert "4 members" in text
    assert "| drift |" in text
    assert "reference |" in text
    assert "frechet" not in text  # no feature network was given
    with pytest.raises(ValueError, match="expected a reference of"):
        tabulate_ensembles(comparison, "oracle")
    data = as_dataset(comparison)
    assert data["crps"].dims == ("forecaster", "lead_time")
    assert data["lead_time"].values.tolist() == [5.0, 10.0]
    assert float(data["rank_share"].sel(forecaster="drift").sum()) == pytest.approx(1.0)


def test_a_feature_network_gives_a_distance_of_clips(source: SampleSource) -> None:
    def features(clips: Fields) -> np.ndarray:
        assert np.isfinite(clips).all()
        return np.stack([clips.mean(axis=(1, 2, 3)), clips.std(axis=(1, 2, 3))], axis=1).astype(np.float64)

    windows = source.held_out("test", 4, wet=True)
    forecasters: dict[str, Forecaster] = {"drift": Drift(steps=50), "noisy": Drift(steps=1)}
    found = compare_ensembles(forecasters, source, windows, thresholds=THRESHOLDS, members=2, features=features)
    assert 0 <= found.frechet("drift") < found.frechet("noisy")


def test_dressing_adds_residuals_of_the_same_lead_in_the_transformed_space(source: SampleSource) -> None:
    dressed = dress(Persistence(t_out=2), source, split="val", wet=True)
    assert isinstance(dressed, Forecaster)
    assert (dressed.family, dressed.t_in, dressed.t_out) == ("dressed-persistence", 1, 2)
    context = source.reader().read(source.held_out("test", 1, wet=True))[0][: SPEC.t_in]
    members = dressed.forecast(context[-1:], 2, members=3, seed=1)
    base = dressed.transform.forward(context[-1])
    drawn = np.random.default_rng(1).choice(len(dressed.residuals), size=3, replace=False)
    expected = dressed.transform.inverse(base + np.nan_to_num(dressed.residuals[drawn]))
    np.testing.assert_allclose(members, expected, atol=1e-5)
    assert np.isnan(members[..., 0, 0]).all()  # not observed, so not forecast
    assert np.nanmin(members) >= 0
    assert np.nanmax(members.std(axis=0)) > 0


def test_dressing_with_certain_residuals_forecasts_the_truth(source: SampleSource) -> None:
    windows = source.held_out("val", 4, wet=True)
    found = compare_ensembles(
        {"dressed": dress(Persistence(t_out=2), source, split="val", limit=4), "bare": Persistence(t_out=2)},
        source,
        windows,
        thresholds=THRESHOLDS,
        members=4,
    )
    assert found.evidence["dressed"].sums.mean_spread_skill > 0


def test_a_dressing_for_another_grid_is_refused_and_more_members_than_windows_are_not() -> None:
    from models.transform import Transform

    residuals = np.zeros((2, 2, 8, 8), np.float32)
    dressed = DressedForecaster(Persistence(t_out=2), Transform(), residuals, 0.0)
    assert dressed.forecast(np.ones((1, 8, 8), np.float32), 2, members=5).shape == (5, 2, 8, 8)
    with pytest.raises(ValueError, match="expected the residuals' grid"):
        dressed.forecast(np.ones((1, 9, 8), np.float32), 1)


def test_the_steps_table_takes_the_fewest_steps_within_two_percent(source: SampleSource) -> None:
    made = sampler_variants("drift", Drift(), [SamplerSetting(1), SamplerSetting(40), SamplerSetting(41)])
    forecasters: dict[str, Forecaster] = {name: variant for name, (variant, _) in made.items()}
    windows = source.held_out("test", 4, wet=True)
    found = compare_ensembles(forecasters, source, windows, thresholds=THRESHOLDS, members=4)
    rows = steps_table(found, {name: setting for name, (_, setting) in made.items()})
    assert [row.steps for row in rows] == [41, 40, 1]
    assert rows[-1].above_best > 1
    assert min(row.above_best for row in rows) == 0
    assert sum(row.chosen for row in rows) == 1


@pytest.mark.parametrize(
    ("crps", "chosen"),
    [([1.0, 1.01, 1.03], 20), ([1.0, 1.021, 1.03], 50), ([1.5, 1.01, 1.0], 10), ([1.0, np.nan, np.nan], 50)],
)
def test_the_rule_of_two_percent_by_hand(crps: list[float], chosen: int) -> None:
    rows = [StepsRow(str(n), n, c, 0.0, 0.0, 0.0, 0.0) for n, c in zip((50, 20, 10), crps, strict=True)]
    best = fewest_steps(rows)
    assert best is not None
    assert best.steps == chosen
    assert fewest_steps([]) is None


def test_settings_are_read_and_applied_to_a_copy() -> None:
    assert parse_setting("20") == SamplerSetting(20)
    assert parse_setting("dpm-solver++:20") == SamplerSetting(20, "dpm-solver++")
    with pytest.raises(ValueError, match="expected a number of steps"):
        parse_setting("ddim")
    original = Drift()
    assert vary(original, steps=7) == replace(original, steps=7)
    assert original.steps == 4
    with pytest.raises(ValueError, match="with steps to set; got Persistence"):
        vary(Persistence(), steps=7)


def test_a_forecaster_that_is_no_dataclass_is_varied_too() -> None:
    class Plain:
        family, t_in, t_out, steps = "plain", 1, 2, 50

        def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
            return Drift(self.steps).forecast(context, lead_times, members=members, seed=seed)

    plain = Plain()
    assert vary(plain, steps=3).steps == 3  # type: ignore[attr-defined]
    assert plain.steps == 50


def test_everything_is_logged(comparison: EnsembleComparison, source: SampleSource, tmp_path: Path) -> None:
    import mlflow

    tracking = Tracking(f"sqlite:///{tmp_path}/mlflow.db")
    windows = source.held_out("test", 2, wet=True)
    with tracking.run("squall/benchmark/ensembles", "tiny") as log:
        log_comparison(log, comparison, tabulate_ensembles(comparison))
        log_steps(log, [StepsRow("dpm++ 20", 20, 1.0, 0.0, 0.5, 0.5, 0.1, chosen=True)])
        forecasters: dict[str, Forecaster] = {"dpm++ 20": Drift(), "steps": Steps(t_out=2)}
        log_pictures(log, forecasters, source, windows, threshold=0.5, members=2, seed=0)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run(log.run_id)
    assert run.data.metrics["summary/drift/crps"] == pytest.approx(comparison.evidence["drift"].sums.mean_crps)
    assert run.data.tags["squall.chosen_steps"] == "dpm++ 20"
    assert "| drift |" in run.data.tags["mlflow.note.content"]
    stored = {file.name for file in (tmp_path / "mlflow-artifacts" / log.run_id / "artifacts").rglob("*.png")}
    assert {"ranks.png", "spectra.png", "reliability.png", "dpm-20.png", "steps.png"} <= stored
