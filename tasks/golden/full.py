"""Golden cases of Earthformer without stored tensors: full-size models (summaries, samples) and the pattern table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.earthformer.auxiliary import AuxiliaryEarthformer
from models.earthformer.config import EarthformerConfig
from models.earthformer.network import Earthformer
from models.earthformer.patterns import CROSS_PATTERNS, SELF_PATTERNS
from tasks.golden.cases import Document, GoldenResult
from tasks.golden.earthformer import EXACT, FLOAT32_SLACK, Findings, case_name, check_gradients
from tasks.golden.recipe import RECIPES, normal, sample_positions, unit, weight

# Two float32 sums of strongly cancelling terms: on sevir_lr ours is 3e-3 off float64, the reference 1e-3.
FLOAT32_GRADIENT = 5e-3


class FullModelLoader:
    """`model` + `stages_fp64`: a published configuration with recipe weights, checked stage by stage."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """A summary of a full-size Earthformer."""
        return document is not None and "stages_fp64" in document and "input_shape" in document.get("kwargs", {})

    def companions(self, path: Path) -> Collection[Path]:
        """None."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Stages in float64, output and gradient norms in float32."""
        assert document is not None
        findings = Findings()
        try:
            config = EarthformerConfig.model_validate(document["kwargs"])
        except ValueError as error:
            return GoldenResult(case_name(path), False, math.nan, EXACT, str(error))
        auxiliary = config.auxiliary_channels is not None
        network = (AuxiliaryEarthformer(config) if auxiliary else Earthformer(config)).eval()
        findings.require(
            "number of parameters", document["num_parameters"], sum(p.numel() for p in network.parameters())
        )
        for name, parameter in network.named_parameters():
            golden = torch.from_numpy(weight(name, parameter.shape))
            findings.require(name, document["weight_first3"].get(name), [float(v) for v in golden.flatten()[:3]])
            parameter.data.copy_(golden)
        if not findings.failures:
            inputs = _inputs(config, document)
            _check_gradients(network, inputs, document, findings)
            network.zero_grad(set_to_none=True)
            _check_stages(network.double(), [x.double() for x in inputs], document["stages_fp64"], findings)
        return findings.result(path)


def _inputs(config: EarthformerConfig, document: Document) -> list[Tensor]:
    """The recipe's inputs: as listed under `inputs`, else the network's own shapes."""
    if "inputs" in document:
        listed = {name: (told["recipe"], told["key"], told["shape"]) for name, told in document["inputs"].items()}
        order = document.get("input_order", list(listed))
        return [torch.from_numpy(RECIPES[listed[name][0]](*listed[name][1:])) for name in order]
    shapes = {"x": config.input_shape}
    if config.auxiliary_channels is not None:
        shapes["aux_enc"] = (*config.input_shape[:3], config.auxiliary_channels)
        shapes["aux_dec"] = (*config.target_shape[:3], config.auxiliary_channels)
    return [torch.from_numpy(unit(f"input.{name}", [document["batch"], *size])) for name, size in shapes.items()]


def _check_gradients(network: nn.Module, inputs: list[Tensor], document: Document, findings: Findings) -> None:
    y = network(*inputs)
    golden = document["stages_fp64"]["output"]
    allowed = FLOAT32_SLACK * document["fp32_vs_fp64"]["max_abs"] + 1e-6
    findings.compare("output in float32", _sample_error(y.detach(), golden), allowed)
    (y * torch.from_numpy(normal("cotangent.0", y.shape))).mean().backward()
    norms = document["gradients_fp32"]
    check_gradients(network, norms["per_parameter_l2"], norms["total_norm"], FLOAT32_GRADIENT, findings)


def _check_stages(network: nn.Module, inputs: list[Tensor], golden: dict[str, Any], findings: Findings) -> None:
    stages = _stages(network, inputs)
    findings.require("stages", sorted(golden), sorted(set(stages) & set(golden)))
    for stage, summary in golden.items():
        value = stages.get(stage, torch.empty(0))
        findings.require(f"shape of {stage}", summary["shape"], list(value.shape))
        if list(value.shape) == summary["shape"]:
            _check_stage(stage, value, summary, findings)


def _check_stage(stage: str, value: Tensor, golden: dict[str, Any], findings: Findings) -> None:
    largest = max(abs(golden["min"]), abs(golden["max"]))
    findings.compare(f"samples of {stage}", _sample_error(value, golden) / largest, EXACT, output=stage == "output")
    figures = {"mean": value.mean(), "std": value.std(correction=1), "min": value.min(), "max": value.max()}
    for name, figure in figures.items():
        findings.compare(f"{name} of {stage}", abs(float(figure) - golden[name]) / largest, EXACT)


def _stages(network: nn.Module, inputs: list[Tensor]) -> dict[str, Tensor]:
    """What leaves each part of the network."""
    stages: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Any], None]:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            if isinstance(output, Tensor):
                stages[name] = output
                return
            for kind, values in zip(("mem", "global"), output, strict=True):
                stages.update({f"{name}.{kind}.{level}": v for level, v in enumerate(values) if v is not None})

        return hook

    hooks = [part.register_forward_hook(keep(name)) for name, part in network.named_children()]
    with torch.no_grad():
        stages["output"] = network(*inputs)
    for handle in hooks:
        handle.remove()
    return stages


def _sample_error(value: Tensor, summary: dict[str, Any]) -> float:
    samples = torch.tensor(summary["samples"], dtype=value.dtype)
    taken = value.flatten()[torch.from_numpy(sample_positions(value.numel(), len(samples)))]
    return float((taken - samples).abs().max())


class PatternTableLoader:
    """`patterns_table.json`: every pattern's cuboids for several level shapes."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """A document with the two families of patterns."""
        return document is not None and {"self", "cross"} <= set(document)

    def companions(self, path: Path) -> Collection[Path]:
        """None."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Names, cuboids, strategies and shifts, exactly."""
        assert document is not None
        findings = Findings()
        for family, known in (("self", SELF_PATTERNS), ("cross", CROSS_PATTERNS)):
            findings.require(f"{family} patterns", sorted(document[family]), sorted(known))
            for name, rows in document[family].items():
                for row in rows:
                    findings.require(
                        f"{name} at {row['shape']}", _golden_row(row), _our_row(family, name, row["shape"])
                    )
        return findings.result(path)


def _golden_row(row: dict[str, Any]) -> list[tuple[Any, ...]]:
    keys = [key for key in ("cuboid", "cuboid_hw", "strategy", "shift", "shift_hw", "n_temporal") if key in row]
    columns = [[tuple(v) if isinstance(v, list) else v for v in row[key]] for key in keys]
    return list(zip(*columns, strict=True))


def _our_row(family: str, name: str, shape: list[int]) -> list[tuple[Any, ...]]:
    size = (shape[0], shape[1], shape[2])
    if family == "self":
        return [(c.size, "".join(c.strategy), c.shift) for c in SELF_PATTERNS.get(name, _nothing)(size)]
    return [
        (c.cuboid_hw, "".join(c.strategy), c.shift_hw, c.n_temporal) for c in CROSS_PATTERNS.get(name, _nothing)(size)
    ]


def _nothing(_size: object) -> tuple[()]:
    return ()
