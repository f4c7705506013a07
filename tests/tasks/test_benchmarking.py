"""The benchmark of a domain from its archive to the tracking server: who takes part, on which windows, what is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builders.ensembles import forecaster, tiny_prediff, write_prediff
from builders.networks import small_config
from builders.nowcasts import small_domain, write_archive
from infra.settings import Domain, Settings
from infra.tracking import ModelMissing, TensorSignature, Tracking
from models.checkpoint import save_checkpoint
from models.configuration import build_network
from models.prediff.forecaster import PreDiffForecaster
from models.prediff.mapping import QuantileMapping
from tasks.benchmarking import EXPERIMENT, EnsembleBenchmark, compare_domain_ensembles
from tasks.contenders import sampling_variants
from tasks.learning import sample_data
from tasks.steering_benchmark import AlignmentBenchmark, compare_domain_intensities
from tasks.training.data import TrainingData
from tasks.training.intensity_table import IntensityRow, is_monotone

SIGNATURE = TensorSignature((-1, 3, -1, -1), (-1, -1, 3, -1, -1))
FRAMES, SIDE = 180, 16


def drifting(frames: int = FRAMES) -> list[np.ndarray]:
    """A disc of rain that moves a cell a frame, grows and shrinks, and returns at the other side."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    found = []
    for frame in range(frames):
        distance = np.hypot(rows - SIDE / 2, (columns - frame) % SIDE - SIDE / 2)
        found.append(np.round(np.clip(8.0 + 2 * np.sin(frame) - 2.0 * distance, 0, None), 1).astype(np.float32))
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Domain, Settings, TrainingData]:
    """Fifteen hours of rain in an archive, a PreDiff, and two Earthformers: one of this grid, one of larger cells."""
    root = tmp_path_factory.mktemp("world")
    domain = small_domain(root, lead_times=3)
    training = domain.training.model_copy(update={"event_limit": None})
    domain = domain.model_copy(update={"training": training})
    write_archive(domain, drifting())
    settings = Settings(home=root / "home", mlflow_uri=f"sqlite:///{root}/mlflow.db", _env_file=None)
    tracking = Tracking(settings.tracking_uri)
    with tracking.run("squall/meadow/training", "benchmark") as log:
        for name, cells in (("meadow-earthformer", 1000.0), ("fen-earthformer", 4000.0)):
            config = small_config(anchor="persistence", cell_size_m=cells)
            save_checkpoint(root / name, config, build_network(config).state_dict())
            found = tracking.register(name, root / name, run_id=log.run_id, signature=SIGNATURE)
            tracking.promote(name, found.version, "for this test")
        write_prediff(root / "prediff")
        tracking.register("meadow-prediff", root / "prediff", run_id=log.run_id, signature=SIGNATURE)
    data = sample_data(domain, settings)
    assert isinstance(data, TrainingData)
    return domain, settings, data


def test_models_baselines_and_dressed_models_meet_on_the_same_windows(
    world: tuple[Domain, Settings, TrainingData],
) -> None:
    models = ("earthformer", "dressed", "extrapolation", "persistence")
    report = compare_domain_ensembles(*world, EnsembleBenchmark(models, windows=3, members=3, reference="persistence"))
    assert {row.name for row in report.rows} == set(models)
    assert 0 < report.windows <= 3
    scores = {row.name: row for row in report.rows}
    # the network is fresh and adds nothing to its anchor: only where air flows in do their cells differ
    assert scores["earthformer"].crps == pytest.approx(scores["persistence"].crps, rel=1e-4)
    assert scores["dressed"].spread_skill > 0
    assert report.steps == ()
    plain = report.as_dict()
    assert plain["ensembles"][0]["name"] == report.rows[0].name
    assert plain["ensembles"][0]["frechet"] is None


def test_its_origin_is_in_the_run(world: tuple[Domain, Settings, TrainingData]) -> None:
    import mlflow

    domain, settings, data = world
    compare_domain_ensembles(*world, EnsembleBenchmark(("extrapolation", "steps"), windows=2, members=2))
    run = Tracking(settings.tracking_uri).find_run(EXPERIMENT, domain.name)
    assert run is not None
    tags = mlflow.MlflowClient(tracking_uri=settings.tracking_uri).get_run(run).data.tags
    assert tags["squall.archive_snapshot"] == data.info.archive_snapshot
    assert tags["squall.domain"] == "meadow"


def test_what_cannot_take_part_is_refused_in_words(world: tuple[Domain, Settings, TrainingData]) -> None:
    with pytest.raises(ModelMissing):
        compare_domain_ensembles(*world, EnsembleBenchmark(("prediff@champion",)))
    with pytest.raises(ValueError, match="trained on other data"):
        compare_domain_ensembles(*world, EnsembleBenchmark(("fen-earthformer@champion",)))
    with pytest.raises(ValueError, match="sampler steps among persistence"):
        compare_domain_ensembles(*world, EnsembleBenchmark(("persistence",), steps=("20",)))


def test_a_file_without_an_i3d_is_refused_before_anything_is_forecast(
    world: tuple[Domain, Settings, TrainingData], tmp_path: Path
) -> None:
    (tmp_path / "i3d.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"i3d\.pt"):
        compare_domain_ensembles(*world, EnsembleBenchmark(("persistence",), i3d=tmp_path / "i3d.pt"))


def test_steered_members_are_read_off_beside_members_that_are_not(world: tuple[Domain, Settings, TrainingData]) -> None:
    asked = AlignmentBenchmark("meadow-prediff/1", (2.0, -2.0), windows=2, members=2, steps=("2", "3"))
    report = compare_domain_intensities(*world, asked)
    assert [(row.steps, row.intensity) for row in report.rows] == [
        (steps, intensity) for steps in (2, 3) for intensity in (None, -2.0, 2.0)
    ]
    free, low, high = report.rows[:3]
    assert np.isnan(free.target)
    assert free.crps_cost == 0.0
    assert low.target < high.target
    assert high.off_target >= 0.0
    assert high.crps_cost == pytest.approx(high.crps / free.crps - 1)
    assert report.as_dict()["rows"][0]["target"] is None
    assert set(report.monotone) == {"meadow-prediff/1 2", "meadow-prediff/1 3"}


def test_sampler_settings_may_be_compared_as_they_are_drawn() -> None:
    mapping = QuantileMapping(drawn=(0.0, 1.0), observed=(0.0, 2.0))
    fitted = forecaster(tiny_prediff(mapping=mapping, spread=1.2))
    (kept, _), (raw, _) = (
        sampling_variants({"prediff": fitted}, ["2"], calibrated=calibrated)["prediff 2"]
        for calibrated in (True, False)
    )
    assert isinstance(kept, PreDiffForecaster)
    assert isinstance(raw, PreDiffForecaster)
    assert (kept.config.mapping, kept.config.spread, kept.sampling.steps) == (mapping, 1.2, 2)
    assert (raw.config.mapping, raw.config.spread, raw.sampling.steps) == (None, 1.0, 2)


def test_only_what_can_be_steered_is_steered(world: tuple[Domain, Settings, TrainingData]) -> None:
    with pytest.raises(ValueError, match="expected the guidance calibrated or legacy; got 'firm'"):
        compare_domain_intensities(*world, AlignmentBenchmark("meadow-prediff/1", guidance="firm"))
    with pytest.raises(ValueError, match="expected calibrated guidance of a flow"):
        compare_domain_intensities(*world, AlignmentBenchmark("meadow-prediff/1", windows=1, guidance="legacy"))
    with pytest.raises(ValueError, match="can be steered; got earthformer"):
        compare_domain_intensities(*world, AlignmentBenchmark("earthformer", windows=1))


@pytest.mark.parametrize(("achieved", "monotone"), [((0.1, 0.2, 0.3), True), ((0.1, 0.3, 0.2), False)])
def test_monotone_is_more_wherever_more_was_asked_for(achieved: tuple[float, ...], monotone: bool) -> None:
    free = IntensityRow("one", 10, None, np.nan, 0.5, np.nan, 1.0, 0.0, 1.0)
    steered = [
        IntensityRow("one", 10, n, 0.2, found, 0.1, 1.0, 0.0, 1.0)
        for n, found in zip((-1, 0, 1), achieved, strict=True)
    ]
    assert is_monotone([free, *reversed(steered)]) is monotone
