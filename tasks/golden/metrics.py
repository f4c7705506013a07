"""Golden cases of the benchmark scores: counts must be equal, ratios agree to the precision of their float32.

A file is told by what it records, not by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.golden.cases import Document, GoldenResult
from tasks.golden.recipe import unit
from tasks.verification.enso_scores import EnsoSkill, enso_skill, lead_weights, nino_index
from tasks.verification.frame_scores import frame_scores
from tasks.verification.scores import Contingency
from tasks.verification.sevir_scores import Mode, SevirSkill, sevir_counts, sevir_skill

Arrays = Mapping[str, npt.NDArray[Any]]
# Errors relative to the larger of 1 and the golden value.
Pairs = Iterator[tuple[Any, Any]]

_TOLERANCE = 5e-6
_BORROWED = re.compile(r"pred = (\w+)\.pred\[(\d+):(\d+)\]")
_LEADS = re.compile(r"case(\d+)")
_FIELDS = re.compile(r'r01\("([^"]+)",(?:\(([\d,]+)\))?')
_MIXTURE = re.compile(r"([\d.]+)\*pred ?\+ ?([\d.]+)\*r01")
# "bias" is the published transform except in the helper functions, where it is the plain frequency bias.
_PUBLISHED = {"csi": "csi", "pod": "pod", "sucr": "sucr", "bias": "legacy_bias"}
_PLAIN = {**_PUBLISHED, "bias": "bias"}


class MetricLoader:
    """SEVIR skill, pooled skill, ENSO skill, video frame scores, the learning rate schedule: JSON, arrays beside it."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Recorded scores of a known kind."""
        return document is not None and _case(document) is not None

    def companions(self, path: Path) -> Collection[Path]:
        """The arrays beside it."""
        return [path.with_suffix(".safetensors")]

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """The worst error over all recorded numbers of the file."""
        from safetensors.numpy import load_file

        case = _case(document or {})
        arrays = path.with_name(_arrays(document or {}, path.stem)).with_suffix(".safetensors")
        pairs = list(case(document or {}, load_file(arrays) if arrays.exists() else {})) if case else []
        worst = max(_error(ours, golden) for ours, golden in pairs)
        name = f"{path.parent.name}/{path.name}"
        return GoldenResult(name, worst <= _TOLERANCE, worst, _TOLERANCE, f"{len(pairs)} recorded groups of numbers")


class IndexLoader:
    """An .npz of normalised temperature fields, their Nino3.4 indices and the sums of the index's scores."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Arrays of that kind."""
        return path.suffix == ".npz" and {"nino_t", "nino_p", "acc_sum"} <= set(_members(path))

    def companions(self, path: Path) -> Collection[Path]:
        """None."""
        return ()

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Indices from fields, weights, correlation and error sums."""
        with np.load(path, allow_pickle=False) as arrays:
            pairs = list(_index(dict(arrays)))
        worst = max(_error(ours, golden) for ours, golden in pairs)
        name = f"{path.parent.name}/{path.name}"
        return GoldenResult(name, worst <= _TOLERANCE, worst, _TOLERANCE, f"{len(pairs)} recorded groups of numbers")


def _members(path: Path) -> list[str]:
    with np.load(path, allow_pickle=False) as arrays:
        return list(arrays.files)


def _index(arrays: Arrays) -> Pairs:
    low, high = np.float32(arrays["SST_MIN"]), np.float32(arrays["SST_MAX"])
    forecast, observed = (nino_index(arrays[f"{name}_norm"] * (high - low) + low) for name in ("pred", "target"))
    yield forecast, arrays["nino_p"]
    yield observed, arrays["nino_t"]
    skill, leads = enso_skill(forecast, observed), forecast.shape[1]
    yield lead_weights(leads), arrays[f"weights{leads}"]
    yield skill.correlation.sum(), arrays["acc_sum"]
    yield (lead_weights(leads) * skill.correlation).sum(), arrays["wacc_sum"]
    yield skill.rmse.sum(), arrays["rmse_sum"]


def _case(document: Document) -> Callable[[Document, Arrays], Pairs] | None:
    return next((case for known, case in _CASES if known(document)), None)


def _arrays(document: Document, stem: str) -> str:
    """Whose arrays: those of the file itself, or of another one as the note says (`pred = OTHER.pred[1:2]`)."""
    borrowed = _BORROWED.search(str(document.get("note", "")))
    return borrowed[1] if borrowed else stem


def _error(ours: Any, golden: Any) -> float:
    one, other = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if one.shape != other.shape or np.isnan(one).any():
        return float("inf")
    return float((np.abs(one - other) / np.maximum(np.abs(other), 1.0)).max())


def _skill(skill: SevirSkill, golden: Mapping[str, Any], names: Mapping[str, str] = _PUBLISHED) -> Pairs:
    for index, threshold in enumerate(skill.thresholds):
        for published, ours in names.items():
            yield getattr(skill, ours)[index], golden[f"{threshold:g}"][published]
    for published, ours in names.items() if "avg" in golden else ():
        yield getattr(skill.mean(), ours), golden["avg"][published]


def _counts(table: Contingency, golden: Mapping[str, Any]) -> Pairs:
    yield table.hits.T, golden["hits"]
    yield table.misses.T, golden["misses"]
    yield table.false_alarms.T, golden["fas"]


def _sevir_skill(document: Document, arrays: Arrays) -> Pairs:
    for name, golden in document["cases"].items():
        suffix = "_degenerate" if name.startswith("degenerate") else ""
        forecast, observed = arrays[f"pred{suffix}"], arrays[f"target{suffix}"]
        half = len(forecast) // 2
        counts = sevir_counts(forecast[:half], observed[:half]) + sevir_counts(forecast[half:], observed[half:])
        mode: Mode = name.rsplit("_", 1)[-1]
        yield from _counts(counts.over_leads() if mode == "0" else counts, golden)
        yield from _skill(sevir_skill(counts, mode, document["eps"]), golden["scores"])


def _sevir_skill_single(document: Document, arrays: Arrays) -> Pairs:
    """One slice of another file's arrays, with other denominators."""
    borrowed = _BORROWED.search(document["note"])
    part = slice(int(borrowed[2]), int(borrowed[3])) if borrowed else slice(None)
    counts = sevir_counts(arrays["pred"][part], arrays["target"][part])
    yield from _skill(sevir_skill(counts, eps=1e-6), document["values"], _PLAIN)


def _sevir_pool(document: Document, arrays: Arrays) -> Pairs:
    for pool, golden in document["pool"].items():
        counts = sevir_counts(arrays["pred"], arrays["target"], int(pool))
        yield from _counts(counts.over_leads(), golden)
        yield from _skill(sevir_skill(counts), golden["scores"])


def _enso(document: Document, arrays: Arrays) -> Pairs:
    low, high = np.float32(document["sst_min"]), np.float32(document["sst_max"])
    forecast, observed = (nino_index(arrays[f"{name}_box"] * (high - low) + low) for name in ("pred", "target"))
    yield forecast, arrays["nino_pred"]
    yield observed, arrays["nino_target"]
    yield nino_index(arrays["pred_box"]), arrays["nino_pred_not_normalised"]
    for name, golden in document.items():
        if leads := _LEADS.fullmatch(name):
            stored = f"p{leads[1]}" in arrays
            pair = (arrays[f"p{leads[1]}"], arrays[f"t{leads[1]}"]) if stored else (forecast, observed)
            yield from _correlations(enso_skill(*pair), golden)
        elif isinstance(golden, Mapping) and "acc_weighted_sum" in golden:
            yield from _enso_fields(low, high, golden)


def _correlations(skill: EnsoSkill, golden: Mapping[str, Any]) -> Pairs:
    weights = lead_weights(len(skill.correlation))
    yield weights, golden["default_weight"]
    yield skill.correlation.sum(), golden["acc_sum_unweighted"]
    yield (weights * skill.correlation).sum(), golden["acc_sum_default_weight"]
    yield skill.rmse.sum(), golden["rmse_sum"]
    if "C_M" in golden:
        yield (skill.c_nino_m, skill.c_nino_wm, skill.rmse_mean), [golden[it] for it in ("C_M", "C_WM", "rmse_mean")]


def _enso_fields(low: np.float32, high: np.float32, golden: Mapping[str, Any]) -> Pairs:
    """The whole grid, temperature fields from the recipe, as `input` says: pred, and pred mixed with another."""
    (pred, shape), (target, _) = _FIELDS.findall(golden["input"])[:2]
    mixture = _MIXTURE.search(golden["input"])
    ours_share, other_share = (np.float32(mixture[n]) for n in (1, 2)) if mixture else np.full(2, 0.5, np.float32)
    forecast = unit(pred, [int(size) for size in shape.split(",")])
    observed = ours_share * forecast + other_share * unit(target, forecast.shape)
    ours, theirs = (nino_index(field * (high - low) + low) for field in (forecast, observed))
    skill = enso_skill(ours, theirs)
    yield (lead_weights(len(skill.correlation)) * skill.correlation).sum(), golden["acc_weighted_sum"]
    yield np.mean((forecast.astype(np.float64) - observed) ** 2), golden["mse"]


def _mmnist(document: Document, arrays: Arrays) -> Pairs:
    scores = frame_scores(arrays["pred"], arrays["target"])
    cells = arrays["pred"].shape[2] * arrays["pred"].shape[3]
    yield scores.mse / cells, document["mse_mean"]
    yield (scores.mse, scores.mae), (document["frame_mse"], document["frame_mae"])
    yield scores.ssim, document["ssim_data_range_none"]
    yield frame_scores(arrays["pred"], arrays["target"], 1.0).ssim, document["ssim_data_range_1"]


def _lr_schedule(document: Document, arrays: Arrays) -> Pairs:
    from tasks.training.optimisation import reference_rate

    for case in document.values():
        if not isinstance(case, Mapping):
            continue
        total, base, floor, warmup = (case[it] for it in ("total_steps", "lr", "min_lr_ratio", "warmup_percentage"))
        start = case["warmup_min_lr_ratio"]
        rates = [
            start * base + (1 - start) * rate if step < case["warmup_steps"] else rate
            for step in range(len(case["lr_at_step"]))
            for rate in [reference_rate(step, total, base=base, warmup=warmup, floor=floor)]
        ]
        # Rates are a thousandth of 1: compared in units of the peak.
        yield np.array(rates) / base, np.array(case["lr_at_step"]) / base


# What tells a file, and what recomputes it.
_CASES: tuple[tuple[Callable[[Document], bool], Callable[[Document, Arrays], Pairs]], ...] = (
    (lambda told: "cases" in told and "eps" in told, _sevir_skill),
    (lambda told: "pool" in told and "thresholds" in told, _sevir_pool),
    (lambda told: "values" in told and _BORROWED.search(str(told.get("note"))) is not None, _sevir_skill_single),
    (lambda told: "sst_min" in told and any(map(_LEADS.fullmatch, told)), _enso),
    (lambda told: "frame_mse" in told, _mmnist),
    (lambda told: any(isinstance(case, Mapping) and "lr_at_step" in case for case in told.values()), _lr_schedule),
)
