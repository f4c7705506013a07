"""Published weights become ours exactly or not at all, and what is wrong with a file is told in one line."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from builders.networks import batch_of, published_state, small_config
from models.checkpoint import CheckpointError, load_checkpoint
from models.component import load_component
from models.configuration import build_network
from models.prediff import published as prediff
from models.prediff.architecture import AlignmentConfig, AutoencoderConfig, DenoiserConfig
from models.published import PublishedModel, import_weights, published_model, published_names

# Names, shapes and how many of them, as published (sorted lines "name 1x2x3"), index buffers included.
KEY_LISTS = {
    "earthformer-sevir": (286, "e11edcaad521e29a1733f50189a32f37626497a8566576c56cc01d7906c56e20"),
    "earthformer-enso": (177, "8d147fe76afb8d42eef77c5fb69a3769f8a07adb378b294f6169db5f2fd2fe8d"),
    "earthformer-earthnet": (431, "a95dad66f400d2671421078c63a42d6c500589e55733518175b67e2ea3ddefce"),
    "prediff-vae": (248, "b4edf2b1a82d43746eb5c197bcd6bfc79254aaca6692f8e27533f2a4d8b575ea"),
    "prediff-denoiser": (688, "fb0e78e597b0facefc68a2e38288170632aa8bd032b6b75a3148a4707f121137"),
    "prediff-alignment": (125, "6415f6f62c150aa21642edefa6dab951324a870b7d4c48e3af7e65c9f4a26d9d"),
}


@pytest.mark.parametrize("name", KEY_LISTS)
def test_what_a_published_file_holds_is_what_the_papers_authors_released(name: str) -> None:
    shapes = published_model(name).shapes
    lines = sorted(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.items())
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()) == KEY_LISTS[name]


def test_every_kind_is_checked_here_and_an_unknown_one_is_refused() -> None:
    assert set(published_names()) == set(KEY_LISTS)
    with pytest.raises(ValueError, match="expected one of earthformer-sevir"):
        published_model("earthformer-mars")


def small() -> PublishedModel:
    """A published model of a few thousand parameters."""
    config = small_config()
    return PublishedModel("small.pt", config, ("", "torch_nn_module."), (-1, 3, 16, 16, 1), (-1, 3, 16, 16, 1))


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["earthformer-enso", pytest.param("earthformer-sevir", marks=pytest.mark.slow)])
def test_an_imported_model_gives_the_very_output_of_the_published_one(name: str, tmp_path: Path) -> None:
    model = published_model(name)
    state = published_state(model)
    config, network = load_checkpoint(import_weights(model, write(tmp_path / "file.pt", state), tmp_path / "ours"))
    with torch.device("meta"):
        theirs = build_network(config)
    theirs.load_state_dict({key: state[key] for key in theirs.state_dict()}, assign=True)
    x = batch_of(config.architecture, 1)
    with torch.no_grad():
        assert torch.equal(network(x), theirs.eval()(x))


def lightning(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A training's checkpoint: the network below a prefix, a metric beside it, and what else a trainer keeps."""
    wrapped = {f"torch_nn_module.{key}": value for key, value in state.items()}
    return {"epoch": 3, "state_dict": {**wrapped, "valid_mse.total": torch.zeros(())}, "loops": {"fit": [1, None]}}


def without_indices(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if value.is_floating_point()}


def legacy(path: Path, state: Mapping[str, Tensor]) -> None:
    torch.save(dict(state), path, _use_new_zipfile_serialization=False)


CONTAINERS: dict[str, Callable[[Path, dict[str, Tensor]], object]] = {
    "lightning": lambda path, state: write(path, lightning(state)),
    "parameters": lambda path, state: write(
        path, {k: torch.nn.Parameter(v) for k, v in without_indices(state).items()}
    ),
    "safetensors": lambda path, state: save_file(without_indices(state), path),
    "legacy": legacy,
    "float64": lambda path, state: write(path, {k: v.double() for k, v in state.items()}),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_kind_of_file_gives_the_same_weights(container: str, tmp_path: Path) -> None:
    model = small()
    state = published_state(model)
    CONTAINERS[container](tmp_path / "file", state)
    _, network = load_checkpoint(import_weights(model, tmp_path / "file", tmp_path / "ours"))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


SMALL_BACKBONE: dict[str, Any] = {"base_units": 16, "depth": (1, 1), "num_heads": 2, "input_shape": (3, 8, 8, 4)}
COMPONENTS = [
    AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4),
    DenoiserConfig(**SMALL_BACKBONE, target_shape=(3, 8, 8, 4)),
    AlignmentConfig(**SMALL_BACKBONE | {"base_units": 32}),
]


@pytest.mark.parametrize("config", COMPONENTS, ids=lambda config: config.family)
def test_prediffs_networks_come_back_as_they_were_published(config: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = prediff.build(config)
    state = prediff.to_published(network.state_dict(), config)
    model = PublishedModel("x.pt", config, ("", "first_stage_model."), (), ())
    wrapped = {f"first_stage_model.{key}": value for key, value in state.items()}
    loaded_config, loaded = load_component(import_weights(model, write(tmp_path / "x", wrapped), tmp_path / "ours"))
    assert loaded_config == config
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in network.state_dict().items())


TABLE = "encoder.blocks.0.0.attn_l.1.relative_position_bias_table"
INDEX = "encoder.blocks.0.0.attn_l.1.relative_position_index"


def changed(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: state | {key: change(state[key])}


WRONG: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "shape": (changed("z_proj.weight", lambda t: t[:3].clone()), r"z_proj\.weight: expected \(32, 32\); got \(3, 32\)"),
    "table": (
        changed(TABLE, lambda t: t[:-1].clone()),
        r"relative_position_bias_table: expected \(15, 2\); got \(14, 2\)",
    ),
    "missing": (lambda s: {k: v for k, v in s.items() if k != "z_proj.bias"}, r"z_proj\.bias: expected .* no such key"),
    "foreign": (lambda s: s | {"head.weight": torch.zeros(2)}, r"head\.weight: expected no such key; got \(2,\)"),
    "another": (lambda s: {"layer.0.weight": torch.zeros(2)}, r"init_global_vectors: expected \(2, 16\); got no such"),
    "index": (
        changed(INDEX, lambda t: t.T.contiguous()),
        r"relative_position_index: expected the positions",
    ),
    "index shape": (changed(INDEX, lambda t: t[:2, :2]), r"relative_position_index: expected \(8, 8\); got \(2, 2\)"),
    "nan": (changed("z_proj.bias", lambda t: t * torch.nan), r"z_proj\.bias: expected finite weights"),
    "integers": (changed("z_proj.bias", lambda t: t.long()), r"z_proj\.bias: expected floating-point"),
    "sparse": (changed("z_proj.weight", lambda t: t.to_sparse()), r"z_proj\.weight: expected a dense tensor"),
    "number": (lambda s: s | {"z_proj.bias": 3}, r"z_proj\.bias: expected a tensor by name; got a int"),
    "list": (lambda s: list(s.values()), "tensors by name; got a list"),
    "nothing": (lambda s: {}, "tensors by name; got a dict"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_foreign_file_is_refused_by_the_first_wrong_key_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    change, message = WRONG[case]
    model = small()
    path = write(tmp_path / "file.pt", change(published_state(model)))
    with pytest.raises(CheckpointError, match=message) as refused:
        import_weights(model, path, tmp_path / "ours")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ours").exists()


class Bomb:
    """What an unwary load would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("boom"),)


def test_code_in_a_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "zip.pt", {"weight": Bomb()})
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"weight": Bomb()}))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(CheckpointError) as refused:
            import_weights(small(), tmp_path / name, tmp_path / "ours")
        assert "weights_only" not in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"hello, this is text", b"\x80\x02", b"PK\x03\x04" + bytes(400)])
def test_what_is_no_weight_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=str(tmp_path / "file")):
        import_weights(small(), tmp_path / "file", tmp_path / "ours")


def test_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        import_weights(small(), tmp_path / "file", tmp_path / "ours")


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused(container: str, tmp_path: Path) -> None:
    whole = serialised(container, tmp_path / "whole")
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        (tmp_path / "part").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(CheckpointError):
            import_weights(small(), tmp_path / "part", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def serialised(container: str, path: Path) -> bytes:
    state = published_state(small())
    {"zip": write, "legacy": legacy, "safetensors": lambda at, s: save_file(without_indices(s), at)}[container](
        path, state
    )
    return path.read_bytes()


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_damaged_bytes_are_refused_or_harmless_but_never_another_error(container: str, tmp_path: Path) -> None:
    whole, draw = serialised(container, tmp_path / "whole"), torch.Generator().manual_seed(1)
    model, refused = small(), 0
    for _ in range(20):
        damaged = bytearray(whole)
        headers = int(torch.randint(2, (), generator=draw)) * 2000 or len(whole)  # half of them where the structure is
        for at in torch.randint(min(headers, len(whole)), (3,), generator=draw).tolist():
            damaged[at] ^= 1 << int(torch.randint(8, (), generator=draw))
        (tmp_path / "damaged").write_bytes(bytes(damaged))
        try:
            import_weights(model, tmp_path / "damaged", tmp_path / "ours")
        except CheckpointError:
            refused += 1
    assert refused > (15 if container == "zip" else 2)  # only a zip archive has checksums


def test_the_geometry_of_a_kind_decides_its_index_buffers() -> None:
    model = small()
    taller = replace(model, config=small_config().resized(t_in=3, t_out=3, patch=(24, 16)))
    assert model.index_buffers[INDEX].shape == (8, 8)
    assert taller.index_buffers[INDEX].shape == (12, 12)
