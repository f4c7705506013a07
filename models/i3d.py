"""I3D (Carreira & Zisserman 2017, arXiv:1705.07750): the video network whose outputs the Fréchet video distance uses.

Inception-v1 inflated to three dimensions. Weights come from a file that somebody gives: the state dict of a network
trained on Kinetics-400 under the names that have become usual (`Mixed_3b.b1a.conv3d.weight`, ...).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.weight_files import read_weight_file

Size = tuple[int, int, int]
SIDE = 224
LEAST_FRAMES = 9
# Widths of the four branches: 1x1; 1x1 then 3x3; 1x1 then 3x3; pooling then 1x1.
_MIXED = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


class Unit3D(nn.Module):
    """Convolution, normalisation and rectifier, padded so that the output has size / stride cells, rounded up."""

    def __init__(self, channels: int, width: int, kernel: int = 1, stride: int = 1, *, last: bool = False) -> None:
        super().__init__()
        self.kernel, self.stride, self.last = (kernel,) * 3, (stride,) * 3, last
        self.conv3d = nn.Conv3d(channels, width, kernel, stride, bias=last)
        if not last:
            self.bn = nn.BatchNorm3d(width, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) → (B, width, T', H', W')."""
        y: Tensor = self.conv3d(_padded(x, self.kernel, self.stride))
        return y if self.last else functional.relu(self.bn(y))


class Inception(nn.Module):
    """Four branches beside each other."""

    def __init__(self, channels: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int) -> None:
        super().__init__()
        self.b0 = Unit3D(channels, b0)
        self.b1a, self.b1b = Unit3D(channels, b1a), Unit3D(b1a, b1b, 3)
        self.b2a, self.b2b = Unit3D(channels, b2a), Unit3D(b2a, b2b, 3)
        self.b3b = Unit3D(channels, b3b)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) → channels of all branches, same size."""
        pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class I3D(nn.Module):
    """Clips (B, 3, T ≥ 9, 224, 224) in -1..1 → logits (B, classes), averaged over time."""

    def __init__(self, classes: int = 400) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit3D(64, 64)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, 3)
        for name, widths in _MIXED.items():
            self.add_module(name, Inception(*widths))
        self.logits = Unit3D(1024, classes, last=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        x = _max_pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self._mixed(x, "Mixed_3"), (3, 3, 3), (2, 2, 2))
        x = _max_pool(self._mixed(x, "Mixed_4"), (2, 2, 2), (2, 2, 2))
        x = functional.avg_pool3d(self._mixed(x, "Mixed_5"), (2, 7, 7), (1, 1, 1))
        logits: Tensor = self.logits(x)
        return logits.mean(dim=(2, 3, 4))

    def _mixed(self, x: Tensor, stage: str) -> Tensor:
        for name in _MIXED:
            if name.startswith(stage):
                x = self.get_submodule(name)(x)
        return x


def _padded(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Zeros on both sides, the odd one behind."""
    pads: list[int] = []
    for size, k, s in zip(reversed(x.shape[-3:]), reversed(kernel), reversed(stride), strict=True):
        total = max(k - (size % s or s), 0)
        pads += [total // 2, total - total // 2]
    return functional.pad(x, pads)


def _max_pool(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    # Zeros may pad a maximum: what is pooled has been rectified.
    return functional.max_pool3d(_padded(x, kernel, stride), kernel, stride)


class ClipFeatures:
    """Logits of clips, as the Fréchet video distance wants them: grey as three channels, 224 x 224, at least 9 frames.

    Clips that are shorter have every frame repeated (twice, for the 6 leads of SEVIR-LR).
    """

    def __init__(self, network: I3D, device: str | torch.device = "cpu", batch: int = 8) -> None:
        self.network, self.device, self.batch = network.to(device).eval(), torch.device(device), batch

    def __call__(self, clips: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Features (clip, 400) of clips (clip, lead, y, x) scaled to 0..1 without NaN."""
        found = [self._features(clips[at : at + self.batch]) for at in range(0, len(clips), self.batch)]
        return np.concatenate(found)

    def _features(self, clips: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        frames = torch.from_numpy(np.ascontiguousarray(clips)).to(self.device)
        frames = frames.repeat_interleave(math.ceil(LEAST_FRAMES / frames.shape[1]), dim=1)
        large = functional.interpolate(frames, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        with torch.inference_mode():
            logits: Tensor = self.network((2 * large - 1)[:, None].expand(-1, 3, -1, -1, -1))
        features: npt.NDArray[np.float64] = logits.double().cpu().numpy()
        return features


def load_clip_features(path: str | Path, device: str = "cpu") -> ClipFeatures:
    """The feature network whose state dict (.safetensors, or .pt holding tensors only) lies in `path`.

    Raises:
        ValueError: the file does not hold the weights of an I3D.
        FileNotFoundError: there is no such file.
    """
    weights = read_weight_file(Path(path))
    head = weights.get("logits.conv3d.weight")
    if head is None:
        raise ValueError(f"expected the weights of an I3D in {path}; got {', '.join(list(weights)[:3])}, ...")
    network = I3D(int(head.shape[0]))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"expected the weights of an I3D in {path}: {error}") from error
    return ClipFeatures(network, device)
