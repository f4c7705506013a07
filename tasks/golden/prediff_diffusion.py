"""Golden cases of PreDiff's diffusion: schedules, ancestral traces with and without alignment, few-step samplers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from infra.settings import Settings
from models.prediff.alignment import AlignmentNetwork
from models.prediff.autoencoder import FrameAutoencoder
from models.prediff.denoiser import LatentDenoiser
from models.prediff.guidance import Guidance, ShiftGuidance
from models.prediff.objective import DiffusionObjective
from models.prediff.samplers import LatentSampler, SamplerConfig, SamplingStep
from models.prediff.schedule import DiffusionSchedule
from models.prediff.solvers import Method, build_solver
from tasks.golden.cases import Document, GoldenResult
from tasks.golden.earthformer import case_name
from tasks.golden.prediff_networks import CONFIG, GUIDE_SCALE, SINGLE, load_network, relative_error

Figures = Mapping[str, Tensor]
# What was computed, and the golden figure.
Pairs = Iterator[tuple[str, Tensor, Tensor]]

# Wider tolerances. A chain multiplies the float32 rounding of its 20 evaluations; the golden weights of the bound were
# formed from float32 vectors, where 1 - abar cancels.
_WIDER = {"chained final latent": 1e-3, "lvlb_weights": 2e-4}
_TARGETS = (0.4, 0.15)
_SAMPLER = re.compile(r"(?P<method>ddim|dpmpp|unipc)(?P<order>\d)?m?_(?P<spacing>[a-z]+)(_ka(?P<scale>[\d.]+))?\.traj")


class ScheduleLoader:
    """Vectors of one schedule; its length is theirs."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Tensors with betas."""
        return "betas" in tensor_names(path)

    def companions(self, path: Path) -> Collection[Path]:
        """None."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Every vector; the golden ones are float64 rounded to float32."""
        return compare(path, _schedule_pairs(load_file(path)), 1e-6)


class TraceLoader:
    """Ancestral sampling, step by step, from stored noise; latents flow through the tiny networks beside the folder."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Tensors with noisy latents and what followed them."""
        return {"z_t", "z_prev", "steps"} <= tensor_names(path)

    def companions(self, path: Path) -> Collection[Path]:
        """None."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Each step from its golden latent; where the steps are all of a schedule, also the chain of ours."""
        return compare(path, _trace_pairs(path, load_file(path)), SINGLE)


class FewStepLoader:
    """Trajectories of diffusers' solvers, guided and not, from one start."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Tensors named after a solver."""
        return any(_SAMPLER.fullmatch(name) for name in tensor_names(path))

    def companions(self, path: Path) -> Collection[Path]:
        """None."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """The steps visited and every latent of every trajectory."""
        return compare(path, _few_step_pairs(path, load_file(path)), SINGLE)


def tensor_names(path: Path) -> frozenset[str]:
    """Names in a file of tensors; none for any other file."""
    if path.suffix != ".safetensors":
        return frozenset()
    with safe_open(path, "pt") as file:
        return frozenset(file.keys())


def compare(path: Path, pairs: Pairs, tolerance: float) -> GoldenResult:
    """The verdict on pairs of values."""
    failures, worst = [], 0.0
    try:
        for name, value, golden in pairs:
            error = relative_error(value.reshape(golden.shape) if value.numel() == golden.numel() else value, golden)
            allowed = _WIDER.get(name, tolerance)
            worst = max(worst, error)
            if not error <= allowed:
                failures.append(f"{name}: error {error:.1e}, tolerance {allowed:.1e}")
    except (KeyError, ValueError) as error:
        failures.append(f"cannot be checked: {error}")
    return GoldenResult(case_name(path), not failures, worst, tolerance, "; ".join(failures[:3]))


def sibling(path: Path, name: str) -> nn.Module:
    """The tiny network in folder `name` near a case, else of the complete set.

    Raises:
        ValueError: it is nowhere.
    """
    places = [parent / name / CONFIG for parent in path.parents[:4]]
    places += [root / "prediff" / name / CONFIG for root in [Settings().golden] if root is not None]
    for place in places:
        if place.is_file():
            return load_network(place)
    raise ValueError(f"expected the network {name} beside {path.parent}; found none")


def _schedule_pairs(golden: Figures) -> Pairs:
    schedule = DiffusionSchedule(len(golden["betas"]))
    kept = schedule.alphas_cumprod
    data, noisy = schedule.posterior_mean_weights
    alpha, sigma = schedule.coefficients(torch.arange(schedule.steps))
    ours = {
        "betas": schedule.betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": schedule.alphas_cumprod_prev,
        "sqrt_alphas_cumprod": alpha,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "log_one_minus_alphas_cumprod": (1.0 - kept).log(),
        "sqrt_recip_alphas_cumprod": (1.0 / kept).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1.0 / kept - 1.0).sqrt(),
        "posterior_variance": schedule.posterior_variance,
        "posterior_log_variance_clipped": schedule.posterior_variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": data,
        "posterior_mean_coef2": noisy,
        "lvlb_weights": schedule.bound_weights,
    }
    for name, value in golden.items():
        yield name, ours[name], value


def _trace_pairs(path: Path, golden: Figures) -> Pairs:
    denoiser = cast(LatentDenoiser, sibling(path, "tiny_denoiser"))
    estimate = cast(AlignmentNetwork, sibling(path, "tiny_alignment"))
    autoencoder = cast(FrameAutoencoder, sibling(path, "tiny_vae"))
    steps = [int(t) for t in golden["steps"]]
    # A schedule is walked whole, or a longer one is visited here and there.
    whole = steps == list(range(len(steps) - 1, -1, -1))
    schedule = DiffusionSchedule(len(steps) if whole else _schedule_length(path))
    guidance = ShiftGuidance(
        estimate, schedule, golden["avg_x_target"].flatten(), scale=_guide_scale(path), coupled=True
    )
    with torch.no_grad():
        yield "z_cond", autoencoder.encode_sequence(golden["context"])[0], golden["z_cond"]
        yield "decoded", autoencoder.decode_sequence(golden["final_latent"]), golden["decoded"]
    # The shift and the aligned mean are recorded in every file, and applied where its name says so.
    aligned = "aligned" in path.stem
    yield from _step_pairs(golden, steps, DiffusionObjective(schedule), denoiser, guidance, aligned)
    if whole:
        yield from _chain_pairs(golden, DiffusionObjective(schedule), denoiser, guidance if aligned else None)


def _guide_scale(path: Path) -> float:
    found = re.search(r"guide(\d+)", path.stem)
    return float(found.group(1)) if found else GUIDE_SCALE


def _schedule_length(path: Path) -> int:
    found = re.match(r"T(\d+)", path.stem)
    return int(found.group(1)) if found else 1000


def _step_pairs(
    golden: Figures,
    steps: list[int],
    objective: DiffusionObjective,
    denoiser: LatentDenoiser,
    guidance: ShiftGuidance,
    aligned: bool,
) -> Pairs:
    schedule = objective.schedule
    solver = build_solver("ddpm", schedule, schedule.steps)
    for index, t in enumerate(steps):
        z, noise = golden["z_t"][index], golden["noise"][index]
        with torch.no_grad():
            answer = denoiser(z, torch.full((len(z),), t), golden["z_cond"])
        prediction = objective.interpret(answer, z, torch.full((len(z),), t))
        moved = guidance.adjust(prediction)
        ours = {
            "eps": answer,
            "x0_pred": prediction.data,
            "mean": solver.step(prediction, t, torch.zeros_like(z)),
            "log_var": schedule.posterior_variance[t].clamp(min=1e-20).log().expand(len(z)),
            "align_shift": guidance.scale * guidance.distance_gradient(z, t)[0],
            "aligned_mean": solver.step(moved, t, torch.zeros_like(z)),
            "z_prev": solver.step(moved if aligned else prediction, t, noise),
        }
        for name, value in ours.items():
            yield f"{name} at t = {t}", value, golden[name][index]


def _chain_pairs(
    golden: Figures, objective: DiffusionObjective, denoiser: LatentDenoiser, guidance: Guidance | None
) -> Pairs:
    config = SamplerConfig(method="ddpm", steps=objective.schedule.steps)
    z = LatentSampler(denoiser, objective, config).sample(
        golden["z_cond"],
        cast(tuple[int, int, int, int], tuple(golden["x_T"].shape[1:])),
        StoredNoise(golden["x_T"], golden["noise"]),
        len(golden["x_T"]),
        guidance=guidance,
    )
    yield "chained final latent", z, golden["final_latent"]


class StoredNoise:
    """Noise from a file: `start` (B, ...) and one for each step (S, B, ...)."""

    def __init__(self, start: Tensor, added: Tensor | None = None) -> None:
        self.start = start
        self.added = added

    def draw(self, index: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """As stored, whatever is asked for."""
        return self.start if index == 0 or self.added is None else self.added[index - 1]


def _few_step_pairs(path: Path, golden: Figures) -> Pairs:
    denoiser = cast(LatentDenoiser, sibling(path, "tiny_denoiser"))
    estimate = cast(AlignmentNetwork, sibling(path, "tiny_alignment"))
    schedule = DiffusionSchedule()
    for name in golden:
        if (found := _SAMPLER.fullmatch(name)) is None:
            continue
        timesteps = golden[name.removesuffix("traj") + "timesteps"]
        guidance = None
        if found["scale"]:
            target = torch.tensor(_TARGETS[: len(golden["x_T"])])
            guidance = ShiftGuidance(estimate, schedule, target, scale=float(found["scale"]))
        run = _recorder(denoiser, schedule, found, len(timesteps), golden, guidance)
        visited, latents = run()
        yield f"{name}: steps", torch.tensor(visited), timesteps
        yield f"{name}", torch.stack(latents), golden[name]


def _recorder(
    denoiser: LatentDenoiser,
    schedule: DiffusionSchedule,
    found: re.Match[str],
    steps: int,
    golden: Figures,
    guidance: Guidance | None,
) -> Callable[[], tuple[list[int], list[Tensor]]]:
    """A run of one solver that returns the steps visited and the latents after each."""
    methods: dict[str, Method] = {"ddim": "ddim", "dpmpp": "dpmpp2m", "unipc": "unipc"}
    solver = build_solver(
        methods[found["method"]], schedule, steps, spacing=found["spacing"], order=int(found["order"] or 2)
    )
    seen: list[SamplingStep] = []

    def run() -> tuple[list[int], list[Tensor]]:
        x = golden["x_T"]
        LatentSampler(denoiser, DiffusionObjective(schedule), SamplerConfig(steps=steps)).sample(
            golden["z_cond"],
            cast(tuple[int, int, int, int], tuple(x.shape[1:])),
            StoredNoise(x),
            len(x),
            guidance=guidance,
            observe=seen.append,
            solver=solver,
        )
        return [step.t for step in seen], [step.z_next for step in seen]

    return run
