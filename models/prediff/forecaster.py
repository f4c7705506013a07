"""PreDiff as a forecaster: ensembles of any size on any grid, in a few steps, steered where asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.anchor import anchor_frames
from models.baselines import check_context, check_request
from models.gaps import fill_gaps
from models.prediff.configuration import PreDiffConfig
from models.prediff.context import KnownContext, known_context
from models.prediff.guidance import CalibratedGuidance, Guidance, ShiftGuidance
from models.prediff.intensity_estimator import AnticipatedIntensity
from models.prediff.network import PreDiffNetwork
from models.prediff.samplers import LatentSampler, SamplerConfig
from models.prediff.solvers import Method, steps_taken
from models.prediff.steering import Steered, steer
from models.prediff.tiles import Box, CellNoise, LatentTiles
from models.tiling import run_tiled

Fields = npt.NDArray[np.float32]
_LEAST_SHARE = 1e-2  # of the usual intensity; below it, targets and members count as equally dry


@dataclass(frozen=True)
class _Known:
    """What all members share: latents of the newest frames and of the anchor, and the tiles they lie on."""

    context: Tensor  # (1, T, h, w, c)
    anchor: Tensor | None  # (1, T_out, h, w, c)
    tiles: LatentTiles
    anticipated: AnticipatedIntensity
    observed: Tensor  # (y, x), whether the newest frame shows the cell


@dataclass(frozen=True)
class PreDiffForecaster:
    """Members are drawn together and depend on seed and member number alone, not on how many there are.

    Attributes:
        config: Its networks, anchor, objective and sampler.
        network: With trained weights.
        device: Where it runs.
        steps: Network evaluations per member; None: the configuration's.
        sampler: Method; None: the configuration's.
        intensity: n of the average intensity mu + n sigma that finished members are steered to; None: not steered.
        origin: Absolute latent (row, column) of the grid's first cell: windows of one domain then share its noise.
        guidance: How members are steered: "calibrated" (each to its own target, drawn again until it is met) or
            "legacy" (the published shift, one norm over all members drawn together, one draw), for diffusions alone.
        batch: Members times tiles evaluated together.
        bf16: Run the denoiser under bfloat16 autocast.
        observe: Told the seconds of each batch of members by stage, "sampling" and "decoding".
    """

    config: PreDiffConfig
    network: PreDiffNetwork
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    steps: int | None = None
    sampler: Method | None = None
    intensity: float | None = None
    origin: tuple[int, int] = (0, 0)
    guidance: Literal["calibrated", "legacy"] = "calibrated"
    batch: int = 32
    bf16: bool | None = None
    observe: Callable[[str, float], None] | None = None

    def __post_init__(self) -> None:
        if self.guidance == "legacy" and self.config.objective == "flow":
            raise ValueError("expected calibrated guidance of a flow; the published one is a shift along a diffusion")
        self.network.to(self.device).eval().requires_grad_(False)

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
        """Lead times."""
        return self.config.t_out

    @property
    def sampling(self) -> SamplerConfig:
        """The sampler in use."""
        changes = {"steps": self.steps, "method": self.sampler, "bf16": self.bf16}
        told = {name: value for name, value in changes.items() if value is not None}
        return self.config.sampler.model_copy(update=told)

    def asked(
        self, *, steps: int, intensity: float | None, observe: Callable[[str, float], None] | None = None
    ) -> Self:
        """The same forecaster at `steps` evaluations a member, fewer where its sampler cannot take so many."""
        taken = steps_taken(self.sampling.method, self.network.objective().path, steps)
        return replace(self, steps=taken, intensity=intensity, observe=observe)

    def forecast(self, context: Fields, lead_times: int, *, members: int = 1, seed: int = 0) -> Fields:
        """Ensemble (member, lead_time, y, x) float32 from context (t_in, y, x), physical units; NaN = not observed.

        A forecast cell is NaN where the newest frame was not observed.

        Raises:
            ContextTooShort: the newest frame is wholly unobserved.
            ValueError: a context of another shape, more lead times than `t_out`, or no members.
        """
        check_context(context, self.t_in)
        check_request(lead_times, self.t_out, members)
        u = self.config.transform.forward(torch.from_numpy(np.ascontiguousarray(context)).to(self.device))
        with torch.no_grad():
            known = self._known(context, u)
            if self.intensity is None:
                frames = self._members(known, range(members), seed, None)
            else:
                targets = known.anticipated.member_targets(self.intensity, range(members), seed=seed)
                frames = self._steered(known, targets, seed).frames
            physical = self.config.transform.inverse(frames[:, :lead_times])
        return np.asarray(physical.float().cpu().numpy(), np.float32)

    def anticipate(self, context: Fields) -> AnticipatedIntensity:
        """Average intensity that the context (t_in, y, x), physical units, leads to expect; network space."""
        check_context(context, self.t_in)
        u = self.config.transform.forward(torch.from_numpy(np.ascontiguousarray(context)).to(self.device))
        with torch.no_grad():
            return self._anticipate(known_context(u, self.config.constraint, self.config.context_frames))

    def achieved(self, forecast: Fields) -> npt.NDArray[np.float64]:
        """What members aim at, as read off a forecast (M, T_out, y, x), physical units, NaN = not forecast.

        The constraint's value in network space, mean over the lead times (M,); NaN where a lead has no value at all.
        """
        u = self.config.transform.forward(torch.from_numpy(np.ascontiguousarray(forecast)))
        return np.asarray(self._read(u).numpy(), np.float64)

    def anchor_forecast(self, context: Fields) -> Tensor | None:
        """What members are drawn around: (T_out, y, x), network space, without gaps; None without an anchor."""
        config, inner = self.config, self.config.anchor_model
        if config.anchor == "none":
            return None
        u = self.anchor_inputs(context)
        if config.anchor == "persistence":
            return u[-1:].expand(config.t_out, -1, -1)
        if inner is None or self.network.anchor is None:
            return u[self.t_in :]
        patch = inner.patch
        return run_tiled(
            self.network.anchor, u, patch, frames_out=config.t_out, overlap=min(patch) // 4, batch=self.batch
        )

    def anchor_inputs(self, context: Fields) -> Tensor:
        """The context and, where the anchor wants them, the extrapolated frames behind it, network space, no gaps."""
        told = self.config.anchor_model or self.config
        frames = np.concatenate([context, anchor_frames(told, context)]).astype(np.float32, copy=False)
        return fill_gaps(self.config.transform.forward(torch.from_numpy(frames).to(self.device)))

    def _known(self, context: Fields, u: Tensor) -> _Known:
        config = self.config
        tiles = LatentTiles.of_grid((u.shape[1], u.shape[2]), config.patch, config.architecture.autoencoder.downscale)
        told = known_context(u, config.constraint, config.context_frames)
        anchor = self.anchor_forecast(context)
        return _Known(
            context=self._encode(told.frames, tiles),
            anchor=None if anchor is None else self._encode(anchor, tiles),
            tiles=tiles,
            anticipated=self._anticipate(told),
            observed=~torch.isnan(u[-1]),
        )

    def _encode(self, frames: Tensor, tiles: LatentTiles) -> Tensor:
        return tiles.encode(self.network.encode, tiles.pad(frames[None, ..., None].contiguous()))

    def _anticipate(self, told: KnownContext) -> AnticipatedIntensity:
        anticipated: AnticipatedIntensity = self.network.estimator(told.frames[None, ..., None], told.values[None])
        return anticipated

    def _members(self, known: _Known, numbers: Sequence[int], seed: int, commands: Tensor | None) -> Tensor:
        """Finished frames (M, T_out, y, x) of some members, network space, NaN where the newest frame was not seen."""
        at_once = max(1, self.batch // len(known.tiles.boxes())) if self.batch < len(numbers) else len(numbers)
        height, width = known.observed.shape
        parts = []
        for first in range(0, len(numbers), at_once):
            some = slice(first, first + at_once)
            told = None if commands is None else commands[some]
            parts.append(self._draw(known, numbers[some], seed, told)[:, :, :height, :width, 0])
        drawn, mapping = torch.cat(parts), self.config.mapping
        return torch.where(known.observed, drawn if mapping is None else mapping.apply(drawn), torch.nan)

    def _steered(self, known: _Known, targets: Tensor, seed: int) -> Steered:
        """Members at their targets (M,); where they take more steps than usual, the usual ones find the commands."""
        if self.guidance == "legacy":
            return Steered(self._members(known, range(len(targets)), seed, targets), targets)
        least, usual = _LEAST_SHARE * self.config.estimator.scale, self.config.sampler.steps
        longer = self.sampling.steps > usual
        found = replace(self, steps=usual, sampler=None)._steered(known, targets, seed).commands if longer else None
        return steer(
            lambda numbers, commands: self._members(known, numbers, seed, commands),
            lambda frames: self._read(frames).clamp(min=least),
            targets.clamp(min=least),
            commands=found,
        )

    def _read(self, frames: Tensor) -> Tensor:
        """The constraint's value of finished frames, mean over the lead times (M,)."""
        return self.config.constraint.values(frames[..., None]).mean(dim=(1, 2))

    def _draw(self, known: _Known, members: Sequence[int], seed: int, commands: Tensor | None) -> Tensor:
        """Frames (B, T_out, H, W, 1) of some members, network space; guided to `commands` (B,) where there are any."""
        sampler = LatentSampler(
            _Tiled(self.network, known, self.batch).denoise, self.network.objective(), self.sampling
        )
        parts = self.config.architecture
        shape = (parts.t_out, *known.tiles.size, parts.autoencoder.latent_channels)
        noise = CellNoise(seed, members, self.origin, self.config.spread)
        guidance, begun = self._guidance(known, commands), self._now()
        residual = sampler.sample(known.context, shape, noise, len(members), guidance=guidance)
        latent = self.network.from_residual(residual, known.anchor)
        sampled = self._now()
        frames = known.tiles.decode(self.network.decode, latent)
        if self.observe is not None:
            self.observe("sampling", sampled - begun)
            self.observe("decoding", self._now() - sampled)
        return frames

    def _now(self) -> float:
        """Seconds; where somebody wants to know them, what was asked of a GPU is done."""
        if self.observe is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()

    def _guidance(self, known: _Known, commands: Tensor | None) -> Guidance | None:
        if commands is None:
            return None
        schedule = self.network.objective().schedule
        estimate = _Tiled(self.network, known, self.batch).estimate
        if self.guidance == "legacy":
            return ShiftGuidance(estimate, schedule, commands, coupled=True)
        return CalibratedGuidance(estimate, schedule, commands, calibration=self.config.reading)


class _Tiled:
    """The networks on a whole latent grid, tile by tile."""

    def __init__(self, network: PreDiffNetwork, known: _Known, batch: int) -> None:
        self.network, self.known, self.batch = network, known, batch

    def denoise(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """As LatentDenoiser.forward, on (B, T, h, w, c) of any h, w."""

        def answer(box: Box) -> Tensor:
            condition = self._condition(box, len(z))
            window = (slice(None), slice(None), *box)
            return torch.cat(
                [
                    self.network.denoiser(z[part][window], t[part], context[part][window], _part(condition, part))
                    for part in _parts(len(z), self.batch)
                ]
            )

        return self.known.tiles.blend(answer)

    def estimate(self, z: Tensor, t: Tensor) -> Tensor:
        """As AlignmentNetwork.forward, the mean over all tiles; only one tile's activations are held for a gradient."""

        def answer(box: Box) -> Tensor:
            tile: Tensor = self.network.alignment(z[(slice(None), slice(None), *box)], t, self._condition(box, len(z)))
            return tile

        boxes = self.known.tiles.boxes()
        if len(boxes) == 1 or not torch.is_grad_enabled():
            return torch.stack([answer(box) for box in boxes]).mean(dim=0)
        return torch.stack([checkpoint(answer, box, use_reentrant=False) for box in boxes]).mean(dim=0)

    def _condition(self, box: Box, members: int) -> Tensor | None:
        anchor = self.known.anchor
        return None if anchor is None else anchor[(slice(None), slice(None), *box)].expand(members, -1, -1, -1, -1)


def _parts(length: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, length)) for first in range(0, length, size))


def _part(condition: Tensor | None, part: slice) -> Tensor | None:
    return None if condition is None else condition[part]
