"""Golden cases of Earthformer with stored tensors: single modules and small models."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.earthformer.cuboids import relative_position_index
from tasks.golden.cases import Document, GoldenResult
from tasks.golden.modules import KINDS, build_module
from tasks.golden.recipe import normal

EXACT = 1e-6  # float64 result against a golden value stored in float32
FLOAT32_SLACK = 20.0  # times the reference's own float32 error


class ModuleLoader:
    """`NAME.json` + `NAME.safetensors`: weights, inputs, outputs, input gradients and gradient norms of one module."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """A document whose `kind` we build."""
        return document is not None and document.get("kind") in KINDS and path.with_suffix(".safetensors").is_file()

    def companions(self, path: Path) -> Collection[Path]:
        """The tensors."""
        return (path.with_suffix(".safetensors"),)

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Forward in float64 and float32, backward in float64."""
        findings = Findings()
        tensors = load_file(path.with_suffix(".safetensors"))
        try:
            module = build_module(document["kind"], document["kwargs"]).eval() if document else nn.Identity()
        except (TypeError, ValueError) as error:
            return GoldenResult(case_name(path), False, math.nan, EXACT, str(error))
        assert document is not None
        check_parameters(module, {k[6:]: v for k, v in tensors.items() if k.startswith("param/")}, document, findings)
        if not findings.failures:
            _check_single(module.float(), document, tensors, findings)
            _check_double(module.double(), document, tensors, findings)
        return findings.result(path)


class Findings:
    """Collects the comparisons of one case; `worst` is that of the float64 outputs."""

    def __init__(self) -> None:
        self.worst = 0.0
        self.failures: list[str] = []

    def compare(self, what: str, error: float, tolerance: float, *, output: bool = False) -> None:
        """Note `error`; beyond `tolerance`, or NaN, it is a failure."""
        if output:
            self.worst = error if math.isnan(error) else max(self.worst, error)
        if not error <= tolerance:
            self.failures.append(f"{what}: error {error:.1e}, tolerance {tolerance:.1e}")

    def require(self, what: str, expected: object, got: object) -> None:
        """Note whether two things are equal."""
        if expected != got:
            self.failures.append(f"{what}: expected {expected}; got {got}")

    def result(self, path: Path) -> GoldenResult:
        """The verdict."""
        return GoldenResult(case_name(path), not self.failures, self.worst, EXACT, "; ".join(self.failures[:3]))


def check_parameters(module: nn.Module, golden: dict[str, Tensor], document: Document, findings: Findings) -> None:
    """Same names, shapes and count of parameters, same position indices; on success the golden weights are loaded."""
    state = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    findings.require("parameters", {key: tuple(value.shape) for key, value in golden.items()}, state)
    findings.require("number of parameters", document["num_parameters"], sum(p.numel() for p in module.parameters()))
    for key, buffer in document["buffers"].items():
        layer = module.get_submodule(key.rpartition(".")[0])
        rows, columns = buffer["shape"]
        index = relative_position_index(layer.bias_cuboid, rows, columns, torch.device("cpu"))  # type: ignore[arg-type]
        summary = int(index.sum()), int(index.flatten()[0]), int(index.flatten()[-1])
        findings.require(key, (buffer["sum"], buffer["first"], buffer["last"]), summary)
    if not findings.failures:
        module.load_state_dict(golden)


def _check_single(module: nn.Module, document: Document, tensors: dict[str, Tensor], findings: Findings) -> None:
    with torch.no_grad():
        outputs = _outputs(module, [tensors[f"input/{name}"] for name in document["input_order"]])
    for index, (y, error) in enumerate(zip(outputs, document["ref_fp32_vs_fp64_max_abs"], strict=True)):
        distance = float((y - tensors[f"output/{index}"]).abs().max())
        findings.compare(f"output {index} in float32", distance, FLOAT32_SLACK * error + 1e-6)


def _check_double(module: nn.Module, document: Document, tensors: dict[str, Tensor], findings: Findings) -> None:
    inputs = {name: tensors[f"input/{name}"].double().requires_grad_() for name in document["input_order"]}
    outputs = _outputs(module, list(inputs.values()))
    loss = torch.zeros((), dtype=torch.float64)
    for index, y in enumerate(outputs):
        findings.compare(f"output {index}", relative_error(y.detach(), tensors[f"output/{index}"]), EXACT, output=True)
        loss = loss + (y * torch.from_numpy(normal(f"cotangent.{index}", y.shape)).double()).sum()
    torch.autograd.backward(loss)
    for name, x in inputs.items():
        if f"grad_input/{name}" in tensors and x.grad is not None:
            findings.compare(f"gradient of {name}", relative_error(x.grad, tensors[f"grad_input/{name}"]), EXACT)
    check_gradients(module, document["grad_norms"], document["grad_total_norm"], EXACT, findings)


def check_gradients(
    module: nn.Module, golden: dict[str, float | None], total: float, tolerance: float, findings: Findings
) -> None:
    """L2 norm of each parameter's gradient against `golden` (None: no gradient); `total` over all parameters."""
    for name, parameter in module.named_parameters():
        expected = golden.get(name)
        if expected is None or parameter.grad is None:
            findings.require(f"gradient of {name}", expected or None, parameter.grad)
        else:
            error = abs(float(parameter.grad.norm()) - expected) / max(expected, 1e-3 * total)
            findings.compare(f"gradient norm of {name}", error, tolerance)


def _outputs(module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    result = module(*inputs)
    return [result] if isinstance(result, Tensor) else [part for part in result if part is not None]


def relative_error(value: Tensor, golden: Tensor) -> float:
    """max |value − golden| / max |golden|; infinite for another shape."""
    if value.shape != golden.shape:
        return math.inf
    return float((value - golden).abs().max() / golden.abs().max().clamp(min=1e-30))


def case_name(path: Path) -> str:
    """Folder and name of a case."""
    return "/".join(path.with_suffix("").parts[-2:])
