"""Latents of a fixed set of windows, encoded once: the later stages never see a pixel.

Encoding on the fly was 31 % (denoiser) and 96 % (alignment network) of the reference's training. The set lies in one
Zarr group per split, written in batches; one that was interrupted goes on, one that is whole is only read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from models.gaps import fill_gaps
from models.prediff.configuration import PreDiffConfig
from models.prediff.context import known_context
from models.prediff.forecaster import PreDiffForecaster
from models.prediff.network import PreDiffNetwork
from tasks.training.sample_set import Reader, SampleSet
from tasks.training.samples import Window

BATCH = 16
_POOLED = 32  # the intensity estimator looks no closer


@dataclass(frozen=True)
class LatentSet:
    """Windows of one split, as the autoencoder gives them (not of unit variance); float32 unless said otherwise.

    Attributes:
        context: (n, context_frames, h, w, c) posterior mean of the newest observed frames.
        future: (n, T_out, h, w, c) posterior mean of what came.
        future_std: (n, T_out, h, w, c) posterior standard deviation of it.
        anchor: (n, T_out, h, w, c) posterior mean of the anchor's forecast; None without an anchor.
        frames: (n, context_frames, y, x, 1) newest observed frames, network space, at most 32 cells a side.
        known: (n, context_frames, 1) the constraint's value of these frames; of one not observed, the one before it.
        values: (n, T_out, 1) the constraint's value of what came; NaN where nothing was observed.
    """

    context: Tensor
    future: Tensor
    future_std: Tensor
    anchor: Tensor | None
    frames: Tensor
    known: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.context)


def build_latents(
    config: PreDiffConfig,
    network: PreDiffNetwork,
    samples: SampleSet,
    folder: Path,
    windows: Sequence[Window],
    name: str,
    device: str = "cpu",
) -> LatentSet:
    """The latents of `windows`, from `folder` as far as they are there.

    Args:
        config: Of the network.
        network: With a trained autoencoder and the anchor's weights.
        samples: Whose windows.
        folder: Belongs to this autoencoder, this anchor and these samples.
        windows: Which, in this order.
        name: Of the split.
        device: Where the networks run.
    """
    path = folder / f"{name}.zarr"
    group = zarr.open_group(path, mode="a")
    done = int(str(group.attrs.get("windows", 0)))
    rest = range(done, len(windows), BATCH)
    if len(rest):
        encoder = _Encoder(config, network, samples.reader(), torch.device(device))
        for first in track(rest, f"encoding {name} windows"):
            chunk = windows[first : first + BATCH]
            for key, value in encoder.encode(chunk).items():
                _append(group, key, value, first, len(windows))
            group.attrs["windows"] = first + len(chunk)
    return _load(group)


class _Encoder:
    def __init__(self, config: PreDiffConfig, network: PreDiffNetwork, reader: Reader, device: torch.device) -> None:
        self.config, self.network, self.reader, self.device = config, network, reader, device
        self.forecaster = PreDiffForecaster(config, network, device)

    def encode(self, windows: Sequence[Window]) -> dict[str, NDArray[Any]]:
        """Arrays of `windows`, batch first."""
        config, fields = self.config, self.reader.read(windows)
        u = config.transform.forward(torch.from_numpy(fields).to(self.device))
        told = [known_context(window[: config.t_in], config.constraint, config.context_frames) for window in u]
        newest = torch.stack([one.frames for one in told])
        found: dict[str, Tensor] = {
            "context": self._mean(newest[..., None]),
            "frames": F.adaptive_avg_pool2d(newest, _pooled_size(u.shape[2:]))[..., None],
            "known": torch.stack([one.values for one in told]),
            "values": config.constraint.values(u[:, config.t_in :, ..., None]),
        }
        mean, logvar = self._moments(torch.stack([fill_gaps(window)[config.t_in :] for window in u])[..., None])
        found |= {"future": mean, "future_std": torch.exp(0.5 * logvar)}
        if config.anchor != "none":
            found["anchor"] = self._mean(self._anchors(fields[:, : config.t_in])[..., None])
        exact = ("known", "values")
        return {
            key: value.cpu().numpy().astype(np.float32 if key in exact else np.float16) for key, value in found.items()
        }

    def _anchors(self, contexts: NDArray[np.float32]) -> Tensor:
        """Contexts (n, t_in, y, x), physical units → the anchor's forecasts (n, T_out, y, x), network space."""
        inner, network = self.config.anchor_model, self.network.anchor
        if inner is None or network is None or inner.patch != contexts.shape[2:]:
            forecasts = [self.forecaster.anchor_forecast(context) for context in contexts]
            return torch.stack([one for one in forecasts if one is not None])
        inputs = torch.stack([self.forecaster.anchor_inputs(context) for context in contexts])
        with torch.no_grad():
            answer: Tensor = network.eval()(inputs[..., None])[..., 0]
        return answer

    def _mean(self, frames: Tensor) -> Tensor:
        return self._moments(frames)[0]

    def _moments(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.network.autoencoder.encode_sequence(frames)


def _pooled_size(size: Sequence[int]) -> tuple[int, int]:
    return min(size[0], _POOLED), min(size[1], _POOLED)


def _append(group: zarr.Group, key: str, value: NDArray[Any], first: int, length: int) -> None:
    if key not in group:
        shape, chunks = (length, *value.shape[1:]), (BATCH, *value.shape[1:])
        group.create_array(key, shape=shape, chunks=chunks, dtype=value.dtype)
    array: Any = group[key]
    array[first : first + len(value)] = value


def _load(group: zarr.Group) -> LatentSet:
    arrays: dict[str, Any] = {
        key: torch.from_numpy(np.asarray(array[:]).astype(np.float32)) for key, array in _arrays(group)
    }
    return LatentSet(**{"anchor": None, **arrays})


def _arrays(group: zarr.Group) -> Iterator[tuple[str, Any]]:
    yield from group.arrays()


def choose_windows(samples: SampleSet, seed: int, count: int) -> list[Window]:
    """`count` different training windows, wet ones more often: the first that the seed draws; or all there are."""
    chosen: dict[tuple[int, int, int], Window] = {}
    for step in range(4 * -(-count // 64)):
        for window in samples.draw(seed, step, 64):
            chosen.setdefault((window.frame, window.y, window.x), window)
            if len(chosen) == count:
                return list(chosen.values())
    return list(chosen.values())
