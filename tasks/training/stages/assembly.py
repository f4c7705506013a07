"""A PreDiff from its trained parts: scales and readings measured on its latents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from models.checkpoint import load_checkpoint, save_checkpoint
from models.prediff.calibration import ReadingCalibration, calibrate_reading
from models.prediff.configuration import PreDiffConfig
from models.prediff.network import PreDiffNetwork
from tasks.training.stages.denoiser import latent_batch
from tasks.training.stages.latents import LatentSet

if TYPE_CHECKING:
    from torch import nn

_READ_WINDOWS = 64  # calibrate_reading denoises so many at once


def start_network(config: PreDiffConfig, anchor: Path | None, seed: int) -> PreDiffNetwork:
    """Fresh networks with the anchor's trained weights among them."""
    torch.manual_seed(seed)
    network = PreDiffNetwork(config)
    if network.anchor is not None and anchor is not None:
        _, trained = load_checkpoint(anchor)
        network.anchor.load_state_dict(trained.state_dict())
        network.anchor.requires_grad_(False)
    return network


def take_weights(module: nn.Module, path: Path) -> None:
    """Give a part the weights that its stage left."""
    module.load_state_dict(load_file(path))


def measure_scales(network: PreDiffNetwork, train: LatentSet, floor: float, *, latents: bool = True) -> None:
    """Set the buffers from training latents; `floor` is the least observed value, network space.

    Without `latents` only the floor: imported networks know the autoencoder's latents as they are.
    """
    network.floor.fill_(floor)
    if not latents:
        return
    known = torch.cat([train.context.flatten(0, -2), train.future[::4].flatten(0, -2)])
    network.latent_mean.copy_(known.mean(dim=0))
    network.latent_std.copy_(known.std(dim=0).clamp(min=1e-6))
    if train.anchor is None:
        network.residual_std.fill_(1.0)
        return
    residual = (train.future - train.anchor) / network.latent_std  # (n, T_out, h, w, c)
    mean = residual.mean(dim=(0, 2, 3))  # (T_out, c): what the anchor misses everywhere
    network.residual_mean.copy_(mean)
    own = (residual - mean[:, None, None]).square().mean(dim=(0, 2, 3)).sqrt().clamp(min=1e-3)  # (T_out, c)
    overall = own.square().mean(dim=1, keepdim=True).sqrt()
    # Half-way to whiteness: strong components keep a lead, and are settled first on the way from noise.
    network.residual_std.copy_((own * overall).sqrt())


def usual_intensity(latents: LatentSet) -> float:
    """Mean of the constraint's values over the training windows: the estimator's scale."""
    values = latents.values
    return max(float(values[~values.isnan()].mean()), 1e-6)


def measure_reading(network: PreDiffNetwork, latents: LatentSet, seed: int) -> ReadingCalibration:
    """How much of the constraint's value predictions from noise still show, on at most 64 windows."""
    picks = torch.arange(min(len(latents), _READ_WINDOWS))
    batch = latent_batch(network, latents, picks, None)
    anchor = batch.get("anchor")

    def denoise(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        answer: Tensor = network.denoiser(z, t, context, anchor)
        return answer

    def estimate(z: Tensor, t: Tensor) -> Tensor:
        value: Tensor = network.alignment(z, t, anchor)
        return value

    network.eval()
    return calibrate_reading(denoise, network.objective(), estimate, batch["residual"], batch["context"], seed=seed)


def save_prediff(folder: Path, config: PreDiffConfig, network: PreDiffNetwork) -> Path:
    """Write the whole PreDiff as one checkpoint."""
    return save_checkpoint(folder, config, network.state_dict())
