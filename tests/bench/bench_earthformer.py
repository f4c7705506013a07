"""Earthformer's fast path against the plain one, the reference's order of operations, on the same weights in one run.

CPU: float32, batch 1; forward in evaluation, forward and backward in training with the published dropout; pairs are
interleaved and medians taken; peak memory is that of a process of its own for each way; bfloat16 (autocast) stands
beside with its error. Targets: SEVIR forward 2.0x, step 1.4x in at most 60 % of the memory; ENSO 1.3x and 1.3x.
`--device cuda`: a compiled bfloat16 training step against the plain float32 one, with loss curves of both, TFLOP/s and
the share of the matrix rate measured on the card. Target: 3x.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.configuration import build_network
from models.earthformer.execution import executed, set_execution
from models.earthformer.presets import preset_config

PRESETS = ("earthformer/sevir", "earthformer/enso")
QUICK = ("earthformer/small-64",)
Figures = dict[str, float]


def main(out: Path, quick: bool = False, device: str = "cpu", names: tuple[str, ...] = ()) -> dict[str, Figures]:
    """Measure, write them to `out` as JSON and return the figures of each preset."""
    measure = _on_cpu if device == "cpu" else _on_card
    figures = {name: measure(name, 3 if quick else 5) for name in names or (QUICK if quick else PRESETS)}
    out.write_text(json.dumps(figures, indent=2))
    return figures


def _on_cpu(name: str, pairs: int) -> Figures:
    network, x = _prepared(name, "cpu")
    figures: Figures = {"threads": torch.get_num_threads(), **_memory(name)}
    answers: dict[str, Tensor] = {}

    def forward(way: str) -> None:
        with torch.inference_mode(), executed(network, _path(way)), torch.autocast("cpu", enabled=way == "bf16"):
            answers[way] = network(x).float()

    def step(way: str) -> None:
        with executed(network, _path(way)), torch.autocast("cpu", enabled=way == "bf16"):
            loss = network(x).float().square().mean()
        network.zero_grad()
        torch.autograd.backward(loss)

    for task, run in (("forward", forward), ("step", step)):
        network.train(task == "step")
        figures |= {
            f"{task}_{key}": value for key, value in _interleaved(run, ("plain", "fast", "bf16"), pairs).items()
        }
    largest = float(answers["plain"].abs().max())
    for way in ("fast", "bf16"):
        figures[f"{way}_relative_error"] = float((answers[way] - answers["plain"]).abs().max()) / largest
    return figures


def _interleaved(run: Callable[[str], None], ways: tuple[str, ...], pairs: int) -> Figures:
    """Medians of seconds, by the clock and of processor, and of their ratios to the first way, pair by pair.

    The first turn warms up. Where other work shares the machine the processor's seconds are the fairer ones.
    """
    seconds: dict[str, dict[str, list[float]]] = {kind: {way: [] for way in ways} for kind in ("", "cpu_")}
    for turn in range(pairs + 1):
        for way in ways:
            started, used = time.perf_counter(), time.process_time()
            run(way)
            if turn:
                seconds[""][way].append(time.perf_counter() - started)
                seconds["cpu_"][way].append(time.process_time() - used)
    figures: Figures = {}
    for kind, taken in seconds.items():
        figures |= {f"{way}_{kind}seconds": statistics.median(taken[way]) for way in ways}
        for way in ways[1:]:
            ratios = [a / b for a, b in zip(taken[ways[0]], taken[way], strict=True)]
            figures[f"{way}_{kind}ratio"] = statistics.median(ratios)
    return figures


def _memory(name: str) -> Figures:
    """Peak resident memory of a training step, MB; above what a process holds with the network built."""
    peaks: dict[str, tuple[float, float]] = {}
    for way in ("plain", "fast"):
        command = [sys.executable, __file__, "-", "--peak", name, way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        before, after = (float(part) for part in done.stdout.split())
        peaks[way] = before, after
    figures = {f"step_{way}_peak_mb": after for way, (_, after) in peaks.items()}
    figures |= {f"step_{way}_above_start_mb": after - before for way, (before, after) in peaks.items()}
    figures["step_memory_share"] = peaks["fast"][1] / peaks["plain"][1]
    figures["step_memory_share_above_start"] = (
        figures["step_fast_above_start_mb"] / figures["step_plain_above_start_mb"]
    )
    return figures


def peak(name: str, way: str) -> None:
    """Print the resident memory of this process before and its peak after two training steps, MB."""
    network, x = _prepared(name, "cpu")
    set_execution(network, way)
    network.train()
    before = _resident("VmRSS")
    for _ in range(2):
        network.zero_grad()
        torch.autograd.backward(network(x).square().mean())
    print(before, _resident("VmHWM"))


def _resident(field: str) -> float:
    """Resident memory of this process, now or at its peak, MB; getrusage would begin with the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def _on_card(name: str, pairs: int, batch: int = 4, losses: int = 50) -> Figures:
    plain, x = _prepared(name, "cuda", batch)
    fast, _ = _prepared(name, "cuda", batch)
    set_execution(plain, "plain")
    compiled: nn.Module = torch.compile(fast)  # type: ignore[assignment]
    networks = {"plain": (plain.train(), plain), "fast": (compiled.train(), fast)}
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(plain(x).square().mean())
    target = x[:, -1:].expand(-1, plain(x).shape[1], -1, -1, -1)
    optimizers = {way: torch.optim.AdamW(owner.parameters(), 1e-4) for way, (_, owner) in networks.items()}
    curves: dict[str, list[Tensor]] = {"plain": [], "fast": []}

    def step(way: str) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=way == "fast"):
            loss = nn.functional.mse_loss(networks[way][0](x), target)
        optimizers[way].zero_grad()
        torch.autograd.backward(loss)
        optimizers[way].step()
        curves[way].append(loss.detach())
        torch.cuda.synchronize()

    for _ in range(losses):
        step("plain")
        step("fast")
    figures = _interleaved(step, ("plain", "fast"), max(pairs, 10))
    plain_curve, fast_curve = (torch.stack(curves[way]).float() for way in ("plain", "fast"))
    rate = counter.get_total_flops() / figures["fast_seconds"] / 1e12
    matrix = _matrix_rate(torch.bfloat16)
    return figures | {
        "batch": batch,
        "steps_per_curve": len(plain_curve),
        "last_loss_plain": float(plain_curve[-1]),
        "last_loss_fast": float(fast_curve[-1]),
        "largest_relative_difference_of_losses": float(((fast_curve - plain_curve) / plain_curve).abs().max()),
        "tflop_per_s": rate,  # counted on the plain path: what the fast one saves counts as speed
        "card_bf16_matrix_tflop_per_s": matrix,
        "card_tf32_off_matrix_tflop_per_s": _matrix_rate(torch.float32),
        "share_of_matrix_rate": rate / matrix,
    }


def _matrix_rate(dtype: torch.dtype, size: int = 8192, repeats: int = 20) -> float:
    """TFLOP/s of a square matrix product on the card."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - started) / 1e12


def _prepared(name: str, device: str, batch: int = 1) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    architecture = preset_config(name).architecture
    network = build_network(architecture).to(device)
    return network, torch.rand(batch, *architecture.input_shape, device=device)


def _path(way: str) -> str:
    return "plain" if way == "plain" else "fast"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", action="append", default=[])
    parser.add_argument("--peak", nargs=2, metavar=("PRESET", "WAY"))
    given = parser.parse_args()
    if given.peak:
        peak(*given.peak)
    else:
        main(given.out, given.quick, given.device, tuple(given.preset))
