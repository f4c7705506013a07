"""Golden cases of PreDiff's metrics: SEVIR skill of members and mean, CRPS, intensities, Fréchet distance."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from tasks.golden.cases import Document, GoldenResult
from tasks.verification.ensemble_frechet import feature_moments, frechet_distance
from tasks.verification.ensemble_scores import crps_gaussian, crps_of_cells
from tasks.verification.sevir_scores import Mode, SevirSkill, sevir_counts, sevir_skill

Float32 = npt.NDArray[np.float32]
Pairs = Iterator[tuple[Any, Any]]

_TOLERANCE = 5e-6
_SKILL = re.compile(r"mode(?P<mode>[012])\.sevir(_pool(?P<pool>\d+))?\.(member(?P<member>\d+)|ensemble_mean)")
_FRECHET = "frechet_distance"
# "bias" is the published transform of the frequency bias.
_PUBLISHED = {"csi": "csi", "pod": "pod", "sucr": "sucr", "bias": "legacy_bias"}


class EnsembleMetricLoader:
    """`expected.json` beside `inputs.safetensors` (ensemble, target) and `frechet_inputs.safetensors` (features)."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """A document with a skill or CRPS entry of an ensemble, beside its inputs."""
        known = document is not None and any(_SKILL.fullmatch(key) or key in _FIELDS for key in document)
        return known and path.with_name("inputs.safetensors").is_file()

    def companions(self, path: Path) -> Collection[Path]:
        """The arrays."""
        return path.with_name("inputs.safetensors"), path.with_name("frechet_inputs.safetensors")

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """The worst error over all recorded numbers, relative to the larger of 1 and the golden one."""
        from safetensors.numpy import load_file

        arrays: dict[str, npt.NDArray[Any]] = {}
        for companion in self.companions(path):
            arrays.update(load_file(companion) if companion.exists() else {})
        name, entries = f"{path.parent.name}/{path.name}", document or {}
        if unknown := [key for key in entries if not (_SKILL.fullmatch(key) or _is_number(key))]:
            return GoldenResult(name, False, float("nan"), _TOLERANCE, f"nothing computes {', '.join(unknown)}")
        pairs = [pair for key, golden in entries.items() for pair in _pairs(key, golden, arrays)]
        worst = max(_error(*pair) for pair in pairs)
        message = f"{len(pairs)} recorded groups of numbers in {len(entries)} entries"
        return GoldenResult(name, worst <= _TOLERANCE, worst, _TOLERANCE, message)


def _is_number(key: str) -> bool:
    return key in _FIELDS or key.startswith(_FRECHET)


def _pairs(key: str, golden: Any, arrays: Mapping[str, Any]) -> Pairs:
    if key.startswith(_FRECHET):
        yield frechet_distance(*(feature_moments(arrays[name]) for name in ("feat_fake", "feat_real"))), golden
    elif key in _FIELDS:
        yield _FIELDS[key](arrays["ensemble"], arrays["target"]), golden
    else:
        yield from _skill_pairs(key, golden, arrays["ensemble"], arrays["target"])


def _skill_pairs(key: str, golden: Mapping[str, Any], ensemble: Float32, target: Float32) -> Pairs:
    """Counts exactly, ratios to the precision of their float32."""
    found = _SKILL.fullmatch(key)
    assert found is not None
    (mode,) = (one for one in get_args(Mode) if one == found["mode"])
    field = ensemble.mean(axis=0) if found["member"] is None else ensemble[int(found["member"])]
    counts = sevir_counts(field, target, int(found["pool"] or 1))
    table = counts.over_leads() if mode == "0" else counts
    for name, recorded in {"hits": table.hits, "misses": table.misses, "fas": table.false_alarms}.items():
        yield recorded.T, golden[name]
    skill = sevir_skill(counts, mode)
    for index, threshold in enumerate(skill.thresholds):
        yield from _scores(skill, golden[f"{threshold:g}"], index)
    yield from _scores(skill.mean(), golden["avg"])


def _scores(skill: SevirSkill, golden: Mapping[str, Any], index: int | None = None) -> Pairs:
    for published, ours in _PUBLISHED.items():
        value = getattr(skill, ours)
        yield value if index is None else value[index], golden[published]


def _error(ours: Any, golden: Any) -> float:
    one, other = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if one.shape != other.shape or np.isnan(one).any():
        return float("inf")
    return float((np.abs(one - other) / np.maximum(np.abs(other), 1.0)).max())


def _clips(ensemble: Float32, target: Float32) -> tuple[Float32, Float32]:
    """(member, sample, lead, y, x, channel) and its target as (member, lead, y, x) and (lead, y, x): samples as leads.

    Each cell is scored alone, so that which axis is called the lead does not matter.
    """
    members, *rest = ensemble.shape
    flat = (int(np.prod(rest[:-3])), rest[-3], rest[-2] * rest[-1])
    return ensemble.reshape(members, *flat), target.reshape(flat)


def _intensity(fields: Float32) -> npt.NDArray[np.float64]:
    """Mean over lead, y, x and channel."""
    mean: npt.NDArray[np.float64] = fields.mean(axis=(-4, -3, -2, -1), dtype=np.float64)
    return mean


_FIELDS: Mapping[str, Callable[[Float32, Float32], Any]] = {
    "crps_ecdf_mean": lambda x, y: crps_of_cells(*_clips(x, y), "ecdf").mean(),
    "crps_fair_mean": lambda x, y: crps_of_cells(*_clips(x, y), "fair").mean(),
    "crps_gaussian_unbiased_std": lambda x, y: crps_gaussian(*_clips(x, y), ddof=1).mean(),
    "crps_gaussian_population_std": lambda x, y: crps_gaussian(*_clips(x, y), ddof=0).mean(),
    "mae_ensemble_mean": lambda x, y: np.abs(x.mean(axis=0, dtype=np.float64) - y).mean(),
    "mae_member0": lambda x, y: np.abs(x[0].astype(np.float64) - y).mean(),
    "avg_intensity_target_per_sample": lambda x, y: _intensity(y),
    "avg_intensity_pred_per_member_sample": lambda x, y: _intensity(x),
}
