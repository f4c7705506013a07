"""Imports point downwards: the contracts in pyproject.toml hold for what is checked out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "pyproject.toml"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter over the packages in `folder`, in a process of its own."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--config", str(CONFIG), "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def contracts() -> list[dict[str, Any]]:
    """The contracts as declared."""
    found: list[dict[str, Any]] = tomllib.loads(CONFIG.read_text())["tool"]["importlinter"]["contracts"]
    return found


def test_every_contract_on_imports_is_kept() -> None:
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert f"{len(contracts())} kept, 0 broken" in found.stdout
    for contract in contracts():
        assert f"{contract['name']} KEPT" in found.stdout


@pytest.mark.parametrize(
    ("module", "text", "contract"),
    [
        ("models.upwards", "import tasks.grid", "Imports point downwards"),
        ("infra.sideways", "import models.transform", "Imports point downwards"),
        ("tasks.archive.ahead", "import tasks.products", "Tasks follow the data"),
        ("tasks.training.scheduled", "import prefect", "Only flows and tasks.steps know Prefect"),
        ("flows.counting", "import numpy", "Flows say when: no arrays"),
        ("tasks.products.recording", "import mlflow", "Only infra.tracking knows MLflow"),
        ("models.trained", "import lightning", "Lightning only in tasks.training"),
        ("tasks.training.stepping", "import tasks.steps", "Only flows use the steps"),
    ],
)
def test_an_import_against_the_layers_breaks_its_contract(
    tmp_path: Path, module: str, text: str, contract: str
) -> None:
    """On a miniature of the tree, so that a contract that has lost its teeth is noticed."""
    named = {part for layer in layered() for part in layer} | {"tasks.grid", "models.transform"}
    named |= {name for contract in contracts() for name in contract.get("source_modules", ()) if "*" not in name}
    for name in sorted(named):
        package = tmp_path.joinpath(*name.split("."))
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
    (tmp_path / "tasks" / "steps" / "__init__.py").write_text("import prefect\n")
    assert lint(tmp_path).returncode == 0
    tmp_path.joinpath(*module.split(".")).with_suffix(".py").write_text(f"{text}\n")
    found = lint(tmp_path)
    assert found.returncode == 1, found.stdout + found.stderr
    assert re.search(rf"^{contract}.* BROKEN", found.stdout, re.MULTILINE), found.stdout


def layered() -> list[list[str]]:
    """The modules of every layer of every contract on layers."""
    return [
        [name.strip() for name in layer.split("|")] for contract in contracts() for layer in contract.get("layers", ())
    ]
