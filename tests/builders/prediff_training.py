"""A program that trains each PreDiff network for a few steps on channels-last inputs; it prints a line per case.

Run in a process of its own: the fault it looks for ends the process.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.prediff.presets import preset
from models.prediff.published import build

STEPS = 4
TINY = preset("prediff/tiny").architecture


def train(
    name: str, network: nn.Module, loss: Callable[[nn.Module], Tensor], *, frozen: str = "", bf16: bool = False
) -> None:
    """`STEPS` steps of Adam; parameters whose name contains `frozen` stay."""
    for key, parameter in network.named_parameters():
        parameter.requires_grad_(not frozen or frozen not in key)
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            value = loss(network.train())
        value.backward()
        optimiser.step()
        losses.append(float(value.detach()))
    assert losses[-1] < losses[0], (name, losses)
    print(name, flush=True)


def main() -> None:
    """Every network as it is trained, with frozen first layers, in bfloat16, and with channels-last weights."""
    torch.manual_seed(0)
    z, context = torch.randn(4, *TINY.denoiser.target_shape), torch.randn(4, *TINY.denoiser.input_shape)
    noise, t = torch.randn_like(z), torch.tensor([0, 10, 500, 999])
    frames = torch.rand(4, 3, *TINY.patch, 1)
    views = frames.flatten(0, 1).permute(0, 3, 1, 2)

    def denoise(network: nn.Module) -> Tensor:
        return (network(z + noise, t, context) - noise).square().mean()

    def align(network: nn.Module) -> Tensor:
        return (network(z + noise, t) - 0.3).square().mean()

    def reconstruct(network: nn.Module) -> Tensor:
        return (network(views)[0] - views).abs().mean()

    def decode(network: nn.Module) -> Tensor:
        return (network.decode_sequence(z) - frames).abs().mean()

    for bf16 in (False, True):
        train(f"denoiser {bf16}", build(TINY.denoiser), denoise, bf16=bf16)
        train(f"alignment {bf16}", build(TINY.alignment), align, bf16=bf16)
        train(f"autoencoder {bf16}", build(TINY.autoencoder), reconstruct, bf16=bf16)
    train("denoiser with a frozen stem", build(TINY.denoiser), denoise, frozen="stem")
    train("alignment with a frozen stem", build(TINY.alignment), align, frozen="conv")
    last = build(TINY.autoencoder).to(memory_format=torch.channels_last)
    train("channels-last decoder with frozen convolutions", last, decode, frozen="conv_in")
    train("channels-last autoencoder with frozen convolutions", last, reconstruct, frozen="conv_in")


if __name__ == "__main__":
    main()
