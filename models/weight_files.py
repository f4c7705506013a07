"""Foreign weight files read without running anything of theirs: torch.save, Lightning checkpoints, safetensors."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoint import CheckpointError

Shape = tuple[int, ...]
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
# Everything torch's restricted unpickler was seen to raise on damaged bytes.
_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError,
    ArithmeticError, AssertionError, MemoryError, struct.error,
)  # fmt: skip


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """The tensors of `path` by name, on CPU, as they are; of a Lightning checkpoint, its "state_dict".

    Raises:
        CheckpointError: damaged, truncated, of another kind, or holding more than tensors (which is not loaded).
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith((_ZIP, _PICKLE)):
        return _tensors(_load_torch(path, zipped=head.startswith(_ZIP)), path)
    if head[8:] != b"{":
        raise CheckpointError(f"expected a file of torch.save or safetensors; {path} is neither")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    return tensors


def _load_torch(path: Path, *, zipped: bool) -> object:
    try:
        if zipped and (damaged := zipfile.ZipFile(path).testzip()):
            raise CheckpointError(f"{path} is damaged: checksum of {damaged}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # what it cannot read, it refuses
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from error
    except CheckpointError:
        raise
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read as tensors: {_reason(error)}") from error
    return loaded


def _reason(error: BaseException) -> str:
    """One line, without torch's advice to trust the file."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds a {found[1]}, which is code, not weights"
    if found := re.search(r"WeightsUnpickler error: ([^.\n]+)", text):
        return found[1]
    if "weights_only" in text:
        return "it holds more than tensors"
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:200]


def _tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise CheckpointError(f"expected {path} to hold tensors by name; got a {type(loaded).__name__}")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {key}: expected a tensor by name; got a {type(value).__name__}")
        if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise CheckpointError(f"{path}: {key}: expected a dense tensor; got {value.layout} on {value.device}")
    return dict(loaded)


def strip_prefix(
    state: Mapping[str, Tensor], expected: Mapping[str, Shape], prefixes: Sequence[str]
) -> dict[str, Tensor]:
    """`state` below the one of `prefixes` that leaves most `expected` names (the first of equals).

    Below a prefix lies a training's network among its losses and metrics: what does not carry it is left out.
    """

    def found(prefix: str) -> int:
        return sum(f"{prefix}{key}" in state for key in expected)

    best = max(prefixes, key=found)
    return {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}


def check_shapes(state: Mapping[str, Tensor], expected: Mapping[str, Shape], where: str) -> None:
    """Compare names and shapes one by one, in the order of `expected`.

    Raises:
        CheckpointError: naming the first wrong key and both shapes.
    """
    for key in [*expected, *(key for key in state if key not in expected)]:
        wanted = expected.get(key, "no such key")
        got = tuple(state[key].shape) if key in state else "no such key"
        if wanted != got:
            raise CheckpointError(f"{where}: {key}: expected {wanted}; got {got}")
