"""When a discriminator joins the autoencoder's stage: at a share of its steps or of its time, or never."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from builders.training import SPEC, drifting_rain, write
from models.prediff.autoencoder import FrameAutoencoder
from models.prediff.autoencoder_losses import AutoencoderLossConfig, discriminator_loss, generator_loss
from models.prediff.discriminator import PatchDiscriminator
from models.prediff.presets import preset, preset_names
from models.transform import Transform
from tasks.training.data import TrainingData
from tasks.training.samples import SampleSource
from tasks.training.stages import loop
from tasks.training.stages.autoencoder import AutoencoderStage
from tasks.training.stages.loop import fit_stage
from tasks.training.stages.recipes import recipe_of
from tasks.training.stages.stage import Batch, StageConfig

QUIET = {"progress_bar": False, "accelerator": "cpu", "precision": "32-true"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return write(tmp_path_factory.mktemp("rain") / "layout", drifting_rain(240))


class Watched(AutoencoderStage):
    """Notes how far it was at each step, and whether the discriminator had moved by then."""

    def __init__(self, data: TrainingData, share: float | None) -> None:
        torch.manual_seed(1)
        network = FrameAutoencoder(preset("tiny").architecture.autoencoder)
        transform = Transform.of_quantity("rainfall_rate")
        super().__init__(network, SampleSource(data, SPEC), transform, seed=1, batch_size=4, discriminator_from=share)
        self.first = self.judge()
        self.seen: list[tuple[float, bool]] = []

    def judge(self) -> Tensor:
        """The discriminator's weights, one after the other; empty without one."""
        found = [] if self.discriminator is None else list(self.discriminator.parameters())
        return torch.cat([weight.detach().flatten() for weight in found]) if found else torch.empty(0)

    def losses(self, batch: Batch, done: float) -> Iterator[Tensor]:
        self.seen.append((done, not torch.equal(self.judge(), self.first)))
        return super().losses(batch, done)


def test_by_steps_it_joins_once_its_share_of_them_is_done(data: TrainingData, tmp_path: Path) -> None:
    stage = Watched(data, 0.5)
    fit_stage(stage, StageConfig(max_steps=6, **QUIET), tmp_path)  # type: ignore[arg-type]
    assert [done for done, _ in stage.seen] == pytest.approx([step / 6 for step in range(1, 7)])
    assert [moved for _, moved in stage.seen] == [False, False, False, False, True, True]  # first moved by the fourth


def test_by_time_it_joins_once_its_share_of_the_budget_is_spent(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    stage = Watched(data, 0.5)
    result = fit_stage(stage, StageConfig(budget=timedelta(seconds=20), **QUIET), tmp_path)  # type: ignore[arg-type]
    assert result.steps == len(stage.seen) > 4
    early = [moved for done, moved in stage.seen if done <= 0.5]
    late = [moved for done, moved in stage.seen if done > 0.5]
    assert not any(early)
    assert late == [False, *[True] * (len(late) - 1)]
    assert len(early) > 1 < len(late)


def test_unless_it_is_asked_for_there_is_none(data: TrainingData, tmp_path: Path) -> None:
    stage = Watched(data, None)
    config = StageConfig(max_steps=3, **QUIET)  # type: ignore[arg-type]
    assert stage.helpers is None
    assert len(stage.optimisers(config)) == 1
    assert fit_stage(stage, config, tmp_path / "alone").steps == 3


def test_before_it_joins_the_autoencoder_is_trained_as_without_it(data: TrainingData) -> None:
    alone, judged = Watched(data, None), Watched(data, 0.5)
    batch = alone.batch(0)
    losses = []
    for stage in (alone, judged):
        torch.manual_seed(2)
        losses.append(list(stage.losses(batch, 0.5)))
    assert torch.equal(losses[0][0], losses[1][0])
    assert [len(found) for found in losses] == [1, 2]
    assert not losses[1][1].requires_grad


def test_from_then_on_the_losses_are_the_published_ones(data: TrainingData) -> None:
    stage = Watched(data, 0.5)
    batch = stage.batch(0)
    torch.manual_seed(2)
    ours = list(stage.losses(batch, 0.51))
    torch.manual_seed(2)
    frames, network = batch["frames"], stage.network
    mean, logvar = network.encode(frames)
    given = network.decode(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean))
    published, judge = AutoencoderLossConfig(), stage.discriminator
    assert judge is not None
    step = published.discriminator_start
    adversarial = generator_loss(
        published, frames, given, mean, logvar, discriminator=judge, last_weight=network.last_layer, step=step
    )
    assert adversarial.weight > 0
    torch.testing.assert_close(ours[0], adversarial.total)
    torch.testing.assert_close(
        ours[1], discriminator_loss(published, frames, given, discriminator=judge, step=step).total
    )


class Worsening(Watched):
    """Its absolute error grows with every validation, as texture costs."""

    validated = 0

    def validate(self) -> dict[str, float]:
        self.validated += 1
        return {"loss": float(self.validated)}


@pytest.mark.parametrize(("share", "kept"), [(0.5, 3.0), (None, 1.0)])
def test_with_a_discriminator_the_newest_weights_are_kept_not_those_of_the_least_error(
    data: TrainingData, tmp_path: Path, share: float | None, kept: float
) -> None:
    config = StageConfig(max_steps=3, val_every=1, **QUIET)  # type: ignore[arg-type]
    result = fit_stage(Worsening(data, share), config, tmp_path)
    assert (result.best, result.metrics["loss"]) == (kept, 3.0)


class Diverging(Watched):
    """Nothing but NaN after its first validation."""

    validated = 0

    def validate(self) -> dict[str, float]:
        self.validated += 1
        return {"loss": 1.0 if self.validated == 1 else float("nan")}


def test_weights_that_diverged_are_never_kept_as_the_newest(data: TrainingData, tmp_path: Path) -> None:
    config = StageConfig(max_steps=3, val_every=1, **QUIET)  # type: ignore[arg-type]
    assert fit_stage(Diverging(data, 0.5), config, tmp_path).best == 1.0


class Distance(nn.Module):
    """A perceptual distance of two everywhere."""

    def forward(self, frames: Tensor, others: Tensor) -> Tensor:
        return torch.full((len(frames), 1, 1, 1), 2.0)


def test_a_perceptual_distance_counts_in_every_cell(data: TrainingData) -> None:
    plain = Watched(data, None)
    transform, samples = Transform.of_quantity("rainfall_rate"), SampleSource(data, SPEC)
    seeing = AutoencoderStage(plain.network, samples, transform, seed=1, batch_size=4, perceptual=Distance())
    losses = []
    for stage in (plain, seeing):
        torch.manual_seed(2)
        losses.append(float(next(stage.losses(plain.batch(0), 0.5)).detach()))
    assert losses[1] - losses[0] == pytest.approx(2.0 * 16 * 16, rel=1e-3)


def test_published_networks_are_trained_as_published_and_small_ones_quickly() -> None:
    published, quick = recipe_of("prediff/sevir-lr"), recipe_of("prediff/small-64")
    assert (published.autoencoder.learning_rate, published.autoencoder.gradient_clip) == (5e-6, 1.0)
    assert (published.denoiser.weight_decay, published.denoiser.ema_decay, published.denoiser.warmup) == (
        0.01,
        0.9999,
        0.1,
    )
    width = PatchDiscriminator(width=published.discriminator_width)
    assert sum(parameter.numel() for parameter in width.parameters()) == 2_763_585
    assert quick.stage("denoiser").learning_rate == 1e-3


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_told(data: TrainingData, share: float) -> None:
    with pytest.raises(ValueError, match=r"expected the discriminator from a share 0\.\.1"):
        Watched(data, share)


def test_presets_say_whether_they_want_one() -> None:
    shares = {name: preset(name).discriminator_from for name in preset_names()}
    assert shares["prediff/small-64"] is None
    published = AutoencoderLossConfig().discriminator_start / 327_963  # steps of the published training
    assert shares["prediff/sevir-lr"] == pytest.approx(published, rel=0.01)
