"""Earthformer against the reference's figures: the committed part always, the complete set where it is at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.settings import Settings
from tasks.golden.cases import GoldenResult, run_golden
from tasks.golden.earthformer import EXACT

COMMITTED = Path(__file__).parents[1] / "golden" / "earthformer"


def complete_set() -> Path:
    """The owner's folder of golden files."""
    return (Settings().golden or Path("../shared/golden")) / "earthformer"


def failures(results: list[GoldenResult]) -> list[str]:
    return [f"{result.case}: {result.message}" for result in results if not result.ok]


def test_every_committed_case_is_reproduced_in_both_precisions() -> None:
    results = run_golden(COMMITTED)
    assert failures(results) == []
    assert len(results) == 69 + 3 + 1 + 1
    assert max(result.worst for result in results) <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["layers", "models", "patterns"])
def test_every_case_of_the_complete_set_is_reproduced(folder: str) -> None:
    path = complete_set() / folder
    if not path.is_dir():
        pytest.skip(f"no golden files at {path}")
    assert failures(run_golden(path)) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sevir_v1", "enso_v1", "enso_paper", "sevir_lr", "nbody"])
def test_full_size_models_with_recipe_weights_agree_at_every_stage(model: str) -> None:
    path = complete_set() / "full" / f"{model}.json"
    if not path.is_file():
        pytest.skip(f"no golden file at {path}")
    assert failures(run_golden(path)) == []


def test_a_file_without_loader_fails(tmp_path: Path) -> None:
    (tmp_path / "unknown.json").write_text("{}")
    (tmp_path / "stray.npz").write_bytes(b"")
    (tmp_path / "README.md").write_text("documentation is no case")
    results = run_golden(tmp_path)
    assert [result.ok for result in results] == [False, False]
    assert "no loader" in results[0].message


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none"):
        run_golden(tmp_path)


def test_a_wrong_figure_is_found(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source = COMMITTED / "layers" / "selfattn_axial_t"
    (tmp_path / "case.json").write_bytes(source.with_suffix(".json").read_bytes())
    tensors = load_file(source.with_suffix(".safetensors"))
    tensors["output/0"] = tensors["output/0"] + 1e-4 * torch.eye(8)[0]
    save_file(tensors, tmp_path / "case.safetensors")
    (result,) = run_golden(tmp_path)
    assert not result.ok
    assert "output 0" in result.message


def test_a_case_of_an_unknown_argument_fails_with_its_name(tmp_path: Path) -> None:
    source = COMMITTED / "layers" / "ffn_gated"
    text = source.with_suffix(".json").read_text().replace('"units"', '"unitz"')
    (tmp_path / "case.json").write_text(text)
    (tmp_path / "case.safetensors").write_bytes(source.with_suffix(".safetensors").read_bytes())
    (result,) = run_golden(tmp_path)
    assert not result.ok
    assert "unitz" in result.message
