"""What a domain file says of a training is what the training does; what it does not say stays as it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from builders.nowcasts import small_domain, write_archive
from builders.training import drifting_rain
from infra.settings import Settings, TrainingSettings, load_domain
from tasks import learning
from tasks.training.config import Precision, TrainConfig, told_config
from tasks.training.resumption import training_folder

DOMAIN = """
[feed]
kind = "fmi"
url = "{home}/frames"
cadence = "5min"
tolerance = "90s"
[archive]
url = "{home}/archive"
[product]
url = "{home}/store"
[training]
"""
HOW = ("accumulate", "precision", "devices", "strategy", "gradient_clip", "patience", "workers")


def told(tmp_path: Path, text: str) -> TrainConfig:
    """The training of a domain whose `[training]` is `text`."""
    (tmp_path / "here.toml").write_text(DOMAIN + text)
    settings = Settings(home=tmp_path, domains=tmp_path, device="cpu", _env_file=None)
    return told_config(load_domain("here", settings), settings, preset="earthformer/small-64")


def test_what_a_domain_file_does_not_say_is_as_the_training_has_it(tmp_path: Path) -> None:
    config = told(tmp_path, "")
    usual = asdict(TrainConfig(domain="here", preset="earthformer/small-64", budget=timedelta(minutes=20)))
    given = {"learning_rate": 2e-3, "loss": "csi", "accelerator": "cpu"}
    assert asdict(config) == usual | given


def test_what_a_domain_file_says_reaches_the_training(tmp_path: Path) -> None:
    said = {
        "accumulate": 2,
        "precision": "bf16-mixed",
        "devices": 4,
        "strategy": "ddp_spawn",
        "gradient_clip": 0.5,
        "patience": 7,
        "workers": 3,
    }
    config = told(tmp_path, "\n".join(f"{name} = {json.dumps(value)}" for name, value in said.items()))
    assert {name: getattr(config, name) for name in HOW} == said


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("accumulate = 0", "accumulate"),
        ('precision = "64-true"', "precision"),
        ("devices = 0", "devices"),
        ('strategy = ""', "strategy"),
        ("gradient_clip = 0", "gradient_clip"),
        ("patience = 0", "patience"),
        ("workers = -1", "workers"),
        ("batch_size = 16\naccumulate = 3\ndevices = 2", r"= 6 parts; got 16"),
    ],
)
def test_a_value_that_no_training_could_have_names_the_file_and_the_field(
    tmp_path: Path, line: str, named: str
) -> None:
    with pytest.raises(ValueError, match=rf"(?s)here\.toml.*{named}"):
        told(tmp_path, line)


def test_the_precisions_of_a_domain_file_are_those_of_a_training() -> None:
    assert get_args(TrainingSettings.model_fields["precision"].annotation) == get_args(Precision)


@pytest.mark.slow
def test_a_training_of_a_domain_stops_after_the_patience_that_its_file_has(tmp_path: Path) -> None:
    home = Settings(home=tmp_path, threads=1, device="cpu", _env_file=None)
    rule = TrainingSettings(
        preset="earthformer/demo",
        batch_size=4,
        accumulate=2,
        learning_rate=1e-12,  # nothing gets better
        precision="32-true",
        gradient_clip=0.5,
        validate_every=1,
        patience=2,
    )
    domain = small_domain(tmp_path).model_copy(update={"training": rule})
    write_archive(domain, list(np.nan_to_num(drifting_rain(120, (24, 32)))))
    data = learning.sample_data(domain, home)
    fitted = learning.fit_model(domain, home, data, max_steps=20, window="4:3:16x16")
    assert (fitted.stopped_because, fitted.steps) == ("patience", 3)
    kept = json.loads((training_folder(home, fitted.run_id) / "training.json").read_text())["config"]
    assert {name: kept[name] for name in HOW if name in kept} == {
        "accumulate": 2,
        "precision": "32-true",
        "gradient_clip": 0.5,
        "patience": 2,
    }
