"""Losses of the frame autoencoder: by hand, balanced, and without a trace in the other network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.prediff.autoencoder_losses import (
    AutoencoderLossConfig,
    GeneratorLoss,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    kl_divergence,
    reconstruction_error,
)
from models.prediff.discriminator import PatchDiscriminator, frozen
from models.prediff.perceptual import PerceptualDistance, with_weights


class Decoder(nn.Module):
    """A convolution that stands for the decoder's last one."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        out: Tensor = self.last(frames)
        return out


def frames(seed: int = 0) -> Tensor:
    return torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


def judged(step: int, decoder: Decoder, discriminator: nn.Module) -> GeneratorLoss:
    mean = torch.zeros(2, 4, 4, 4)
    return generator_loss(
        AutoencoderLossConfig(discriminator_start=10),
        frames(),
        decoder(frames()),
        mean,
        mean,
        discriminator=discriminator,
        last_weight=decoder.last.weight,
        step=step,
    )


def test_the_published_discriminator_has_its_published_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in PatchDiscriminator().parameters()) == 2_763_585


def test_the_generators_pass_leaves_no_gradient_in_the_discriminator() -> None:
    torch.manual_seed(0)
    decoder, discriminator = Decoder(), PatchDiscriminator()
    loss = judged(10, decoder, discriminator)
    torch.autograd.backward(loss.total)
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    assert decoder.last.weight.grad is not None


def test_the_discriminators_pass_leaves_no_gradient_in_the_decoder() -> None:
    torch.manual_seed(0)
    decoder, discriminator = Decoder(), PatchDiscriminator()
    config = AutoencoderLossConfig(discriminator_start=0)
    loss = discriminator_loss(config, frames(), decoder(frames()), discriminator=discriminator, step=0)
    torch.autograd.backward(loss.total)
    assert decoder.last.weight.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_before_its_start_the_discriminator_is_not_asked() -> None:
    decoder, refuses = Decoder(), nn.Module()  # a call would raise
    loss = judged(9, decoder, refuses)
    assert float(loss.weight) == float(loss.adversarial) == 0.0
    torch.testing.assert_close(loss.total.detach(), loss.reconstruction)
    config = AutoencoderLossConfig(discriminator_start=10)
    assert float(discriminator_loss(config, frames(), frames(), discriminator=refuses, step=9).total) == 0.0


def test_both_losses_pull_at_the_last_weight_by_the_weighted_ratio() -> None:
    torch.manual_seed(0)
    decoder, discriminator = Decoder(), PatchDiscriminator()
    loss = judged(10, decoder, discriminator)
    pull, push = (
        torch.autograd.grad(part, decoder.last.weight, retain_graph=True)[0]
        for part in (
            reconstruction_error(frames(), decoder(frames())),
            loss.weight * -discriminator(decoder(frames())).mean(),
        )
    )
    assert float(push.norm()) == pytest.approx(0.5 * float(pull.norm()), rel=0.01)


def test_the_adaptive_weight_is_bounded() -> None:
    weight = torch.ones(1, requires_grad=True)
    assert float(adaptive_weight(1e9 * weight.sum(), 0.0 * weight.sum(), weight, 0.5)) == 5e3


def test_errors_are_summed_over_a_frame_and_averaged_over_the_batch() -> None:
    zeros, ones = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    assert float(reconstruction_error(zeros, ones)) == 16.0
    assert float(kl_divergence(torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2))) == 2.0
    assert float(kl_divergence(torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2))) == 0.0


def test_a_confident_right_discriminator_loses_nothing() -> None:
    config = AutoencoderLossConfig(discriminator_start=0)

    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 4.0 * x.mean(dim=(1, 2, 3), keepdim=True) - 2.0

    bright, dark = torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    right = discriminator_loss(config, bright, dark, discriminator=Brightness(), step=0)
    assert (float(right.total), float(right.logits_real), float(right.logits_fake)) == (0.0, 2.0, -2.0)
    wrong = discriminator_loss(config, dark, bright, discriminator=Brightness(), step=0)
    assert float(wrong.total) == 3.0


def test_frozen_parameters_thaw_whatever_happens_and_those_frozen_before_stay_so() -> None:
    layer = nn.Linear(1, 1)
    layer.bias.requires_grad_(False)
    with frozen(layer):
        assert not layer.weight.requires_grad
    with pytest.raises(RuntimeError, match="inside"), frozen(layer):
        raise RuntimeError("inside")
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad


def perceptual_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = {
        f"lin{name.split('.')[1]}.model.1.weight" if name.startswith("lin.") else name: value.shape
        for name, value in PerceptualDistance().state_dict().items()
    }
    return {
        name: torch.rand(shape, generator=generator) / 50 - (0.0 if "lin" in name else 0.01)
        for name, shape in names.items()
    }


def test_the_perceptual_distance_is_zero_between_equals_and_grows_with_the_change() -> None:
    distance = with_weights(perceptual_weights())
    x, other = frames(0), frames(1)
    near, far = (distance(x, x + share * (other - x)) for share in (0.1, 1.0))
    assert near.shape == (2, 1, 1, 1)
    assert float(distance(x, x).abs().max()) == 0.0
    assert bool((far > near).all())
    assert bool((near > 0.0).all())


def test_a_perceptual_file_of_something_else_is_refused_by_name() -> None:
    weights = perceptual_weights()
    del weights["lin3.model.1.weight"]
    with pytest.raises(ValueError, match=r"lin3\.model\.1\.weight: expected \(1, 512, 1, 1\); got nothing"):
        with_weights(weights)


def test_a_perceptual_weight_without_a_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a perceptual distance"):
        reconstruction_error(frames(), frames(), None, 1.0)
