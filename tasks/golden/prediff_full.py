"""Golden summaries of PreDiff's networks at published size, with recipe weights: shape, moments and 64 samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.prediff.alignment import AlignmentNetwork
from models.prediff.autoencoder import FrameAutoencoder
from models.prediff.denoiser import LatentDenoiser
from models.prediff.presets import preset
from models.prediff.published import NetworkConfig
from models.prediff.published_config import config_from_published
from tasks.golden.cases import Document, GoldenResult
from tasks.golden.prediff_networks import EXACT, SINGLE, mean_shift, recipe_weights, relative_error, with_weights
from tasks.golden.prediff_recipe import image, latent, sample_positions

# The key that tells which network a summary is of.
_NETWORKS = {"encode.moments": "autoencoder", "outputs": "denoiser", "pred(b,t,1)": "alignment"}
_ALIGNMENT_STEPS = (10, 700)
_DOUBLE = ("f64.", "f64_")
# What was computed, and the golden figure: a summary or plain numbers.
Pair = tuple[str, Tensor, Any]


class FullNetworkLoader:
    """A JSON summary of one network; its arguments are beside it (`config`, `config.json`), or the published ones."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Figures of a network, with its number of parameters."""
        return document is not None and "params" in document and _network_of(document) is not None

    def companions(self, path: Path) -> Collection[Path]:
        """None."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Every figure: those that came from float64 in float64, the others in float32."""
        assert document is not None
        config = _config(path, document)
        network = with_weights(config, recipe_weights(config))
        parameters = sum(p.numel() for p in network.parameters())
        failures = [] if parameters == document["params"] else [f"params: {document['params']}, got {parameters}"]
        worst = 0.0
        for name, value, golden in _pairs(network, document):
            double = value.dtype == torch.float64
            error, tolerance = _error(value, golden), EXACT if double else SINGLE
            if not error <= tolerance:
                failures.append(f"{name} in {value.dtype}: error {error:.1e}, tolerance {tolerance:.1e}")
            worst = max(worst, error)
        return GoldenResult(f"{path.parent.name}/{path.stem}", not failures, worst, SINGLE, "; ".join(failures[:3]))


def _network_of(document: Document) -> str | None:
    return next((network for key, network in _NETWORKS.items() if key in document), None)


def _config(path: Path, document: Document) -> NetworkConfig:
    if "config" in document:
        return config_from_published(document["config"])
    beside = path.with_name("config.json")
    if beside.is_file():
        return config_from_published(json.loads(beside.read_bytes()))
    config: NetworkConfig = getattr(preset("prediff/sevir-lr").architecture, str(_network_of(document)))
    return config


def _pairs(network: nn.Module, document: Document) -> Iterator[Pair]:
    """All figures in float32, then those of float64: the network's precision is changed in between."""
    if isinstance(network, AlignmentNetwork):
        yield from _alignment(network.float(), document)
        return
    evaluate = _autoencoder if isinstance(network, FrameAutoencoder) else _denoiser
    yield from evaluate(network.float(), _only(document, double=False))
    yield from evaluate(network.double(), _only(document, double=True))


def _only(document: Document, *, double: bool) -> dict[str, Any]:
    """Figures of one precision, without the prefix that tells it."""
    figures = {key: value for key, value in document.items() if key.startswith(_DOUBLE) == double}
    return {key.removeprefix(_DOUBLE[0]).removeprefix(_DOUBLE[1]): value for key, value in figures.items()}


def _autoencoder(network: nn.Module, golden: Mapping[str, Any]) -> Iterator[Pair]:
    assert isinstance(network, FrameAutoencoder)
    dtype, config = network.last_layer.dtype, network.config
    if not any(isinstance(figure, dict) for figure in golden.values()):
        return
    batch, _, h, w = golden["encode.moments"]["shape"]
    size = h * config.downscale, w * config.downscale
    x = image("input:vae.x", (batch, config.in_channels, *size)).to(dtype)
    z = latent("input:vae.z", (batch, config.latent_channels, h, w)).to(dtype)
    with torch.no_grad():
        moments = network.network.quant_conv(network.network.encoder(x))
        mean, logvar = network.encode(x)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)
        figures: dict[str, Callable[[], Tensor]] = {
            "encode.moments": lambda: moments,
            "encode.mean": lambda: mean,
            "encode.std": lambda: torch.exp(0.5 * logvar),
            "encode.kl": lambda: kl,
            "decode(z)": lambda: network.decode(z),
            "recon_mode": lambda: network.decode(mean),
        }
        for key, figure in golden.items():
            if key != "params":
                yield key, figures[key]() if key in figures else torch.empty(0), figure


def _denoiser(network: nn.Module, golden: Mapping[str, Any]) -> Iterator[Pair]:
    assert isinstance(network, LatentDenoiser)
    dtype = network.final_proj.weight.dtype
    for step, figure in golden.get("outputs", {}).items():
        x = latent("input:unet.x", figure["shape"]).to(dtype)
        context = latent("input:unet.cond", (figure["shape"][0], *network.config.input_shape)).to(dtype)
        with torch.no_grad():
            yield f"output at {step}", network(x, torch.full((len(x),), int(step)), context), figure


def _alignment(network: AlignmentNetwork, golden: Mapping[str, Any]) -> Iterator[Pair]:
    pred, target = torch.tensor(golden["pred(b,t,1)"]), torch.tensor(golden["target"])
    z = latent("input:align.zt", (len(pred), *network.config.input_shape))
    t = torch.tensor(golden.get("t", _ALIGNMENT_STEPS))
    with torch.no_grad():
        yield "pred", network(z, t).reshape(pred.shape), golden["pred(b,t,1)"]
    for key, figure in golden.items():
        if key.endswith("coupled"):
            yield key, mean_shift(network, z, t, target)[0], figure
        elif key.endswith("single"):
            for i, single in enumerate(figure):
                part = slice(i, i + 1)
                yield f"{key} {i}", mean_shift(network, z[part], t[part], target[part])[0], single


def _error(value: Tensor, golden: Any) -> float:
    """Largest error of samples, mean, std, extremes and norm, relative to the largest golden value."""
    if not isinstance(golden, dict):
        return relative_error(value, torch.tensor(golden, dtype=value.dtype))
    if list(value.shape) != golden["shape"]:
        return float("inf")
    value = value.double()
    if golden["sample_index"] != sample_positions(value.numel()).tolist():
        return float("inf")
    figures = [value.mean(), value.std(correction=0), value.min(), value.max()]
    ours = torch.cat([value.flatten()[golden["sample_index"]], torch.stack(figures)])
    theirs = golden["sample_value"] + [golden[name] for name in ("mean", "std", "min", "max")]
    scale = max(abs(golden["min"]), abs(golden["max"]))
    norm = torch.linalg.vector_norm(value) / golden["l2"] - 1
    return max(float((ours - torch.tensor(theirs).double()).abs().max() / scale), float(norm.abs()))
