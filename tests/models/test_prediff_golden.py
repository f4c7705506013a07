"""PreDiff's networks against the reference's figures: the committed part always, the complete set where present."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from infra.settings import Settings
from tasks.golden.cases import run_golden
from tasks.golden.prediff_full import FullNetworkLoader
from tasks.golden.prediff_networks import NetworkLoader

COMMITTED = Path(__file__).parents[1] / "golden" / "prediff"
LOADERS = (NetworkLoader(), FullNetworkLoader())


def complete(folder: str) -> Path:
    path = (Settings().golden or Path("../shared/golden")) / "prediff" / folder
    if not path.is_dir():
        pytest.skip(f"no golden files at {path}")
    return path


@pytest.mark.parametrize("folder", ["tiny_vae", "tiny_denoiser", "tiny_alignment", "full_v1"])
def test_every_committed_network_is_reproduced_in_both_precisions(folder: str) -> None:
    (result,) = run_golden(COMMITTED / folder)
    assert result.ok, result.message
    assert result.worst < 5e-6


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["tiny_vae", "tiny_denoiser", "tiny_alignment"])
def test_every_activation_and_gradient_of_the_complete_set_is_reproduced(folder: str) -> None:
    (result,) = run_golden(complete(folder))
    assert result.ok, result.message


@pytest.mark.slow
def test_the_networks_of_published_size_agree_with_their_summaries() -> None:
    results = run_golden(complete("full_v1"))
    assert [result.message for result in results if not result.ok] == []
    assert len(results) == 3


@pytest.mark.parametrize("tensor", ["out", "act.first_proj#0"])
def test_a_wrong_figure_is_found(tmp_path: Path, tensor: str) -> None:
    shutil.copy(COMMITTED / "tiny_denoiser" / "config.json", tmp_path)
    figures = load_file(COMMITTED / "tiny_denoiser" / "io.safetensors")
    figures[tensor] = figures[tensor] + 1e-3 * figures[tensor].abs().max()
    save_file(figures, tmp_path / "io.safetensors")
    (result,) = run_golden(tmp_path, known=LOADERS)
    assert not result.ok
    assert tensor in result.message


def test_a_figure_that_nothing_computes_fails(tmp_path: Path) -> None:
    shutil.copy(COMMITTED / "tiny_alignment" / "config.json", tmp_path)
    figures = load_file(COMMITTED / "tiny_alignment" / "io.safetensors")
    save_file({**figures, "unheard_of": figures["pred"].clone()}, tmp_path / "io.safetensors")
    (result,) = run_golden(tmp_path, known=LOADERS)
    assert not result.ok
    assert "unheard_of" in result.message


def test_arguments_that_are_not_built_fail_with_their_name(tmp_path: Path) -> None:
    text = (COMMITTED / "tiny_denoiser" / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"num_global_vectors": 0', '"num_global_vectors": 8'))
    shutil.copy(COMMITTED / "tiny_denoiser" / "io.safetensors", tmp_path)
    (result,) = run_golden(tmp_path, known=LOADERS)
    assert not result.ok
    assert "num_global_vectors" in result.message
