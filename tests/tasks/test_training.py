"""A training learns, keeps its best, stops when told, and survives SIGKILL without a bit of difference."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from builders.training import SPEC, drifting_rain, samples, small_model, write
from models.baselines.persistence import Persistence
from models.forecaster import load_forecaster
from tasks.training.config import TrainConfig
from tasks.training.evaluation import evaluate
from tasks.training.fit import choose_precision, train
from tasks.training.losses import balanced, mse, soft_csi
from tasks.training.optimisation import MovingAverage, decay_groups, learning_rate, reference_rate, step_rate
from tasks.training.samples import SampleSource
from tasks.training.state import Progress, TrainingState, load_latest_state, save_state

CONFIG = TrainConfig(
    domain="tiny",
    preset="earthformer/small-64",
    seed=5,
    batch_size=4,
    max_steps=12,
    learning_rate=1e-3,
    thresholds=(0.5, 2.0),
    val_every=6,
    val_windows=6,
    checkpoint_every=2,
    precision="32-true",
    accelerator="cpu",
    progress_bar=False,
)


class Recorded:
    """A run log that only remembers."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.values.setdefault(step, {}).update(values)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run(folder: Path, source: SampleSource, config: TrainConfig = CONFIG, **options: object):
    return train(config, source, folder, model=small_model(), **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / "model.safetensors")


def test_a_training_gets_better_than_it_began(tmp_path: Path) -> None:
    source, log = samples(tmp_path / "data"), Recorded()
    config = replace(CONFIG, max_steps=60, val_every=4, loss="mse", learning_rate=3e-3, ema_decay=0.8)
    result = run(tmp_path / "run", source, config, log=log)
    assert log.values[60]["val/loss"] < 0.8 * log.values[4]["val/loss"]
    assert result.steps == 60
    assert result.stopped_because == "max_steps"
    assert {"train/loss", "train/learning_rate"} <= set(log.values[20])
    assert {"val/csi", "val/loss", "val/mse/lead_5min", "val/csi_0.5mm/lead_10min"} <= set(log.values[60])


def test_the_kept_checkpoint_is_the_forecaster_that_was_validated(tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    result = run(tmp_path / "run", source, replace(CONFIG, max_steps=6, val_windows=10))
    found = evaluate({"model": load_forecaster(result.last)}, source, split="val", thresholds=(0.5, 2.0), limit=10)
    judged = found.deviations["model"].mse
    assert judged == pytest.approx([result.metrics[f"val/mse/lead_{m}min"] for m in (5, 10)], rel=1e-4)


def test_the_schedule_of_a_training_is_that_of_its_steps(tmp_path: Path) -> None:
    log = Recorded()
    run(tmp_path / "run", samples(tmp_path / "data"), replace(CONFIG, max_steps=40, val_every=40), log=log)
    expected = [step_rate(step - 1, 40, base=1e-3, warmup=CONFIG.warmup) for step in (20, 40)]
    assert [log.values[step]["train/learning_rate"] for step in (20, 40)] == pytest.approx(expected)


def test_a_budget_ends_a_training_with_a_last_validation_and_a_state(tmp_path: Path) -> None:
    config = replace(CONFIG, max_steps=None, budget=timedelta(seconds=2), val_every=10_000)
    result = run(tmp_path / "run", samples(tmp_path / "data"), config)
    assert result.stopped_because == "budget"
    assert "val/csi" in result.metrics
    state = load_latest_state(tmp_path / "run" / "states")
    assert state is not None
    assert state.progress.step == result.steps == state.progress.validated


def test_a_training_that_no_longer_improves_stops(tmp_path: Path) -> None:
    config = replace(CONFIG, max_steps=200, val_every=1, patience=2, learning_rate=0.0)
    result = run(tmp_path / "run", samples(tmp_path / "data"), config)
    assert result.stopped_because == "patience"
    assert result.steps == 3


def test_two_trainings_of_one_seed_are_the_same_and_of_two_seeds_are_not(tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run(tmp_path / name, source, replace(CONFIG, seed=seed, max_steps=3))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_training_ends_with_the_bits_of_an_uninterrupted_one(tmp_path: Path, accumulate: int) -> None:
    source = samples(tmp_path / "data")
    config = replace(CONFIG, accumulate=accumulate, checkpoint_every=5)
    whole = run(tmp_path / "whole", source, config)
    interrupt_after(tmp_path / "parts", source, config, steps=8)
    resumed = run(tmp_path / "parts", source, config, resume=True)
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")
    assert resumed.score == whole.score
    assert resumed.metrics == whole.metrics


def interrupt_after(folder: Path, source: SampleSource, config: TrainConfig, steps: int) -> None:
    """Train until the log is told of `steps`, then fail."""

    class Failing(Recorded):
        def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
            if step >= steps:
                raise KeyError("the power went")

    with pytest.raises(KeyError):
        run(folder, source, replace(config, val_every=config.val_every), log=Failing())


def assert_same_bits(one: Path, other: Path) -> None:
    first, second = (load_latest_state(folder / "states") for folder in (one, other))
    assert first is not None
    assert second is not None
    assert first.progress.step == second.progress.step
    for part in ("network", "average", "optimiser"):
        ours, theirs = getattr(first, part), getattr(second, part)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), part
    for name in ("best", "last"):
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (one, other))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


RUNNER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from builders.training import SPEC, small_model
from tasks.training.samples import SampleSource
from tasks.training.fit import choose_precision, train
from tasks.training.data import open_training_data
from test_training_config import CONFIG
source = SampleSource(open_training_data(Path(sys.argv[1])), SPEC)
train(CONFIG, source, Path(sys.argv[2]), resume=True, model=small_model())
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_killed_at_a_random_step_ends_with_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, workers: int
) -> None:
    source = samples(tmp_path / "data")
    config = replace(CONFIG, max_steps=60, val_every=25, checkpoint_every=3, workers=workers)
    (tmp_path / "test_training_config.py").write_text(
        f"from tasks.training.config import TrainConfig\nCONFIG = {config!r}\n"
    )
    run(tmp_path / "whole", source, replace(config, workers=0))
    chance = np.random.default_rng()
    kills = 0
    for _ in range(2):
        kills += kill_at(tmp_path, int(chance.integers(1, 30)))
    assert kills >= 1
    finish = start(tmp_path)
    assert finish.wait(timeout=240) == 0
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")


def start(folder: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(root / "tests"), str(root)])}
    command = [sys.executable, "-c", RUNNER, str(folder / "data"), str(folder / "killed")]
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            command, env=environment, cwd=folder, stdout=output, stderr=output, start_new_session=True
        )


def kill_at(folder: Path, step: int) -> bool:
    """Start the training and SIGKILL all of it once a state of `step` or later exists; False where it had ended."""
    process, states = start(folder), folder / "killed" / "states"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if any(int(path.name.split("-")[1].split(".")[0]) >= step for path in states.glob("step-*")):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    assert process.poll() is not None, (folder / "output.txt").read_text()
    return False


def test_half_precision_is_chosen_only_where_it_is_native_and_can_be_refused() -> None:
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    expected = "bf16-mixed" if native else "32-true"
    assert choose_precision(replace(CONFIG, precision="auto")) == expected
    assert choose_precision(CONFIG) == "32-true"


def test_a_folder_with_another_training_is_not_resumed(tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    run(tmp_path / "run", source, replace(CONFIG, max_steps=2))
    with pytest.raises(ValueError, match="differs"):
        run(tmp_path / "run", source, replace(CONFIG, max_steps=2, seed=9), resume=True)


def test_resuming_a_finished_training_changes_nothing(tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    first = run(tmp_path / "run", source, replace(CONFIG, max_steps=4))
    before = weights(tmp_path / "run")
    again = run(tmp_path / "run", source, replace(CONFIG, max_steps=4), resume=True)
    assert again.steps == first.steps
    assert again.score == first.score
    assert all(torch.equal(before[key], value) for key, value in weights(tmp_path / "run").items())


@pytest.mark.slow
def test_two_processes_train_on_the_batches_of_one_and_validate_alike(tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    config = replace(CONFIG, max_steps=4, learning_rate=0.0, val_windows=8)
    alone = run(tmp_path / "alone", source, config)
    both = run(tmp_path / "both", source, replace(config, devices=2))
    assert both.steps == alone.steps == 4
    assert both.metrics == pytest.approx(alone.metrics, nan_ok=True, rel=1e-5)
    assert both.score == pytest.approx(alone.score)


def test_fine_tuning_starts_from_the_parent(tmp_path: Path) -> None:
    source = samples(tmp_path / "data")
    run(tmp_path / "parent", source, replace(CONFIG, max_steps=4))
    child = replace(CONFIG, max_steps=1, learning_rate=0.0, from_model=tmp_path / "parent" / "last")
    run(tmp_path / "child", source, child)
    parent = weights(tmp_path / "parent")
    assert all(torch.equal(parent[key], value) for key, value in weights(tmp_path / "child").items())


def test_samples_of_another_shape_than_the_preset_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected samples \(t_in, t_out, y, x\) of \(13, 12, 64, 64\)"):
        train(CONFIG, samples(tmp_path / "data"), tmp_path / "run")


def test_only_two_states_are_kept_and_a_half_written_one_is_not_a_state(tmp_path: Path) -> None:
    tensors = {"w": torch.arange(3.0)}
    for step in (1, 2, 3):
        save_state(tmp_path, TrainingState(Progress(step=step, seconds=0.5), tensors, tensors, tensors))
    (tmp_path / "step-000000009.part").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000002",
        "step-000000003",
        "step-000000009.part",
    ]
    state = load_latest_state(tmp_path)
    assert state is not None
    assert state.progress == Progress(step=3, seconds=0.5)


def test_unobserved_cells_have_no_part_in_any_loss() -> None:
    forecast, observed = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    known = torch.rand(2, 3, 4, 4) > 0.5
    elsewhere = torch.where(known, forecast, torch.rand(2, 3, 4, 4) * 9)
    for loss in (mse, balanced, soft_csi([0.3, 0.6])):
        assert loss(forecast, observed, known) == pytest.approx(float(loss(elsewhere, observed, known)))
        assert torch.isfinite(loss(forecast, observed, torch.zeros_like(known)))


def test_the_mean_squared_error_is_over_known_cells() -> None:
    forecast, observed = torch.tensor([[[[1.0, 5.0, 2.0]]]]), torch.tensor([[[[0.0, 0.0, 4.0]]]])
    assert float(mse(forecast, observed, torch.tensor([[[[True, False, True]]]]))) == pytest.approx(2.5)


def test_strong_rain_weighs_thirty_times_a_dry_cell() -> None:
    known = torch.ones(1, 1, 1, 2, dtype=torch.bool)
    observed = torch.tensor([[[[0.0, 50 / 55]]]])
    wrong_dry, wrong_wet = observed + torch.tensor([0.1, 0.0]), observed + torch.tensor([0.0, 0.1])
    ratio = balanced(wrong_wet, observed, known) / balanced(wrong_dry, observed, known)
    assert float(ratio) == pytest.approx(30.0)


def test_the_differentiable_score_falls_as_the_forecast_approaches_the_observation() -> None:
    observed = torch.zeros(1, 1, 8, 8)
    observed[..., 2:5, 2:5] = 0.6
    known = torch.ones_like(observed, dtype=torch.bool)
    loss = soft_csi([0.4])
    values = [float(loss(observed.roll(shift, 3), observed, known)) for shift in (0, 1, 2, 4)]
    assert values == sorted(values)
    assert values[0] < 0.05


def test_layer_norms_and_biases_do_not_decay_but_group_norms_and_embeddings_do() -> None:
    network = torch.nn.ModuleDict(
        {"norm": torch.nn.LayerNorm(3), "group": torch.nn.GroupNorm(1, 3), "linear": torch.nn.Linear(3, 2)}
    )
    decayed, kept = decay_groups(network, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(3,), (2, 3)]
    assert len(kept["params"]) == 4
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_the_rate_rises_falls_and_stays_down() -> None:
    rates = [step_rate(step, 100, base=1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[19] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1e-3)
    assert all(a > b for a, b in pairwise(rates[19:]))
    assert learning_rate(1.7, base=1.0) == pytest.approx(1e-3)


@pytest.mark.data
def test_the_reference_rate_is_the_published_one() -> None:
    from infra.settings import Settings

    settings = Settings()
    path = (settings.golden or settings.data.parent / "golden") / "earthformer" / "metrics" / "lr_schedule.json"
    if not path.exists():
        pytest.skip(f"no golden data at {path}")
    case = json.loads(path.read_text())["case_published"]
    ours = [
        reference_rate(
            step, case["total_steps"], base=case["lr"], warmup=case["warmup_percentage"], floor=case["min_lr_ratio"]
        )
        for step in range(len(case["lr_at_step"]))
    ]
    assert ours == pytest.approx(case["lr_at_step"], abs=1e-15)


def test_the_average_of_constant_weights_is_those_weights_and_it_forgets_the_start() -> None:
    network = torch.nn.Linear(2, 2)
    average = MovingAverage(network, 0.9)
    with torch.no_grad():
        network.weight.fill_(2.0)
    for updates in range(1, 301):
        average.update(network, updates)
    torch.testing.assert_close(average.weights["weight"], network.weight.detach())


def test_all_forecasters_are_judged_on_the_cells_that_all_of_them_forecast(tmp_path: Path) -> None:
    class Half:
        family, t_in, t_out = "half", 1, 2

        def forecast(self, context, lead_times, *, members=1, seed=0):
            field = np.repeat(context[None, -1:], lead_times, axis=1)
            field[..., 8:] = np.nan
            return field

    source = samples(tmp_path / "data")
    found = evaluate({"half": Half(), "whole": Persistence(t_out=2)}, source, split="test", thresholds=(1.0,))
    np.testing.assert_array_equal(found.counts["half"].hits, found.counts["whole"].hits)
    assert found.deviations["half"].count.tolist() == found.deviations["whole"].count.tolist()
    assert len(found.counts["half"]) == len(source.windows("test"))


def test_windows_of_one_event_carry_its_name(tmp_path: Path) -> None:
    values = drifting_rain(240)
    source = SampleSource(write(tmp_path / "data", values), SPEC)
    found = evaluate({"persistence": Persistence(t_out=2)}, source, split="val", thresholds=(1.0,))
    counts = found.counts["persistence"]
    assert set(counts.events) == {f"2026-01-01T{hour:02d}:00Z" for hour in range(0, 20, 2)} & set(counts.events)
    assert counts.wet.all()


def test_metrics_are_named_by_threshold_and_lead(tmp_path: Path) -> None:
    log = Recorded()
    run(tmp_path / "run", samples(tmp_path / "data"), replace(CONFIG, max_steps=1), log=log)
    names = {name for name in log.values[1] if name.startswith("val/csi_")}
    assert names == {f"val/csi_{t}mm/lead_{m}min" for t in ("0.5", "2") for m in (5, 10)}
