"""Golden cases of PreDiff's networks with stored tensors: autoencoder, denoiser with activations, alignment network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.prediff.alignment import AlignmentNetwork
from models.prediff.autoencoder import FrameAutoencoder
from models.prediff.blocks import sinusoid
from models.prediff.denoiser import LatentDenoiser
from models.prediff.published import NetworkConfig, build, from_published, index_buffers, our_name, published_shapes
from models.prediff.published_config import config_from_published
from tasks.golden.cases import Document, GoldenResult
from tasks.golden.prediff_recipe import weight

CONFIG, TENSORS, WEIGHTS = "config.json", "io.safetensors", "weights.safetensors"
SINGLE = 1e-4  # README's tolerance: float32 result against a golden value from float32
EXACT = 1e-6  # float64 result against a golden value, where that is exact to float32's resolution
ROUNDING = 10.0  # times our own distance of float32 and float64: how far the golden float32 may be from exact
GUIDE_SCALE = 50.0
Figures = Mapping[str, Tensor]


class NetworkLoader:
    """`config.json` + `io.safetensors` (+ `weights.safetensors`, else recipe weights) of one network."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """The published arguments of a network, beside its inputs and outputs."""
        known = document is not None and bool({"latent_channels", "target_shape", "pool", "out_len"} & set(document))
        return known and path.with_name(TENSORS).is_file()

    def companions(self, path: Path) -> Collection[Path]:
        """The tensors."""
        return path.with_name(TENSORS), path.with_name(WEIGHTS)

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Every stored tensor, in float32 and in float64."""
        case = path.parent.name
        try:
            network = load_network(path)
        except ValueError as error:
            return GoldenResult(case, False, math.nan, SINGLE, str(error))
        golden = load_file(path.with_name(TENSORS))
        single = _evaluate(network.float(), golden)
        double = _evaluate(network.double(), {key: _double(value) for key, value in golden.items()})
        failures, worst = [], 0.0
        for key, value in golden.items():
            errors = relative_error(single.get(key), value), relative_error(double.get(key), value)
            rounding = relative_error(single.get(key), double[key]) if key in double else 0.0
            if not errors[0] <= SINGLE or not errors[1] <= max(EXACT, ROUNDING * rounding):
                failures.append(f"{key}: error {errors[0]:.1e} in float32, {errors[1]:.1e} in float64")
            worst = max(worst, errors[1])
        return GoldenResult(case, not failures, worst, SINGLE, "; ".join(failures[:3]))


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def load_network(path: Path) -> nn.Module:
    """The network whose published arguments are at `path`, with the weights beside it or the recipe's, in eval mode.

    Raises:
        ValueError: arguments that are not built, or weights of another network.
    """
    config = config_from_published(json.loads(path.read_bytes()))
    weights = path.with_name(WEIGHTS)
    return with_weights(config, load_file(weights) if weights.is_file() else recipe_weights(config))


def with_weights(config: NetworkConfig, published: Figures) -> nn.Module:
    """The network of `config` with published weights, in eval mode.

    Raises:
        ValueError: weights of another network.
    """
    network = build(config)
    network.load_state_dict(from_published(published, config))
    return network.eval()


def recipe_weights(config: NetworkConfig) -> dict[str, Tensor]:
    """The recipe's values of every published name."""
    indices = index_buffers(config)
    shapes = published_shapes(config)
    return {key: weight(key, shape) for key, shape in shapes.items() if key not in indices} | indices


def relative_error(value: Tensor | None, golden: Tensor) -> float:
    """max |value − golden| / max |golden|; infinite for another shape, and where nothing was computed."""
    if value is None or value.shape != golden.shape:
        return math.inf
    scale = golden.double().abs().max().clamp(min=1e-30)
    return float((value.detach().double() - golden.double()).abs().max() / scale)


def _evaluate(network: nn.Module, given: Figures) -> dict[str, Tensor]:
    """Every figure of the case from its inputs, the inputs among them."""
    if isinstance(network, FrameAutoencoder):
        with torch.no_grad():
            return dict(given) | _autoencoder(network, given)
    if isinstance(network, LatentDenoiser):
        return _inputs(given, "x", "cond", "t") | _denoiser(network, given)
    assert isinstance(network, AlignmentNetwork)
    return _inputs(given, "zt", "t", "target", "target_pixels") | _alignment(network, given)


def _inputs(given: Figures, *names: str) -> dict[str, Tensor]:
    return {name: given[name] for name in names if name in given}


def _autoencoder(network: FrameAutoencoder, given: Figures) -> dict[str, Tensor]:
    figures = _inputs(given, "posterior_noise")
    for suffix in ("", "_odd"):
        if (x := given.get(f"x{suffix}")) is not None:
            mean, logvar = network.encode(x)
            figures |= {
                f"x{suffix}": x,
                f"mean{suffix}": mean,
                f"logvar{suffix}": logvar,
                f"moments{suffix}": network.network.quant_conv(network.network.encoder(x)),
                f"std{suffix}": torch.exp(0.5 * logvar),
                f"kl{suffix}": 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1),
                f"recon{suffix}": network.decode(mean),
                f"recon_from_mode{suffix}": network.decode(mean),
            }
    if "posterior_noise" in given:
        figures["recon_from_sample"] = network(given["x"], given["posterior_noise"])[0]
        figures["z_sample"] = figures["mean"] + figures["std"] * given["posterior_noise"]
    if "z_in" in given:
        figures |= {"z_in": given["z_in"], "decoded": network.decode(given["z_in"])}
    return figures


def _denoiser(network: LatentDenoiser, given: Figures) -> dict[str, Tensor]:
    figures: dict[str, Tensor] = {"t_sinusoid": sinusoid(given["t"], network.config.base_units)}
    recorded = [key for key in given if key.startswith("act.")]
    modules = {key.removeprefix("act.").partition("#")[0] for key in recorded}
    known = dict(network.named_modules())
    hooks = [
        known[ours].register_forward_hook(_keep(figures, f"act.{name}"))
        for name in sorted(modules)
        if (ours := our_name(name, network.config)) in known
    ]
    with torch.no_grad():
        figures["out"] = network(given["x"], given["t"], given["cond"])
    for hook in hooks:
        hook.remove()
    # Residual blocks are recorded as (B, C, T, h, w).
    for key in recorded:
        if key in figures and figures[key].ndim == 5 and figures[key].shape != given[key].shape:
            figures[key] = figures[key].permute(0, 4, 1, 2, 3)
    return figures


def _keep(figures: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, Any], None]:
    calls = 0

    def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
        nonlocal calls
        figures[f"{name}#{calls}"] = output if isinstance(output, Tensor) else output[0]
        calls += 1

    return hook


def _alignment(network: AlignmentNetwork, given: Figures) -> dict[str, Tensor]:
    z, t = given["zt"], given["t"]
    with torch.no_grad():
        pred = network(z, t)
    figures = {"pred": pred}
    if "target" in given:
        target = given["target"]
        shift, potential = mean_shift(network, z, t, target)
        singles = [mean_shift(network, z[i : i + 1], t[i : i + 1], target[i : i + 1])[0] for i in range(len(z))]
        scale = f"guide{GUIDE_SCALE:.0f}"
        figures |= {f"mean_shift_batch_coupled_{scale}": shift, f"mean_shift_per_sample_{scale}": torch.cat(singles)}
        figures["potential_batch"] = potential.reshape(1)
    if "target_pixels" in given:
        objective = given["target_pixels"].mean(dim=(2, 3))
        figures |= {"objective": objective, "train_mse": (pred - objective).square().mean().reshape(1)}
    return figures


def mean_shift(network: AlignmentNetwork, z: Tensor, t: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of U = ‖mean over frames − target‖ over the batch, times the guide scale; and U.

    z (B, T, h, w, C), t (B,), target (B, 1) → shaped as z, and ().
    """
    z = z.detach().requires_grad_()
    potential = torch.linalg.vector_norm(network(z, t).mean(dim=1) - target)
    (gradient,) = torch.autograd.grad(potential, z)
    return GUIDE_SCALE * gradient, potential.detach()
