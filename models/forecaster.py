"""The contract every forecaster keeps, and the trained network that keeps it: transform, gaps, tiles, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from models.anchor import anchor_frames
from models.baselines import ContextTooShort, check_context, check_request
from models.checkpoint import CheckpointError, load_any, load_checkpoint, save_checkpoint
from models.configuration import Anchor, ForecasterConfig, build_network
from models.gaps import fill_gaps
from models.prediff.configuration import PreDiffConfig
from models.prediff.forecaster import PreDiffForecaster
from models.prediff.network import PreDiffNetwork
from models.tiling import Strip, Tiling, run_in_bands, tiles_at_once

__all__ = [
    "Anchor",
    "CheckpointError",
    "ContextTooShort",
    "Fields",
    "Forecaster",
    "ForecasterConfig",
    "NetworkForecaster",
    "build_network",
    "fill_gaps",
    "load_checkpoint",
    "load_forecaster",
    "save_checkpoint",
]

Fields = npt.NDArray[np.float32]


@runtime_checkable
class Forecaster(Protocol):
    """Fields in, fields out, in physical units."""

    @property
    def family(self) -> str:
        """What kind of model this is, for example "earthformer" or "persistence"."""
        ...

    @property
    def t_in(self) -> int:
        """Context frames it wants."""
        ...

    @property
    def t_out(self) -> int:
        """Lead times it can give."""
        ...

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """Forecast from the frames up to now.

        Args:
            context: (t_in, y, x) float32 in physical units (mm h-1, dBZ, kg m-2, ...); NaN = not observed.
            lead_times: how many steps of the cadence, at most `t_out`.
            members: ensemble size.
            seed: of everything random.

        Returns:
            (member, lead_time, y, x) float32, physical units, rain ≥ 0; NaN only where not forecast.

        Raises:
            ContextTooShort: too few frames of the context are observed, at least the newest.
            ValueError: a context of another shape, more lead times than `t_out`, or no members.
        """
        ...


class NetworkForecaster:
    """A deterministic network on any grid.

    A grid larger than the trained one is cut into tiles that overlap by a quarter and blend; a smaller one is padded.
    Beyond context and forecast, memory holds one row of tiles. A context cell not observed takes its latest earlier
    value, else its next later one, else 0 in network space; the forecast is NaN where the newest frame was not
    observed. All members are equal.
    """

    def __init__(
        self,
        config: ForecasterConfig,
        network: nn.Module,
        *,
        device: str | torch.device = "cpu",
        batch: int | None = None,
    ) -> None:
        if config.architecture.input_shape[-1] != 1 or config.architecture.auxiliary_channels is not None:
            raise ValueError("expected a network of one channel without auxiliary inputs")
        self.config = config
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()
        self.batch = batch or tiles_at_once(config.patch, self.device)

    @property
    def family(self) -> str:
        """Kind of network."""
        return self.config.family

    @property
    def t_in(self) -> int:
        """Context frames."""
        return self.config.t_in

    @property
    def t_out(self) -> int:
        """Lead times in one pass; no roll-out beyond."""
        return self.config.t_out

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """Forecast (member, lead_time, y, x) from context (t_in, y, x), float32 of the model's quantity.

        Raises:
            ContextTooShort: the newest frame is wholly unobserved.
            ValueError: a context of another shape, more lead times than `t_out`, or no members.
        """
        check_context(context, self.t_in)
        check_request(lead_times, self.t_out, members)
        anchor = anchor_frames(self.config, context)
        size = (context.shape[1], context.shape[2])
        overlap = min(self.config.patch) // 4
        tiling = Tiling(size, self.config.patch, overlap, halo=overlap // 4)
        field = np.empty((lead_times, *size), np.float32)

        def read(rows: slice) -> Strip:
            return self._encode(np.concatenate([context[:, rows], anchor[:, rows]]))

        with torch.inference_mode():
            for rows, out in run_in_bands(self.network, read, tiling, frames_out=self.t_out, batch=self.batch):
                field[:, rows] = self.config.transform.inverse(out[:lead_times]).float().cpu().numpy()
        np.copyto(field, np.float32(np.nan), where=np.isnan(context[-1]))
        return np.repeat(field[None], members, axis=0) if members > 1 else field[None]

    def _encode(self, frames: Fields) -> Strip:
        """frames (frames_in, rows, x), physical units → network space without gaps; wanted: the newest is observed."""
        u = self.config.transform.forward(torch.from_numpy(frames.astype(np.float32, copy=False)).to(self.device))
        return Strip(fill_gaps(u), ~torch.isnan(u[self.t_in - 1]))


def load_forecaster(folder: str | Path, device: str = "cpu") -> NetworkForecaster | PreDiffForecaster:
    """The forecaster whose checkpoint lies in `folder`.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    config, network = load_any(folder)
    if isinstance(config, PreDiffConfig):
        return PreDiffForecaster(config, cast(PreDiffNetwork, network), torch.device(device))
    return NetworkForecaster(config, network, device=device)
