"""Imports point downwards: the contracts in pyproject.toml hold for what is checked out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over the packages in `folder`, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
        + ["--config", str(config), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_contract_on_imports_is_kept() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    found = lint(ROOT, ROOT / "pyproject.toml")
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.search(rf"{len(declared)} kept, 0 broken", found.stdout), found.stdout
    for contract in declared:
        assert f"{contract['name']} KEPT" in found.stdout


@pytest.mark.parametrize(
    ("module", "text", "contract"),
    [
        ("models/upwards.py", "import tasks.grid", "Imports point downwards"),
        ("infra/sideways.py", "import models.transform", "Imports point downwards"),
        ("tasks/scheduled.py", "import prefect", "Only flows and tasks.steps know Prefect"),
        ("flows/counting.py", "import numpy", "Flows say when: no arrays"),
        ("tasks/recording.py", "import mlflow", "Only infra.tracking knows MLflow"),
        ("models/trained.py", "import lightning", "Lightning only in tasks.training.fit"),
        ("tasks/stepping.py", "import tasks.steps", "Only flows use the steps"),
    ],
)
def test_an_import_against_the_layers_breaks_its_contract(tmp_path: Path, module: str, text: str, contract: str) -> None:
    """On a miniature of the tree, so that a contract that has lost its teeth is noticed."""
    for package in ("flows", "tasks", "models", "infra"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    imported = {
        "tasks/grid.py": "",
        "models/transform.py": "",
        "tasks/steps.py": "import prefect",
        "infra/tracking.py": "import mlflow",
    }
    for name, content in {**imported, module: text}.items():
        (tmp_path / name).write_text(f"{content}\n")
    found = lint(tmp_path, ROOT / "pyproject.toml")
    assert found.returncode == 1, found.stdout + found.stderr
    assert f"{contract} BROKEN" in found.stdout
