"""PreDiff's three networks: sizes, published names, conditioning, gradients, and both ways of computing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from infra.settings import Settings
from models.earthformer.execution import executed
from models.prediff.architecture import AlignmentConfig, AutoencoderConfig, DenoiserConfig, PreDiffArchitecture
from models.prediff.autoencoder import FrameAutoencoder
from models.prediff.blocks import ResidualBlock, VolumeGroupNorm, sinusoid
from models.prediff.denoiser import LatentDenoiser, mark_frames
from models.prediff.presets import preset, preset_names, summarise
from models.prediff.published import (
    NetworkConfig,
    build,
    from_published,
    index_buffers,
    our_name,
    published_name,
    published_shapes,
    to_published,
)
from models.prediff.published_config import config_from_published

TINY = preset("prediff/tiny").architecture
PUBLISHED = preset("prediff/sevir-lr").architecture
PARTS = ("autoencoder", "denoiser", "alignment")


def part(architecture: PreDiffArchitecture, name: str) -> NetworkConfig:
    config: NetworkConfig = getattr(architecture, name)
    return config


def opened(network: nn.Module) -> nn.Module:
    """Weights that are not zero anywhere, so that every path speaks."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_(noise * (0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5))
    return network.eval()


def denoiser_inputs(config: DenoiserConfig, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(batch, *config.target_shape, generator=generator)
    context = torch.randn(batch, *config.input_shape, generator=generator)
    return z, torch.arange(batch) * 400, context


@pytest.mark.parametrize(
    ("network", "count"), [("autoencoder", 84_499_393), ("denoiser", 136_817_538), ("alignment", 8_937_033)]
)
def test_the_published_networks_have_the_published_number_of_parameters(network: str, count: int) -> None:
    with torch.device("meta"):
        built = build(part(PUBLISHED, network))
    assert sum(p.numel() for p in built.parameters()) == count


def test_presets_state_their_sizes_and_costs() -> None:
    rows = {row.network: row.gmac for row in summarise("prediff/sevir-lr")}
    published = {"denoiser": 653.4 / 2, "encode": 68.0 / 2, "decode": 155.2 / 2, "alignment": 11.4 / 2}
    assert rows == pytest.approx(published, rel=2e-3)
    assert "prediff/small-64" in preset_names()


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match="prediff/small-64"):
        preset("prediff/large")


@pytest.mark.parametrize("name", PARTS)
def test_names_survive_the_way_to_the_published_ones_and_back(name: str) -> None:
    config = part(TINY, name)
    network = opened(build(config))
    state = network.state_dict()
    there = to_published(state, config)
    assert {key: tuple(value.shape) for key, value in there.items()} == published_shapes(config)
    assert all(our_name(published_name(key, config), config) == key for key in state)
    back = from_published(there, config)
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("name", "file"), [("autoencoder", "vae"), ("denoiser", "denoiser"), ("alignment", "alignment")]
)
def test_the_published_sizes_have_the_published_keys_and_shapes(name: str, file: str) -> None:
    path = (Settings().golden or Path("../shared/golden")).parent / "spec" / f"prediff_{file}_keys.json"
    if not path.is_file():
        pytest.skip(f"no key list at {path}")
    entries = json.loads(path.read_bytes())["entries"]
    assert published_shapes(part(PUBLISHED, name)) == {entry["key"]: tuple(entry["shape"]) for entry in entries}


def test_a_foreign_state_is_refused_with_the_first_wrong_key_and_both_shapes() -> None:
    config = TINY.denoiser
    state = to_published(build(config).state_dict(), config)
    with pytest.raises(ValueError, match=r"final_proj.bias: expected \(4,\); got \(5,\)"):
        from_published({**state, "final_proj.bias": torch.zeros(5)}, config)
    with pytest.raises(ValueError, match=r"final_proj.bias: expected \(4,\); got no such key"):
        from_published({key: value for key, value in state.items() if key != "final_proj.bias"}, config)
    with pytest.raises(ValueError, match="surplus: expected no such key"):
        from_published({**state, "surplus": torch.zeros(1)}, config)


def test_an_index_buffer_of_another_geometry_is_refused() -> None:
    config = TINY.denoiser
    state = to_published(build(config).state_dict(), config)
    key = next(iter(index_buffers(config)))
    with pytest.raises(ValueError, match="row-major"):
        from_published({**state, key: state[key].flip(0)}, config)


def test_the_steps_sinusoid_has_cosines_first_and_periods_up_to_ten_thousand() -> None:
    values = sinusoid(torch.tensor([0, 3]), 8)
    assert values[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    phases = 3 * 10_000.0 ** (-torch.arange(4) / 4)
    torch.testing.assert_close(values[1], torch.cat([phases.cos(), phases.sin()]))


def test_context_frames_carry_a_one_and_noisy_frames_a_zero() -> None:
    z, _, context = denoiser_inputs(TINY.denoiser)
    x = mark_frames(context, z)
    assert x.shape == (2, 7, 8, 8, 5)
    assert (x[:, :4, ..., -1] == 1).all()
    assert (x[:, 4:, ..., -1] == 0).all()
    assert torch.equal(x[:, 4:, ..., :-1], z)


def test_a_fresh_denoiser_answers_zero_and_only_its_last_layer_learns_first() -> None:
    network = LatentDenoiser(TINY.denoiser)
    answer = network(*denoiser_inputs(TINY.denoiser))
    assert (answer == 0).all()
    (answer - 1).square().mean().backward()
    moved = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {"final_proj.weight", "final_proj.bias"}


def test_residual_blocks_are_shared_over_depth() -> None:
    deep = TINY.denoiser.model_copy(update={"depth": (3, 1)})
    names = [name for name, _ in LatentDenoiser(deep).named_parameters()]
    assert sum("down.0.time_block.conv_in.weight" in name for name in names) == 1
    assert sum("down.0.stacks.2.attn_l.0.qkv.weight" in name for name in names) == 1


@pytest.mark.parametrize("name", ["denoiser", "alignment"])
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    network = opened(build(part(TINY, name)))
    z, t, context = denoiser_inputs(TINY.denoiser)
    answer = network(z, t, context) if name == "denoiser" else network(z, t)
    # Not the plain sum: a bias before a group norm of one channel a group has no influence.
    (answer * torch.randn(answer.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None] == []


def test_step_and_context_matter() -> None:
    network = opened(LatentDenoiser(TINY.denoiser))
    z, t, context = denoiser_inputs(TINY.denoiser)
    with torch.no_grad():
        answer = network(z, t, context)
        assert (network(z, t + 1, context) - answer).abs().max() > 1e-4
        assert (network(z, t, context + 1) - answer).abs().max() > 1e-4


def test_samples_of_a_batch_do_not_see_each_other() -> None:
    network = opened(LatentDenoiser(TINY.denoiser)).double()
    z, t, context = (x.double() if x.is_floating_point() else x for x in denoiser_inputs(TINY.denoiser, 3))
    with torch.no_grad():
        together = network(z, t, context)
        alone = torch.cat([network(z[i : i + 1], t[i : i + 1], context[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["denoiser", "alignment"])
def test_the_fast_way_gives_the_plain_ways_numbers_and_gradients(name: str) -> None:
    network = opened(build(part(TINY, name))).double()
    z, t, context = (x.double() if x.is_floating_point() else x for x in denoiser_inputs(TINY.denoiser))
    results = {}
    for way in ("plain", "fast"):
        network.zero_grad()
        with executed(network, way):
            answer = network(z, t, context) if name == "denoiser" else network(z, t)
        answer.square().sum().backward()
        results[way] = [answer.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
    for plain, fast in zip(*results.values(), strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9 * float(plain.abs().max()) + 1e-9)


def test_bfloat16_stays_near_float32() -> None:
    network = opened(LatentDenoiser(TINY.denoiser))
    inputs = denoiser_inputs(TINY.denoiser)
    with torch.no_grad():
        exact = network(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(*inputs)
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


@settings(max_examples=12, deadline=None)
@given(
    frames=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    depth=st.sampled_from([(1,), (2, 1), (1, 1, 1)]),
    res_connect=st.booleans(),
)
def test_a_denoiser_of_any_size_answers_in_the_shape_of_its_latent(
    frames: tuple[int, int], size: tuple[int, int], depth: tuple[int, ...], res_connect: bool
) -> None:
    config = DenoiserConfig(
        input_shape=(frames[0], *size, 3),
        target_shape=(frames[1], *size, 3),
        base_units=8,
        num_heads=2,
        depth=depth,
        unet_res_connect=res_connect,
    )
    network = opened(LatentDenoiser(config))
    with torch.no_grad():
        answer = network(*denoiser_inputs(config))
    assert answer.shape == (2, *config.target_shape)
    assert bool(torch.isfinite(answer).all())


def test_frames_come_back_from_the_autoencoder_in_their_own_size() -> None:
    autoencoder = opened(build(TINY.autoencoder))
    frames = torch.rand(2, 3, 16, 24, 1)
    with torch.no_grad():
        mean, logvar = autoencoder.encode_sequence(frames)
        assert mean.shape == logvar.shape == (2, 3, 8, 12, 4)
        assert autoencoder.decode_sequence(mean).shape == frames.shape
        one, _ = autoencoder.encode(frames[1, 2].permute(2, 0, 1)[None])
        torch.testing.assert_close(mean[1, 2], one[0].permute(1, 2, 0), rtol=1e-4, atol=1e-5)
        recon, again, _ = autoencoder(frames[0].permute(0, 3, 1, 2), torch.zeros(3, 4, 8, 12))
        torch.testing.assert_close(recon, autoencoder.decode(again))
    assert float(logvar.max()) <= 20


def test_plain_attention_gives_the_same_frames() -> None:
    fast, plain = (FrameAutoencoder(TINY.autoencoder, plain_attention=flag).eval() for flag in (False, True))
    plain.load_state_dict(opened(fast).state_dict())
    latent = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(plain.decode(latent), fast.decode(latent), rtol=1e-5, atol=1e-5)


def test_group_norm_has_a_group_per_channel_where_32_does_not_divide() -> None:
    assert VolumeGroupNorm(65, 32).num_groups == 65
    assert VolumeGroupNorm(64, 32).num_groups == 32


def test_a_block_without_step_refuses_one() -> None:
    with pytest.raises(ValueError, match="sees the step"):
        ResidualBlock(4, 4, None, groups=2).project(torch.zeros(1, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (2, 4, 4, 4), "target_shape": (2, 4, 4, 3)}, "equal h, w, C"),
        ({"input_shape": (2, 4, 4, 4), "target_shape": (2, 4, 4, 4), "num_global_vectors": 8}, "num_global_vectors"),
        ({"input_shape": (2, 4, 4, 4), "target_shape": (2, 4, 4, 4), "self_pattern": "round"}, "a pattern of"),
        ({"input_shape": (2, 4, 4, 4), "target_shape": (2, 4, 4, 4), "base_units": 6}, "divisible by 4 heads"),
        ({"input_shape": (2, 4, 4, 4), "target_shape": (2, 4, 4, 4), "surplus": 1}, "surplus"),
        ({"input_shape": (2, 4, 4, 4), "pool": "max"}, "pool"),
        ({"input_shape": (2, 4, 4, 4), "out_len": 3}, "out_len"),
        ({"latent_channels": 4, "up_block_types": ["AttnUpDecoderBlock2D"]}, "up_block_types"),
        ({"latent_channels": 4, "block_out_channels": [20]}, "divisible by 32 groups"),
        ({}, "a PreDiff network"),
    ],
)
def test_arguments_that_cannot_be_built_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_from_published(arguments)


def test_networks_whose_latents_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="latent channels"):
        TINY.model_validate(TINY.model_dump() | {"autoencoder": AutoencoderConfig(latent_channels=7).model_dump()})
    with pytest.raises(ValueError, match="alignment network"):
        TINY.model_validate(TINY.model_dump() | {"alignment": AlignmentConfig(input_shape=(9, 8, 8, 4)).model_dump()})
    with pytest.raises(ValueError, match="multiple of 2"):
        TINY.resized(t_in=4, t_out=3, patch=(15, 16))


def test_an_architecture_can_be_resized() -> None:
    other = TINY.resized(t_in=2, t_out=5, patch=(24, 16))
    assert (other.t_in, other.t_out, other.patch, other.latent_shape) == (2, 5, (24, 16), (5, 12, 8, 4))
    assert other.denoiser.base_units == TINY.denoiser.base_units
