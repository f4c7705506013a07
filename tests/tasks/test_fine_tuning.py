"""A trained model goes on learning on other data: another grid, other lengths, other channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.nowcasts import small_domain, write_archive
from builders.training import drifting_rain, samples, small_model, write
from infra.settings import Settings, TrainingSettings
from infra.tracking import Tracking
from models.checkpoint import load_checkpoint, save_checkpoint
from models.configuration import ForecasterConfig, build_network
from models.forecaster import load_forecaster
from tasks import learning
from tasks.training.config import TrainConfig
from tasks.training.finetuning import choose_model, parse_window
from tasks.training.fit import train
from tasks.training.log import register_checkpoint
from tasks.training.samples import SampleSource, SampleSpec

CONFIG = TrainConfig(
    domain="tiny",
    preset="earthformer/small-64",
    seed=5,
    batch_size=4,
    max_steps=60,
    learning_rate=3e-3,
    loss="mse",
    ema_decay=0.8,
    thresholds=(0.5, 2.0),
    val_every=30,
    val_windows=6,
    checkpoint_every=60,
    precision="32-true",
    accelerator="cpu",
    progress_bar=False,
)
LARGER = (24, 32)
CHILD = SampleSpec(t_in=4, t_out=3, event_limit=timedelta(hours=2))


class Recorded:
    """A run log that only remembers."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}
        self.tables: dict[str, Mapping[str, object]] = {}
        self.tagged: dict[str, str] = {}

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.values.setdefault(step, {}).update(values)

    def table(self, content: Mapping[str, object], path: str) -> None:
        self.tables[path] = content

    def tags(self, values: Mapping[str, str]) -> None:
        self.tagged.update(values)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty steps on 16 x 16 cells, three frames to two."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("parent")
    return train(CONFIG, samples(folder / "data"), folder / "run", model=small_model()).last


def larger_samples(folder: Path) -> SampleSource:
    return SampleSource(write(folder, drifting_rain(240, LARGER)), CHILD)


def first_loss(folder: Path, source: SampleSource, model: ForecasterConfig, parent: Path | None) -> float:
    """Validation loss before anything is learnt."""
    log = Recorded()
    config = replace(CONFIG, max_steps=1, learning_rate=0.0, from_model=parent)
    train(config, source, folder, log, model=model)
    return log.values[1]["val/loss"]


def test_a_model_is_fine_tuned_on_another_grid_with_other_lengths(tmp_path: Path, parent: Path) -> None:
    source = larger_samples(tmp_path / "data")
    child = load_checkpoint(parent)[0].resized(t_in=4, t_out=3, patch=LARGER)
    log = Recorded()
    config = replace(CONFIG, max_steps=30, val_every=10, learning_rate=1e-3, from_model=parent)
    result = train(config, source, tmp_path / "run", log, model=child)
    assert result.steps == 30
    forecaster = load_forecaster(result.checkpoint)
    assert (forecaster.t_in, forecaster.t_out, forecaster.config.patch) == (4, 3, LARGER)
    assert np.isfinite(forecaster.forecast(np.nan_to_num(drifting_rain(4, LARGER)), 3)).all()
    report = log.tables["transfer.json"]
    assert report["context"] == {"t_in": "3 → 4", "t_out": "2 → 3", "patch": "(16, 16) → (24, 32)"}
    assert log.tagged["squall.transfer"] == report["summary"]
    fresh = first_loss(tmp_path / "fresh", source, child, None)
    begun = first_loss(tmp_path / "begun", source, child, parent)
    assert begun < 0.95 * fresh  # what was learnt on the small grid helps on the large one from the start
    assert log.values[30]["val/loss"] < begun


def test_a_model_of_two_channels_is_fine_tuned_on_one(tmp_path: Path) -> None:
    base = small_model()
    two = base.resized(t_in=3, t_out=2, patch=(16, 16), channels=2)
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "two", two, build_network(two).state_dict())
    log = Recorded()
    config = replace(CONFIG, max_steps=4, val_every=4, from_model=tmp_path / "two")
    result = train(config, samples(tmp_path / "data"), tmp_path / "run", log, model=base)
    assert result.steps == 4
    adapted = {change["key"] for change in log.tables["transfer.json"]["adapted"]}  # type: ignore[attr-defined]
    assert adapted == {"initial_encoder.conv_block.0.weight", "dec_final_proj.weight", "dec_final_proj.bias"}


def test_a_parent_of_other_widths_is_refused_before_anything_is_trained(tmp_path: Path, parent: Path) -> None:
    architecture = small_model().architecture.model_dump() | {"base_units": 32}
    wide = ForecasterConfig.model_validate(small_model().model_dump() | {"architecture": architecture})
    with pytest.raises(ValueError, match=r"expected \(2, 32\); got \(2, 16\)"):
        train(replace(CONFIG, from_model=parent), samples(tmp_path / "data"), tmp_path / "run", model=wide)
    assert not (tmp_path / "run" / "states").exists()


def test_a_window_is_told_as_frames_and_cells() -> None:
    assert parse_window("13:18:64x128") == (13, 18, (64, 128))
    for text in ("13:18", "13:18:64", "0:12:64x64", "a:b:cxd", "13:12:64x64 "):
        with pytest.raises(ValueError, match="such as 13:12:64x64"):
            parse_window(text)


def test_the_model_asked_for_counts_before_the_parents_and_the_domains(parent: Path) -> None:
    default = "earthformer/tiny"
    assert choose_model(None, None, default).preset == default
    assert choose_model("earthformer/demo", parent, default).preset == "earthformer/demo"
    assert choose_model(None, parent, default) == load_checkpoint(parent)[0]
    larger = choose_model(None, parent, default, parse_window("4:3:24x32"))
    assert (larger.t_in, larger.t_out, larger.patch) == (4, 3, LARGER)


def test_a_model_of_several_channels_is_chosen_with_one_and_one_with_covariates_is_refused(tmp_path: Path) -> None:
    two = small_model().resized(t_in=3, t_out=2, patch=(16, 16), channels=2)
    save_checkpoint(tmp_path, two, build_network(two).state_dict())
    assert choose_model(None, tmp_path, "earthformer/tiny") == small_model()
    with pytest.raises(ValueError, match="without auxiliary inputs"):
        choose_model("earthformer/earthnet", None, "earthformer/tiny")


@pytest.mark.slow
def test_a_registered_model_is_fine_tuned_on_a_domains_archive_in_another_window(tmp_path: Path, parent: Path) -> None:
    home = Settings(home=tmp_path, threads=1, device="cpu", _env_file=None)
    domain = small_domain(tmp_path)
    domain = domain.model_copy(update={"training": TrainingSettings(validate_every=2, batch_size=4)})
    write_archive(domain, list(np.nan_to_num(drifting_rain(120, LARGER))))
    tracking = Tracking(home.tracking_uri)
    with tracking.run("squall/elsewhere/training", "parent") as log:
        trained = register_checkpoint(tracking, "elsewhere-earthformer", parent, log, {})
    data = learning.sample_data(domain, home)
    asked = {"from_model": "elsewhere-earthformer@challenger", "window": "4:3:16x16", "max_steps": 2}
    fitted = learning.fit_model(domain, home, data, **asked)
    assert (fitted.name, fitted.steps) == ("meadow-earthformer", 2)
    forecaster = load_forecaster(fitted.checkpoint)
    assert (forecaster.t_in, forecaster.t_out, forecaster.config.patch) == (4, 3, (16, 16))
    assert forecaster.config.architecture.base_units == small_model().architecture.base_units
    assert (forecaster.config.cadence_s, forecaster.config.cell_size_m) == (300, 1000.0)
    verdict = learning.compare_models(domain, home, data, fitted)
    assert verdict.reason
    assert tracking.version(fitted.name, "challenger").run_id == fitted.run_id != trained.run_id
    again = learning.fit_model(domain, home, data, resume=fitted.run_id, max_steps=2)
    assert (again.run_id, again.steps) == (fitted.run_id, 2)
    with pytest.raises(ValueError, match=r"init_global_vectors: expected \(4, 16\); got \(2, 16\)|expected .* got"):
        learning.fit_model(domain, home, data, preset="earthformer/demo", from_model=asked["from_model"], max_steps=2)
