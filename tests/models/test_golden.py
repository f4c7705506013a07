"""Every golden figure at hand: the committed selection always, the folder `SQUALL_GOLDEN` or the owner's beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra.settings import Settings
from models.earthformer.auxiliary import AuxiliaryEarthformer
from models.earthformer.config import EarthformerConfig
from tasks.golden.cases import Case, GoldenResult, check_case, run_golden
from tasks.golden.discovery import NOT_YET, check_selection, default_folders, discover, is_awaited
from tasks.golden.earthformer import EXACT
from tasks.golden.recipe import normal, sample_positions, unit, weight

CHECKOUT = Path(__file__).parents[2]
SELECTION = CHECKOUT / "tests" / "golden"
COMMITTED = SELECTION / "earthformer"
NAMED = Settings().golden


def selected() -> list[Case]:
    """The cases of SQUALL_GOLDEN, or by default the committed ones and then the owner's."""
    return discover([NAMED] if NAMED else default_folders(CHECKOUT))


def labelled(case: Case) -> object:
    summary = case.path.suffix == ".json" and "full" in case.path.parent.name
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] if summary else [])


def failures(results: list[GoldenResult]) -> list[str]:
    return [f"{result.case}: {result.message}" for result in results if not result.ok]


@pytest.mark.parametrize("case", [labelled(case) for case in selected()])
def test_a_golden_case_is_reproduced(case: Case) -> None:
    if NAMED is None and is_awaited(case):
        pytest.skip(NOT_YET)
    torch.set_num_threads(min(torch.get_num_threads(), Settings().threads))
    result = check_case(case)
    assert result.ok, result.message


@pytest.mark.skipif(NAMED is None, reason="SQUALL_GOLDEN names no folder")
def test_the_named_folder_holds_cases() -> None:
    assert selected(), f"expected golden files under {NAMED}"


def test_the_committed_selection_is_complete_and_small() -> None:
    cases = discover([SELECTION])
    assert all(case.loader is not None for case in cases)
    assert {case.path.parent.name for case in cases} >= {"layers", "models", "patterns", "full", "metrics", "data"}
    assert sum(path.stat().st_size for path in SELECTION.rglob("*") if path.is_file()) <= 3 * 2**20


def test_the_committed_selection_comes_first_and_no_case_twice(tmp_path: Path) -> None:
    owner = tmp_path / "shared" / "golden"
    mine = tmp_path / "main" / "tests" / "golden"
    for folder in (owner, mine):
        shutil.copytree(COMMITTED / "layers", folder / "earthformer" / "layers")
    changed = owner / "earthformer" / "layers" / "ffn_gated.json"
    changed.write_text(changed.read_text() + "\n")
    shutil.copy(COMMITTED / "layers" / "ffn_gated.json", owner / "earthformer" / "layers" / "more.json")
    assert default_folders(tmp_path / "main") == (mine, owner)
    cases = discover(default_folders(tmp_path / "main"))
    more = [case.path.name for case in cases if case.path.is_relative_to(owner)]
    assert more == ["ffn_gated.json", "more.json"]
    assert cases[0].path.is_relative_to(mine)


def renamed(source: Path, target: Path) -> None:
    """A case under another name in another folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in source.parent.glob(f"{source.name}.*"):
        shutil.copy(path, target.with_suffix(path.suffix))


@pytest.mark.parametrize(
    "source",
    ["layers/selfattn_axial_t", "models/base", "patterns/patterns_table", "metrics/sevir_pool", "metrics/enso"],
)
def test_a_case_is_known_by_what_it_holds_whatever_its_name(tmp_path: Path, source: str) -> None:
    renamed(COMMITTED / source, tmp_path / "some" / "where" / "x17")
    assert failures(run_golden(tmp_path)) == []


def test_a_dataset_is_known_by_what_it_holds_whatever_its_name(tmp_path: Path) -> None:
    shutil.copytree(COMMITTED / "data" / "sevir_toy", tmp_path / "events")
    (tmp_path / "events" / "expected.json").rename(tmp_path / "events" / "told.json")
    renamed(COMMITTED / "data" / "enso_windows", tmp_path / "months")
    renamed(COMMITTED / "data" / "nbody_toy", tmp_path / "bodies")
    results = run_golden(tmp_path)
    assert failures(results) == []
    assert len(results) == 3


def test_a_wrong_window_and_a_wrong_flight_are_found(tmp_path: Path) -> None:
    shutil.copytree(COMMITTED / "data", tmp_path / "data")
    told = tmp_path / "data" / "sevir_toy" / "expected.json"
    told.write_text(
        told.read_text().replace('"S106",\n', '"S107",\n', 1).replace('"S106", "S101"', '"S101", "S106"', 1)
    )
    windows = tmp_path / "data" / "enso_windows.json"
    figures = json.loads(windows.read_text())
    figures["windows"]["len40_in12_out14_gap1_is1_os1"]["count"] += 1
    windows.write_text(json.dumps(figures))
    flights = tmp_path / "data" / "nbody_toy.safetensors"
    tensors = load_file(flights)
    tensors["r1/traj0"][50, 1] += 0.01
    save_file(tensors, flights)
    messages = " ".join(failures(run_golden(tmp_path)))
    for wrong in ("order", "len40_in12_out14_gap1_is1_os1: count", "r1/0: flight"):
        assert wrong in messages


def summary(value: torch.Tensor) -> dict[str, object]:
    figures = {"mean": value.mean(), "std": value.std(), "min": value.min(), "max": value.max()}
    samples = value.flatten()[torch.from_numpy(sample_positions(value.numel()))]
    return {"shape": list(value.shape), "samples": samples.tolist(), **{k: float(v) for k, v in figures.items()}}


def test_a_summary_of_a_network_with_auxiliary_inputs_is_checked_like_the_others(tmp_path: Path) -> None:
    kwargs = json.loads((COMMITTED / "models" / "base.json").read_text())["kwargs"] | {"auxiliary_channels": 2}
    kwargs["z_init_method"] = "zeros"
    config = EarthformerConfig.model_validate(kwargs)
    network = AuxiliaryEarthformer(config).eval()
    for name, parameter in network.named_parameters():
        parameter.data.copy_(torch.from_numpy(weight(name, parameter.shape)))
    shapes = {
        "x": config.input_shape,
        "aux_enc": (*config.input_shape[:3], 2),
        "aux_dec": (*config.target_shape[:3], 2),
    }
    inputs = [torch.from_numpy(unit(f"input.{name}", [1, *shape])) for name, shape in shapes.items()]
    y = network(*inputs)
    (y * torch.from_numpy(normal("cotangent.0", y.shape))).mean().backward()
    norms = {n: None if p.grad is None else float(p.grad.norm()) for n, p in network.named_parameters()}
    document = {
        "model": "earthnet",
        "kwargs": kwargs,
        "batch": 1,
        "num_parameters": sum(p.numel() for p in network.parameters()),
        "weight_first3": {n: p.flatten()[:3].tolist() for n, p in network.named_parameters()},
        "fp32_vs_fp64": {"max_abs": 1e-6},
        "gradients_fp32": {
            "per_parameter_l2": norms,
            "total_norm": sum(n * n for n in norms.values() if n is not None) ** 0.5,
        },
        "stages_fp64": {"output": summary(network.double()(*(x.double() for x in inputs)).detach())},
    }
    (tmp_path / "held_back.json").write_text(json.dumps(document))
    (result,) = run_golden(tmp_path)
    assert result.ok, result.message
    document["stages_fp64"]["output"]["samples"][7] += 1e-3
    (tmp_path / "held_back.json").write_text(json.dumps(document))
    (result,) = run_golden(tmp_path)
    assert "samples of output" in result.message


def test_a_file_without_loader_fails(tmp_path: Path) -> None:
    (tmp_path / "unknown.json").write_text("{}")
    (tmp_path / "stray.npz").write_bytes(b"")
    (tmp_path / "README.md").write_text("documentation is no case")
    results = run_golden(tmp_path)
    assert [result.ok for result in results] == [False, False]
    assert "no loader" in results[0].message


def test_damaged_files_fail_by_name_and_the_others_are_still_checked(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"kind": ')
    renamed(COMMITTED / "layers" / "ffn_gated", tmp_path / "b")
    renamed(COMMITTED / "layers" / "ffn_gated", tmp_path / "c")
    (tmp_path / "c.safetensors").write_bytes(b"cut")
    results = run_golden(tmp_path)
    assert [(result.case.split("/")[-1], result.ok) for result in results] == [
        ("a.json", False),
        ("b", True),
        ("c.json", False),
    ]


def test_families_to_come_are_skipped_unless_their_folder_is_named(tmp_path: Path) -> None:
    for name in ("boon/net.npz", "mq/index.json", "earthformer/layers/odd.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"{}" if name.endswith("json") else (COMMITTED / "README.md").read_bytes())
    (tmp_path / "boon" / "net.npz").unlink()
    (tmp_path / "boon" / "net.json").write_text("{}")
    cases = discover([tmp_path])
    lenient = check_selection(cases, lenient=True)
    assert [(result.skipped, result.ok) for result in lenient] == [(True, True), (False, False), (True, True)]
    assert lenient[0].message == "no model of this family yet"
    assert not any(result.ok for result in check_selection(cases, lenient=False))


def test_a_folder_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none"):
        run_golden(tmp_path)


def test_a_wrong_figure_is_found(tmp_path: Path) -> None:
    renamed(COMMITTED / "layers" / "selfattn_axial_t", tmp_path / "case")
    tensors = load_file(tmp_path / "case.safetensors")
    tensors["output/0"] = tensors["output/0"] + 1e-4 * torch.eye(8)[0]
    save_file(tensors, tmp_path / "case.safetensors")
    (result,) = run_golden(tmp_path)
    assert not result.ok
    assert "output 0" in result.message
    assert result.worst > EXACT


def test_a_case_of_an_unknown_argument_fails_with_its_name(tmp_path: Path) -> None:
    renamed(COMMITTED / "layers" / "ffn_gated", tmp_path / "case")
    text = (tmp_path / "case.json").read_text().replace('"units"', '"unitz"')
    (tmp_path / "case.json").write_text(text)
    (result,) = run_golden(tmp_path)
    assert not result.ok
    assert "unitz" in result.message
