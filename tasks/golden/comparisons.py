"""Comparisons of one golden case: exact ones of integers and names, near ones of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tasks.golden.cases import GoldenResult

NEAR = 1e-6


class Comparison(NamedTuple):
    """What was compared, how far apart (relative to the largest golden value), what is allowed, and what came."""

    what: str
    error: float
    tolerance: float
    told: str


def exact(what: str, golden: Any, ours: Any) -> Comparison:
    """Equal or not."""
    same = golden == ours
    return Comparison(what, 0.0 if same else math.inf, 0.0, "" if same else f"expected {golden}; got {ours}"[:200])


def near(what: str, golden: Any, ours: Any, tolerance: float = NEAR) -> Comparison:
    """max |ours - golden| / max |golden|; infinite for another shape, NaN counts as far."""
    one, other = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if one.shape != other.shape:
        return Comparison(what, math.inf, tolerance, f"expected shape {other.shape}; got {one.shape}")
    error = float(np.abs(one - other).max(initial=0.0) / max(float(np.abs(other).max(initial=0.0)), 1e-30))
    return Comparison(what, error, tolerance, f"error {error:.1e}, tolerance {tolerance:.1e}")


def compare_all(path: Path, comparisons: Iterable[Comparison], tolerance: float = NEAR) -> GoldenResult:
    """The verdict over all comparisons of a file."""
    worst, failures, count = 0.0, [], 0
    for one in comparisons:
        count += 1
        worst = max(worst, one.error)
        if not one.error <= one.tolerance:
            worst = math.inf if math.isnan(one.error) else worst
            failures.append(f"{one.what}: {one.told}")
    name = "/".join(path.with_suffix("").parts[-2:])
    message = "; ".join(failures[:3]) if failures else f"{count} comparisons"
    return GoldenResult(name, not failures and count > 0, worst, tolerance, message)
