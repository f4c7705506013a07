"""PreDiff as a forecaster: members of their own, any grid, holes, tiles that agree, and the same from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from builders.ensembles import anchored_prediff, forecaster, random_network, tiny_prediff
from builders.networks import rain_context
from models.baselines import ContextTooShort
from models.checkpoint import save_checkpoint
from models.forecaster import Forecaster, load_forecaster
from models.prediff.forecaster import PreDiffForecaster
from models.prediff.samplers import SamplerConfig
from models.prediff.tiles import CellNoise, LatentTiles

Fields = NDArray[np.float32]
CONTEXT = rain_context(4, (16, 16))
CPU = torch.device("cpu")
ANCHORS = ("persistence", "extrapolation", "earthformer")


def close(one: Fields, other: Fields) -> bool:
    """Equal but for the order of sums."""
    return np.allclose(one, other, rtol=2e-3, atol=2e-3, equal_nan=True)


def apart(one: Fields, other: Fields) -> float:
    """Mean difference in tenths of decades, which weighs drizzle and downpour alike."""
    return float(np.abs(np.log10(1 + one) - np.log10(1 + other)).mean())


def test_it_keeps_the_contract_of_forecasters() -> None:
    model = forecaster()
    assert isinstance(model, Forecaster)
    found = model.forecast(CONTEXT, 2, members=3, seed=1)
    assert (found.shape, found.dtype) == ((3, 2, 16, 16), np.float32)
    assert (found >= 0).all()
    for wrong in ({"lead_times": 4}, {"lead_times": 0}, {"lead_times": 2, "members": 0}):
        with pytest.raises(ValueError, match="expected"):
            model.forecast(CONTEXT, **wrong)
    with pytest.raises(ValueError, match=r"\(4, y, x\)"):
        model.forecast(CONTEXT[1:], 2)


def test_a_member_depends_on_the_seed_and_its_number_and_not_on_how_many_there_are() -> None:
    model = forecaster()
    five = model.forecast(CONTEXT, 3, members=5, seed=3)
    assert close(model.forecast(CONTEXT, 3, members=2, seed=3), five[:2])
    assert close(forecaster(batch=2).forecast(CONTEXT, 3, members=5, seed=3), five)
    assert np.array_equal(model.forecast(CONTEXT, 3, members=5, seed=3), five)
    distances = [apart(five[i], five[j]) for i in range(5) for j in range(i)]
    distances.append(apart(model.forecast(CONTEXT, 3, members=1, seed=4), five[:1]))
    assert min(distances) > 0.02


def test_steered_members_do_not_depend_on_how_many_there_are_either() -> None:
    model = forecaster(intensity=2.0)
    three = model.forecast(CONTEXT, 3, members=3, seed=3)
    assert close(model.forecast(CONTEXT, 3, members=1, seed=3), three[:1])
    assert apart(three, forecaster().forecast(CONTEXT, 3, members=3, seed=3)) > 1e-3


@pytest.mark.parametrize("anchor", ["none", *ANCHORS])
def test_a_checkpoint_gives_back_the_same_forecaster(anchor: str, tmp_path: Path) -> None:
    config = tiny_prediff(spread=1.1) if anchor == "none" else anchored_prediff(anchor)
    network = random_network(config)
    network.residual_std.uniform_(0.5, 1.5)
    network.latent_mean.fill_(0.25)
    save_checkpoint(tmp_path, config, network.state_dict())
    loaded = load_forecaster(tmp_path)
    assert isinstance(loaded, PreDiffForecaster)
    assert loaded.config == config
    expected = PreDiffForecaster(config, network).forecast(CONTEXT, 3, members=2)
    assert np.array_equal(loaded.forecast(CONTEXT, 3, members=2), expected)


@pytest.mark.parametrize("size", [(16, 16), (21, 19), (9, 30), (40, 33), (3, 5)])
@pytest.mark.parametrize("anchor", ["none", "earthformer"])
def test_any_grid_is_forecast_to_its_last_cell(size: tuple[int, int], anchor: str) -> None:
    model = forecaster(tiny_prediff() if anchor == "none" else anchored_prediff(anchor), steps=2)
    found = model.forecast(rain_context(4, size), 3, members=2)
    assert found.shape == (2, 3, *size)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("anchor", ["none", *ANCHORS])
@pytest.mark.parametrize("intensity", [None, 1.0])
def test_holes_stay_where_the_newest_frame_has_them_and_nowhere_else(anchor: str, intensity: float | None) -> None:
    config = tiny_prediff() if anchor == "none" else anchored_prediff(anchor)
    context = CONTEXT.copy()
    context[-1, :5, 2:4] = np.nan
    context[1, 8:, :] = np.nan
    context[0] = np.nan
    found = forecaster(config, steps=2, intensity=intensity).forecast(context, 3, members=2)
    holes = np.broadcast_to(np.isnan(context[-1]), found.shape)
    assert np.array_equal(np.isnan(found), holes)


def test_a_newest_frame_without_any_cell_is_no_context() -> None:
    context = CONTEXT.copy()
    context[-1] = np.nan
    with pytest.raises(ContextTooShort):
        forecaster().forecast(context, 3)


@pytest.mark.parametrize("anchor", ANCHORS)
def test_where_nothing_is_left_to_diffuse_every_member_is_the_anchor(anchor: str) -> None:
    config = anchored_prediff(anchor)
    network = random_network(config)
    network.residual_std.zero_()
    model = PreDiffForecaster(config, network)
    found = model.forecast(CONTEXT, 3, members=2)
    with torch.no_grad():
        frames = model.anchor_forecast(CONTEXT)
        assert frames is not None
        decoded = network.decode(network.encode(frames[None, ..., None].contiguous()))[0, ..., 0]
    expected = config.transform.inverse(decoded).numpy()
    assert close(found, np.stack([expected, expected]))


def test_no_more_steps_are_taken_than_the_sampler_can() -> None:
    ancestral = forecaster(tiny_prediff(objective="noise", sampler=SamplerConfig(method="ddpm", steps=4)))
    assert [ancestral.asked(steps=n, intensity=None).steps for n in (1, 7, 100, 150, 499, 5000)] == [
        1,
        7,
        100,
        125,
        250,
        1000,
    ]
    assert forecaster().asked(steps=150, intensity=None).steps == 150


@pytest.mark.parametrize("method", ["ddpm", "ddim", "dpmpp2m", "unipc"])
def test_a_single_step_of_any_sampler_is_a_forecast(method: str) -> None:
    model = forecaster(tiny_prediff(objective="noise", sampler=SamplerConfig.model_validate({"method": method})))
    assert np.isfinite(model.asked(steps=1, intensity=None).forecast(CONTEXT, 3)).all()


def test_stages_are_told_once_for_every_batch_of_members() -> None:
    told: list[tuple[str, float]] = []
    model = forecaster(batch=2).asked(steps=2, intensity=None, observe=lambda stage, s: told.append((stage, s)))
    model.forecast(CONTEXT, 3, members=3)
    assert [stage for stage, _ in told] == ["sampling", "decoding"] * 2
    assert all(seconds > 0 for _, seconds in told)


def test_bfloat16_changes_members_less_than_another_member_would() -> None:
    exact = forecaster().forecast(CONTEXT, 3, members=2)
    short = forecaster(bf16=True).forecast(CONTEXT, 3, members=2)
    assert 0 < apart(exact, short) < apart(exact[:1], exact[1:]) / 4


@settings(deadline=None, max_examples=25)
@given(
    origin=st.tuples(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6)),
    offset=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    index=st.integers(0, 3),
)
def test_any_window_of_a_grid_has_the_noise_of_the_whole(
    origin: tuple[int, int], offset: tuple[int, int], index: int
) -> None:
    whole = CellNoise(5, (0, 3), origin, 1.3).draw(index, (2, 2, 24, 23, 3), CPU)
    there = origin[0] + offset[0], origin[1] + offset[1]
    window = CellNoise(5, (0, 3), there, 1.3).draw(index, (2, 2, 9, 11, 3), CPU)
    assert torch.equal(window, whole[:, :, offset[0] : offset[0] + 9, offset[1] : offset[1] + 11])


def test_noise_of_cells_is_unit_gaussian_and_only_what_starts_a_sample_is_scaled() -> None:
    for index, scale in ((0, 2.0), (1, 1.0)):
        drawn = CellNoise(0, (0, 1), scale=2.0).draw(index, (2, 4, 40, 40, 4), CPU)
        assert float(drawn.std()) == pytest.approx(scale, rel=0.02)
        assert float(drawn.mean()) == pytest.approx(0.0, abs=0.02 * scale)
        pairs = torch.stack([drawn[0].flatten(), drawn[1].flatten(), drawn[0].roll(1, 1).flatten()])
        assert float((torch.corrcoef(pairs) - torch.eye(3)).abs().max()) < 0.03


def test_noise_for_another_number_of_members_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 2 members"):
        CellNoise(0, (0, 1)).draw(0, (3, 1, 8, 8, 1), CPU)
    with pytest.raises(ValueError, match="at least one member"):
        CellNoise(0, ())


@pytest.mark.parametrize("pixels", [(16, 16), (40, 61), (17, 90), (12, 50)])
def test_functions_of_single_cells_give_the_same_tile_by_tile_as_whole(pixels: tuple[int, int]) -> None:
    tiles = LatentTiles.of_grid(pixels, (16, 16), 2)
    frames = torch.rand(2, 3, *pixels, 1, generator=torch.Generator().manual_seed(1))
    padded = tiles.pad(frames)
    assert padded.shape[2:4] == (tiles.size[0] * 2, tiles.size[1] * 2)
    assert torch.equal(padded[:, :, : pixels[0], : pixels[1]], frames)

    def shrink(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool3d(x.permute(0, 4, 1, 2, 3), (1, 2, 2)).permute(0, 2, 3, 4, 1)

    def grow(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    latent = shrink(padded)
    assert torch.allclose(tiles.encode(shrink, padded), latent, atol=1e-6)
    assert torch.allclose(tiles.decode(grow, latent), grow(latent), atol=1e-6)
    blended = tiles.blend(lambda box: latent[(slice(None), slice(None), *box)].sin())
    assert torch.allclose(blended, latent.sin(), atol=1e-6)


def smooth_rain(size: tuple[int, int]) -> Fields:
    """(4, y, x) mm h-1 without structure below about eight cells."""
    draw = torch.rand(4, 1, size[0] + 16, size[1] + 16, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        draw = torch.nn.functional.avg_pool2d(draw, 9, stride=1)
    return np.asarray(draw[:, 0].numpy() * 10, np.float32)


def gradient_at_seams(field: Fields, starts: list[int], side: int) -> float:
    """Mean step (..., x) across columns where tiles of `side` begin or end, over that across all others."""
    step = np.abs(np.diff(field, axis=-1)).mean(axis=tuple(range(field.ndim - 1)))
    at_seam = np.zeros(len(step), bool)
    at_seam[[start - 1 for start in starts[1:]] + [start + side - 1 for start in starts[:-1]]] = True
    return float(step[at_seam].mean() / step[~at_seam].mean())


@pytest.mark.parametrize(("overlap", "low", "high"), [(0, 1.2, 2.0), (2, 0.7, 1.05)])
def test_a_denoiser_that_sees_its_whole_tile_leaves_seams_without_overlap_and_none_with_it(
    overlap: int, low: float, high: float
) -> None:
    network, tiles = random_network(tiny_prediff()), LatentTiles((8, 68), (8, 8), 2, overlap)
    smooth = torch.from_numpy(smooth_rain((8, 68)) - 5)[:, None].repeat(1, 4, 1, 1)
    latent = smooth[None].permute(0, 1, 3, 4, 2) * torch.tensor([1.0, -1.0, 0.5, -0.5])  # (1, 4, h, w, c)
    step = torch.tensor([500])

    def answer(box: tuple[slice, slice]) -> Tensor:
        window = latent[(slice(None), slice(None), *box)]
        found: Tensor = network.denoiser(window[:, :3], step, window, None)
        return found

    with torch.no_grad():
        answers = tiles.blend(answer)[0].permute(0, 3, 1, 2).numpy()
    starts = sorted({columns.start for _, columns in tiles.boxes()})
    assert low < gradient_at_seams(answers, starts, 8) < high


def test_no_seam_shows_in_the_forecast_of_a_large_domain() -> None:
    whole = forecaster(steps=3).forecast(smooth_rain((16, 136)), 3, members=4)
    starts = sorted({2 * columns.start for _, columns in LatentTiles.of_grid((16, 136), (16, 16), 2).boxes()})
    assert len(starts) > 8
    assert gradient_at_seams(np.log10(1 + whole), starts, 16) < 1.1


def test_two_windows_of_one_domain_agree_where_they_overlap() -> None:
    """Tiles see other neighbours, so they agree in the main; with noise of their own they would not."""
    context = smooth_rain((16, 64))

    def window(left: int, origin: tuple[int, int]) -> Fields:
        model: Any = forecaster(steps=3, origin=origin)
        found: Fields = model.forecast(context[..., left : left + 40], 3, members=2)
        return found[..., 24 - left + 4 : 40 - left - 4]

    west = window(0, (0, 0))
    assert apart(west, window(24, (0, 12))) < 0.5 * apart(west, window(24, (0, 0)))
