"""One step of PreDiff's denoiser at published size: our order of operations against the plain one, in one run.

The plain way copies every (B, T, h, w, C) volume to (B, C, T, h, w) and back, cuts axial cuboids by reordering, forms
scores, bias and softmax one after the other and projects the step at every depth. Pairs are interleaved and medians
taken; bfloat16 (autocast) is reported with its error. Target: not slower than plain in float32.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from models.earthformer.execution import executed
from models.prediff.architecture import DenoiserConfig
from models.prediff.presets import preset
from models.prediff.published import build

Inputs = tuple[Tensor, Tensor, Tensor]


def main(out: Path, quick: bool = False) -> dict[str, float]:
    """Measure, write them to `out` as JSON and return the figures."""
    published = preset("sevir-lr").architecture
    parts = published.resized(t_in=4, t_out=3, patch=(64, 64)) if quick else published
    figures = {"threads": torch.get_num_threads(), **_measure(parts.denoiser, pairs=3 if quick else 5)}
    out.write_text(json.dumps(figures, indent=2))
    return figures


def _measure(config: DenoiserConfig, pairs: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    network = _spoken(build(config).eval(), generator)
    z, context = (torch.randn(1, *s, generator=generator) for s in (config.target_shape, config.input_shape))
    inputs = z, torch.tensor([500]), context
    seconds: dict[str, list[float]] = {"plain": [], "fast": [], "bf16": []}
    answers: dict[str, Tensor] = {}
    with torch.inference_mode():
        for turn in range(pairs + 1):  # the first turn warms up
            for way in seconds:
                elapsed, answers[way] = _step(network, inputs, way)
                seconds[way] += [elapsed] if turn else []
    ratios = [plain / fast for plain, fast in zip(seconds["plain"], seconds["fast"], strict=True)]
    largest = float(answers["plain"].abs().max())
    return {
        **{f"{way}_seconds": statistics.median(times) for way, times in seconds.items()},
        "ratio": statistics.median(ratios),
        "fast_relative_error": float((answers["fast"] - answers["plain"]).abs().max()) / largest,
        "bf16_relative_error": float((answers["bf16"].float() - answers["plain"]).abs().max()) / largest,
    }


def _step(network: nn.Module, inputs: Inputs, way: str) -> tuple[float, Tensor]:
    with executed(network, "plain" if way == "plain" else "fast"), torch.autocast("cpu", enabled=way == "bf16"):
        started = time.perf_counter()
        answer: Tensor = network(*inputs)
        return time.perf_counter() - started, answer


def _spoken(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Weights of unit gain everywhere: a fresh network's branches are shut and would answer 0."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5
    return network


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), "--quick" in sys.argv), indent=2))
