"""The feature network of the Fréchet video distance: its published size and names, its padding, its input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.i3d import I3D, ClipFeatures, Unit3D, load_clip_features


@pytest.fixture(scope="module")
def network() -> I3D:
    torch.manual_seed(0)
    return I3D(5).eval()


def test_it_has_the_published_size_and_names() -> None:
    with torch.device("meta"):
        network = I3D()
    assert sum(p.numel() for p in network.parameters()) == 12_697_264
    keys = network.state_dict()
    for name in ("Conv3d_1a_7x7.conv3d.weight", "Mixed_4c.b2b.bn.running_var", "Mixed_5c.b3b.conv3d.weight"):
        assert name in keys
    assert keys["logits.conv3d.bias"].shape == (400,)


@pytest.mark.parametrize(("size", "stride", "expected"), [(9, 2, 5), (8, 2, 4), (7, 1, 7)])
def test_padding_rounds_the_size_up(size: int, stride: int, expected: int) -> None:
    out = Unit3D(1, 1, 7, stride)(torch.zeros(1, 1, size, size, size))
    assert out.shape[-3:] == (expected,) * 3


def test_an_odd_padding_has_its_larger_half_behind() -> None:
    unit = Unit3D(1, 1, 3, 2, last=True)
    torch.nn.init.ones_(unit.conv3d.weight)
    torch.nn.init.zeros_(unit.conv3d.bias)
    x = torch.zeros(1, 1, 1, 1, 4)
    x[..., 0] = 1.0
    # windows over [0, 3) and [2, 5): nothing is padded in front
    assert unit(x).flatten().tolist() == [1.0, 0.0]


def test_clips_become_one_row_of_logits_each(network: I3D) -> None:
    clips = np.random.default_rng(0).random((3, 6, 16, 16), dtype=np.float32)
    features = ClipFeatures(network, batch=2)(clips)
    assert features.shape == (3, 5)
    assert features.dtype == np.float64
    assert np.isfinite(features).all()
    np.testing.assert_allclose(ClipFeatures(network, batch=1)(clips[:1]), features[:1], atol=1e-4)


def test_weights_come_from_a_file_and_a_strange_file_is_refused(network: I3D, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "i3d.pt")
    loaded = load_clip_features(tmp_path / "i3d.pt").network
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, network.state_dict()[key])
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="expected the weights of an I3D"):
        load_clip_features(tmp_path / "other.pt")
    torch.save({"logits.conv3d.weight": torch.zeros(5, 1024, 1, 1, 1)}, tmp_path / "head.pt")
    with pytest.raises(ValueError, match="expected the weights of an I3D"):
        load_clip_features(tmp_path / "head.pt")
