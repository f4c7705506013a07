"""Earthformer as a network: the paper's sizes, training behaviour, refusals."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from builders.networks import batch_of, small_architecture
from models.configuration import build_network
from models.earthformer.config import EarthformerConfig
from models.earthformer.network import Earthformer
from models.earthformer.presets import PresetSummary, preset_config, preset_names
from models.earthformer.presets import summarise as measure

PUBLISHED = {
    "earthformer/sevir": (8_659_677, 223.58),
    "earthformer/sevir-paper": (15_082_069, 255.71),
    "earthformer/sevir-lr": (1_505_069, 13.92),
    "earthformer/enso": (1_394_325, 6.70),
    "earthformer/enso-paper": (7_600_077, 23.65),
    "earthformer/nbody": (6_702_109, 33.33),
}


@cache
def summarise(name: str, architecture: EarthformerConfig) -> PresetSummary:
    """As `presets.summarise`, once for each."""
    return measure(name, architecture)


def without_globals(name: str) -> EarthformerConfig:
    architecture = preset_config(name).architecture
    return EarthformerConfig.model_validate(architecture.model_dump() | {"num_global_vectors": 0})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_parameters_and_multiply_adds(name: str) -> None:
    parameters, gmac = PUBLISHED[name]
    summary = summarise(name, preset_config(name).architecture)
    assert summary.parameters == parameters
    assert summary.gmac == pytest.approx(gmac, abs=0.006)


@pytest.mark.parametrize(
    ("name", "parameters"), [("earthformer/sevir-paper", 13_075_029), ("earthformer/enso-paper", 6_601_293)]
)
def test_the_papers_models_without_global_vectors_have_their_parameters(name: str, parameters: int) -> None:
    assert summarise(name, without_globals(name)).parameters == parameters


TABLE = Path(__file__).parents[2] / "models" / "PRESETS.md"
ROW = re.compile(r"^\| `(earthformer/[\w-]+)`( without global vectors)? \| ([\d,]+) \| ([\d.]+) \|", re.MULTILINE)


def test_the_documented_table_of_presets_is_what_is_measured() -> None:
    rows = [(name, bool(bare), count, cost) for name, bare, count, cost in ROW.findall(TABLE.read_text())]
    assert {name for name, *_ in rows} == set(preset_names())
    for name, bare, count, cost in rows:
        measured = summarise(name, without_globals(name) if bare else preset_config(name).architecture)
        assert (f"{measured.parameters:,}", f"{measured.gmac:.2f}") == (count, cost), name


def test_the_auxiliary_model_has_its_parameters() -> None:
    with torch.device("meta"):
        network = build_network(preset_config("earthformer/earthnet"))
    assert sum(parameter.numel() for parameter in network.parameters()) == 60_618_380


def test_the_small_presets_keep_to_their_cost() -> None:
    small = summarise("small-64", preset_config("small-64").architecture)
    assert small.gmac <= 1.4
    assert small.parameters <= 600_000
    assert summarise("tiny", preset_config("tiny").architecture).gmac <= 0.12


def test_presets_are_named_by_family() -> None:
    assert all(name.startswith("earthformer/") for name in preset_names())
    with pytest.raises(ValueError, match="expected a preset of"):
        preset_config("earthformer/enormous")


def smooth_fields(architecture: EarthformerConfig) -> torch.Tensor:
    """Two different smooth targets (2, T_out, H, W, 1) of unit variance."""
    noise = torch.rand(2, *architecture.target_shape[:3], generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.avg_pool2d(noise, 7, stride=1, padding=3)
    return ((smooth - smooth.mean()) / smooth.std())[..., None]


def test_one_batch_is_learnt_by_heart() -> None:
    torch.manual_seed(0)
    architecture = small_architecture()
    network, x = Earthformer(architecture), batch_of(architecture)
    target = smooth_fields(architecture)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        loss = torch.nn.functional.mse_loss(network(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 < 0.9 < losses[0]


def test_the_same_seed_gives_the_same_weights_and_output() -> None:
    architecture = small_architecture()
    outputs = []
    for _ in range(2):
        torch.manual_seed(7)
        outputs.append(Earthformer(architecture).eval()(batch_of(architecture)))
    assert torch.equal(*outputs)


def test_a_sample_does_not_see_the_others_of_its_batch() -> None:
    architecture = small_architecture()
    network, x = Earthformer(architecture).eval(), batch_of(architecture, 3)
    assert torch.allclose(network(x)[1:2], network(x[1:2]), atol=1e-5)


DEAD_IN_THE_LAST_LAYER = ("g2l_global_q_net", "g2l_k_net", "g2l_v_net", "g2g_global_qkv_net", "global_proj")


def test_every_parameter_gets_a_gradient_but_the_last_update_of_the_global_vectors() -> None:
    architecture = small_architecture(separate_global_qkv=True, use_global_self_attn=True)
    network = Earthformer(architecture)
    network(batch_of(architecture)).square().mean().backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    expected = {
        name
        for name, _ in network.named_parameters()
        if name.startswith("encoder.blocks.1.0.attn_l.2.") and name.split(".")[6] in DEAD_IN_THE_LAST_LAYER
    }
    assert without == expected
    assert len(expected) == 6
    dead = [n for n, p in network.named_parameters() if p.grad is not None and not p.grad.abs().max() > 0]
    assert dead == []


@pytest.mark.parametrize("level", [1, 2])
def test_recomputing_activations_changes_no_gradient(level: int) -> None:
    gradients = []
    for checkpoint_level in (0, level):
        torch.manual_seed(1)
        architecture = small_architecture(checkpoint_level=checkpoint_level, ffn_drop=0.1, attn_drop=0.1)
        network = Earthformer(architecture).train()
        torch.manual_seed(2)
        network(batch_of(architecture)).square().mean().backward()
        gradients.append({n: p.grad for n, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][n], gradients[1][n], atol=1e-7) for n in gradients[0])


VARIANTS: list[dict[str, Any]] = [
    {"enc_attn_patterns": "video_swin_2x4", "dec_self_attn_patterns": "spatial_lg_4"},
    {"dec_cross_attn_patterns": "cross_4x4_heter", "padding_type": "ignore"},
    {"dec_cross_attn_patterns": "cross_8x8", "input_shape": (3, 20, 20, 1), "target_shape": (3, 20, 20, 1)},
    {"z_init_method": "last", "target_shape": (5, 16, 16, 1)},
    {"use_dec_self_global": True, "use_dec_cross_global": True, "use_global_vector_ffn": True},
    {"norm_layer": "rms_norm", "gated_ffn": True, "dec_hierarchical_pos_embed": True, "pos_embed_type": "t+hw"},
    {"enc_depth": (2, 1, 1), "dec_depth": (1, 2, 1), "dec_use_first_self_attn": True, "dec_cross_start": 1},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_variants_run_forward_and_backward(changes: dict[str, Any]) -> None:
    architecture = small_architecture(**changes)
    network = Earthformer(architecture)
    y = network(batch_of(architecture))
    assert tuple(y.shape[1:]) == architecture.target_shape
    y.square().mean().backward()
    assert torch.isfinite(y).all()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"target_shape": (3, 8, 16, 1)}, "equal H, W"),
    ({"num_heads": 3}, "divisible by 3 heads"),
    ({"enc_depth": (1,)}, "as many decoder as encoder levels"),
    ({"global_dim_ratio": 2}, "needs separate_global_qkv"),
    ({"num_global_vectors": 0, "use_dec_self_global": True}, "need num_global_vectors"),
    ({"enc_attn_patterns": "spiral"}, "got 'spiral'"),
    ({"enc_attn_patterns": ("axial",)}, "expected 2 names"),
    ({"initial_downsample_stack_conv_dim_list": (8,)}, "end with base_units"),
    ({"initial_downsample_stack_conv_num_layers": 2}, "expected 2 entries"),
    ({"initial_downsample_type": "conv", "base_units": 24, "num_heads": 4}, "divide by 16"),
    ({"depth": 3}, "Extra inputs"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_configuration_that_cannot_be_built_is_refused_in_words(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        small_architecture(**changes)


def test_an_input_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an input \(B, 3, 16, 16, 1\)"):
        Earthformer(small_architecture())(torch.zeros(1, 3, 16, 8, 1))


def test_weights_start_as_published() -> None:
    torch.manual_seed(0)
    network = Earthformer(small_architecture(base_units=64, initial_downsample_stack_conv_dim_list=(64,)))
    state = network.state_dict()
    assert state["encoder.blocks.0.0.attn_l.0.qkv.weight"].std().item() == pytest.approx(64**-0.5, rel=0.03)
    assert state["decoder.upsample_layers.0.conv.weight"].std().item() == pytest.approx(
        (2 / 1.01 / (64 * 9)) ** 0.5, rel=0.03
    )
    assert state["final_decoder.conv_block_list.0.0.weight"].abs().max().item() == pytest.approx(1 / 24, rel=0.01)
    assert state["encoder.down_layer_global_proj.0.weight"].abs().max().item() == pytest.approx(1 / 8, rel=0.01)
    assert state["encoder.blocks.0.0.attn_l.0.relative_position_bias_table"].std().item() == pytest.approx(
        0.02, rel=0.6
    )
    assert float(state["z_proj.bias"].abs().max()) == 0.0


FROZEN_CONVOLUTION = """
import torch
from models.earthformer.stems import convolutions
block = convolutions(4, 8, 1, 2, "leaky")
block[0].requires_grad_(False)
frames = torch.rand(6, 16, 16, 4).permute(0, 3, 1, 2)
block(frames).square().mean().backward()
print(block[1].weight.grad.abs().sum() > 0)
"""


def test_group_normalisation_survives_a_frozen_convolution_in_channels_last_memory() -> None:
    """In a process of its own: the plain layer ends it by a segmentation fault."""
    run = subprocess.run([sys.executable, "-c", FROZEN_CONVOLUTION], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "True" in run.stdout
