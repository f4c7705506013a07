"""Golden cases of PreDiff's training: diffusion loss and gradients, autoencoder losses, weight average, rate."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.prediff.autoencoder import FrameAutoencoder
from models.prediff.autoencoder_losses import (
    AutoencoderLossConfig,
    GeneratorLoss,
    discriminator_loss,
    generator_loss,
)
from models.prediff.denoiser import LatentDenoiser
from models.prediff.discriminator import PatchDiscriminator
from models.prediff.objective import DiffusionLoss, DiffusionObjective
from models.prediff.published import our_name
from models.prediff.schedule import mix
from tasks.golden.cases import Document, GoldenResult
from tasks.golden.earthformer import case_name
from tasks.golden.prediff_diffusion import Figures, Pairs, compare, sibling, tensor_names
from tasks.golden.prediff_networks import SINGLE
from tasks.golden.prediff_recipe import weight
from tasks.training.optimisation import MovingAverage, reference_rate

_AVERAGES = re.compile(r"shadow_weight_after_each_of_(\d+)_updates")


class DiffusionLossLoader:
    """One batch through noise, denoiser and loss; the norms of its gradients in a JSON file beside."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Tensors with clean and noisy latents and a loss, or gradient norms beside such."""
        if document is not None:
            return "total_grad_norm_network" in document and _inputs_of(path).is_file()
        return {"z0", "zt", "loss"} <= tensor_names(path)

    def companions(self, path: Path) -> Collection[Path]:
        """None: tensors and gradients are two cases."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Noisy latent, answer and losses; or the gradients of every parameter."""
        if document is not None:
            return compare(path, _gradient_pairs(path, document), SINGLE)
        return compare(path, _loss_pairs(path, load_file(path)), SINGLE)


class AutoencoderLossLoader:
    """One training step of autoencoder and discriminator, before or after the discriminator's start."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Tensors with a reconstruction and the gradient of the last convolution."""
        return {"rec", "grad_conv_out", "d_loss"} <= tensor_names(path)

    def companions(self, path: Path) -> Collection[Path]:
        """None."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Losses, weights and gradients of both; and that ours leaves nothing in the discriminator."""
        return compare(path, _autoencoder_pairs(path, load_file(path)), SINGLE)


class AverageLoader:
    """A parameter that grows by 0.1 n before update n, and its moving average."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Tensors with averages after each update."""
        return any(_AVERAGES.fullmatch(name) for name in tensor_names(path))

    def companions(self, path: Path) -> Collection[Path]:
        """None."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """The average after every update."""
        return compare(path, _average_pairs(load_file(path)), 1e-6)


class RateLoader:
    """Warm-up from a share of the peak rate, then a cosine."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """A JSON file with the rates of every step at its top level."""
        return document is not None and {"lr_at_step", "warmup_min_ratio", "base_lr"} <= set(document)

    def companions(self, path: Path) -> Collection[Path]:
        """None."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Every rate."""
        assert document is not None
        base, total, warm = document["base_lr"], document["total_steps"], document["warmup_steps"]
        start, floor = document["warmup_min_ratio"], document["min_lr_ratio"]
        rates = [
            start * base + (1.0 - start) * rate if step < warm else rate
            for step in range(len(document["lr_at_step"]))
            for rate in [reference_rate(step, total, base=base, warmup=warm / total, floor=floor)]
        ]
        worst = max(abs(ours - golden) / base for ours, golden in zip(rates, document["lr_at_step"], strict=True))
        return GoldenResult(case_name(path), worst <= 1e-9, worst, 1e-9)


def _inputs_of(path: Path) -> Path:
    return path.with_name(path.name.replace("grads", "loss")).with_suffix(".safetensors")


def _run(path: Path, given: Figures, *, learn: bool) -> tuple[LatentDenoiser, DiffusionObjective, DiffusionLoss]:
    denoiser = cast(LatentDenoiser, sibling(path, "tiny_denoiser"))
    objective = DiffusionObjective(learn_log_variance=learn)
    objective.log_variance.data.copy_(given["logvar"])
    with torch.set_grad_enabled(learn):
        loss = objective(denoiser, given["z0"], given["cond"], given["t"], given["noise"])
    return denoiser, objective, loss


def _loss_pairs(path: Path, golden: Figures) -> Pairs:
    denoiser, objective, loss = _run(path, golden, learn=False)
    zt = mix(objective.path, golden["z0"], golden["noise"], golden["t"])
    with torch.no_grad():
        yield "model_out", denoiser(zt, golden["t"], golden["cond"]), golden["model_out"]
    yield "zt", zt, golden["zt"]
    bound = (objective.schedule.bound_weights[golden["t"]] * loss.per_sample).mean()
    ours = {
        "loss": loss.total,
        "loss_gamma": loss.weighted.mean(),
        "loss_simple": loss.per_sample.mean(),
        "loss_vlb": bound,
        "logvar": objective.log_variance.detach().mean(),
    }
    for name, value in golden.items():
        if name == "loss" or name.startswith("log."):
            yield name, ours[name.rpartition(".")[2]], value


def _gradient_pairs(path: Path, document: Document) -> Pairs:
    given = load_file(_inputs_of(path))
    denoiser, objective, loss = _run(path, given, learn=True)
    torch.autograd.backward(loss.total)
    yield "loss", loss.total.detach(), torch.tensor(document["loss"])
    yield "loss of each sample", loss.per_sample, torch.tensor(document["loss_simple_per_sample"])
    taught = objective.log_variance.grad
    assert taught is not None
    for step, golden in document["logvar_grad_nonzero"].items():
        yield f"gradient of the log-variance at {step}", taught[int(step)], torch.tensor(golden)
    gradients = {name: _gradient(parameter) for name, parameter in denoiser.named_parameters()}
    total = document["total_grad_norm_network"]
    yield "norm of all gradients", _norm(gradients.values()), torch.tensor(total)
    # Gradients that cancel to rounding noise are compared on the scale of the whole; that of their sums, over as many
    # terms, differs by up to 1e-7 of it with the number of threads.
    for name, golden in document["params"].items():
        ours = gradients[our_name(name, denoiser.config)]
        for key, value, share in (("l2", ours.norm(), 1e-3), ("sum", ours.sum(), 2e-3)):
            scale = max(abs(golden[key]), share * total)
            yield f"{key} of {name}", 1.0 + (value - golden[key]) / scale, torch.tensor(1.0)


def _autoencoder_pairs(path: Path, golden: Figures) -> Pairs:
    step, start = (int(number) for number in re.findall(r"\d+", path.stem)[:2])
    autoencoder = cast(FrameAutoencoder, sibling(path, "tiny_vae"))
    discriminator = _discriminator()
    reconstruction, mean, log_variance = autoencoder(golden["x"], golden["posterior_noise"])
    yield "rec", reconstruction.detach(), golden["rec"]

    def judged(step: int) -> GeneratorLoss:
        config = AutoencoderLossConfig(discriminator_start=start)
        last = autoencoder.last_layer
        return generator_loss(
            config,
            golden["x"],
            reconstruction,
            mean,
            log_variance,
            discriminator=discriminator,
            last_weight=last,
            step=step,
        )

    loss, opinion = judged(step), judged(start)
    torch.autograd.backward(loss.total, retain_graph=True)
    generator = [_gradient(parameter) for parameter in autoencoder.parameters()]
    # Golden files also record the opinion of a discriminator that does not count yet.
    yield "loss", loss.total.detach(), golden["loss"]
    yield "nll_loss", loss.reconstruction, golden["train.nll_loss"]
    yield "kl_loss", loss.kl, golden["train.kl_loss"]
    yield "g_loss", opinion.adversarial, golden["train.g_loss"]
    yield "d_weight", opinion.weight, golden["train.d_weight"]
    yield "grad_conv_out", _gradient(autoencoder.last_layer), golden["grad_conv_out"]
    yield "ae_grad_norm", _norm(generator), golden["ae_grad_norm"]
    yield "leak", 1.0 + _norm(map(_gradient, discriminator.parameters())), torch.ones(1)
    yield from _discriminator_pairs(golden, discriminator, reconstruction, step, start)
    yield "leak of the reference", _reference_leak(golden, discriminator, reconstruction, loss), golden[_LEAK]


_LEAK = "disc_grad_leak_norm_from_generator_pass"


def _discriminator_pairs(
    golden: Figures, discriminator: nn.Module, reconstruction: Tensor, step: int, start: int
) -> Pairs:
    config = AutoencoderLossConfig(discriminator_start=start)
    frames = golden["x"]
    loss = discriminator_loss(config, frames, reconstruction, discriminator=discriminator, step=step)
    opinion = discriminator_loss(config, frames, reconstruction, discriminator=discriminator, step=start)
    yield "disc_loss", loss.total.detach(), golden["d_loss"]
    yield "logits_real", opinion.logits_real, golden["train.logits_real"]
    yield "logits_fake", opinion.logits_fake, golden["train.logits_fake"]
    if loss.total.requires_grad:
        torch.autograd.backward(loss.total)
    yield "disc_grad_norm", _norm(map(_gradient, discriminator.parameters())), golden["disc_grad_norm"]


def _reference_leak(golden: Figures, discriminator: nn.Module, reconstruction: Tensor, loss: GeneratorLoss) -> Tensor:
    """Norm of what the generator's pass leaves in a discriminator that was not frozen."""
    pushed = -loss.weight * discriminator(reconstruction).mean()
    return _norm(torch.autograd.grad(pushed, list(discriminator.parameters()), retain_graph=True))


def _discriminator() -> PatchDiscriminator:
    """The published discriminator with recipe weights, in training mode."""
    discriminator = PatchDiscriminator()
    state = discriminator.state_dict()
    known: Mapping[str, Tensor] = {
        key: value if key.endswith("num_batches_tracked") else weight(key, value.shape) for key, value in state.items()
    }
    discriminator.load_state_dict(known)
    return discriminator.train()


def _average_pairs(golden: Figures) -> Pairs:
    (name,) = (name for name in golden if _AVERAGES.fullmatch(name))
    network = nn.Linear(1, 1, bias=False)
    network.weight = nn.Parameter(golden["param0"].clone())
    average = MovingAverage(network)
    for update, expected in enumerate(golden[name], start=1):
        network.weight.data += 0.1 * update
        average.update(network, update)
        yield f"average after update {update}", average.weights["weight"], expected


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach()


def _norm(gradients: Iterable[Tensor]) -> Tensor:
    return torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt()
