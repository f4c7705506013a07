"""Golden cases of the benchmark scores: counts must be equal, ratios agree to the precision of their float32."""

from __future__ import annotations

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
# "bias" is the published transform except in the helper functions, where it is the plain frequency bias.
_PUBLISHED = {"csi": "csi", "pod": "pod", "sucr": "sucr", "bias": "legacy_bias"}
_PLAIN = {**_PUBLISHED, "bias": "bias"}


class MetricLoader:
    """The folder `metrics`: SEVIR skill, pooled skill, ENSO skill, video frame scores, the learning rate schedule."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """A JSON file of the folder `metrics` with a known name."""
        return document is not None and path.parent.name == "metrics" and path.stem in _CASES

    def companions(self, path: Path) -> Collection[Path]:
        """The arrays beside it."""
        return [path.with_suffix(".safetensors")]

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """The worst error over all recorded numbers of the file."""
        from safetensors.numpy import load_file

        # One sample of sevir_skill is used again with other denominators.
        arrays = path.with_name(path.name.replace("_single", "")).with_suffix(".safetensors")
        pairs = list(_CASES[path.stem](document or {}, load_file(arrays) if arrays.exists() else {}))
        worst = max(_error(ours, golden) for ours, golden in pairs)
        name = f"metrics/{path.name}"
        return GoldenResult(name, worst <= _TOLERANCE, worst, _TOLERANCE, f"{len(pairs)} recorded groups of numbers")


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
        counts = sevir_counts(forecast[:2], observed[:2]) + sevir_counts(forecast[2:], observed[2:])
        mode: Mode = name.rsplit("_", 1)[-1]
        yield from _counts(counts.over_leads() if mode == "0" else counts, golden)
        yield from _skill(sevir_skill(counts, mode, document["eps"]), golden["scores"])


def _sevir_skill_single(document: Document, arrays: Arrays) -> Pairs:
    counts = sevir_counts(arrays["pred"][1:2], arrays["target"][1:2])
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
    skill, golden = enso_skill(forecast, observed), document["case14"]
    yield from _correlations(skill, golden)
    yield (skill.c_nino_m, skill.c_nino_wm, skill.rmse_mean), [golden[it] for it in ("C_M", "C_WM", "rmse_mean")]
    yield from _correlations(enso_skill(arrays["p24"], arrays["t24"]), document["case24"])
    yield from _enso_fields(low, high, document["enso_score_class_out26"])


def _correlations(skill: EnsoSkill, golden: Mapping[str, Any]) -> Pairs:
    weights = lead_weights(len(skill.correlation))
    yield weights, golden["default_weight"]
    yield skill.correlation.sum(), golden["acc_sum_unweighted"]
    yield (weights * skill.correlation).sum(), golden["acc_sum_default_weight"]
    yield skill.rmse.sum(), golden["rmse_sum"]


def _enso_fields(low: np.float32, high: np.float32, golden: Mapping[str, Any]) -> Pairs:
    """26 months on the whole grid, temperature fields from the recipe."""
    shape = (6, 26, 24, 48)
    forecast = unit("enso.pred26", shape)
    observed = np.float32(0.5) * forecast + np.float32(0.5) * unit("enso.target26", shape)
    ours, theirs = (nino_index(field * (high - low) + low) for field in (forecast, observed))
    skill = enso_skill(ours, theirs)
    yield (lead_weights(24) * skill.correlation).sum(), golden["acc_weighted_sum"]
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

    for name in ("case_published", "case_script_defaults"):
        case = document[name]
        total, base, floor, warmup = (case[it] for it in ("total_steps", "lr", "min_lr_ratio", "warmup_percentage"))
        start = case["warmup_min_lr_ratio"]
        rates = [
            start * base + (1 - start) * rate if step < case["warmup_steps"] else rate
            for step in range(len(case["lr_at_step"]))
            for rate in [reference_rate(step, total, base=base, warmup=warmup, floor=floor)]
        ]
        # Rates are a thousandth of 1: compared in units of the peak.
        yield np.array(rates) / base, np.array(case["lr_at_step"]) / base


_CASES: Mapping[str, Callable[[Document, Arrays], Pairs]] = {
    "sevir_skill": _sevir_skill,
    "sevir_skill_single": _sevir_skill_single,
    "sevir_pool": _sevir_pool,
    "enso": _enso,
    "mmnist": _mmnist,
    "lr_schedule": _lr_schedule,
}
