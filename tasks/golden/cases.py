"""Golden cases: every file of reference figures under a path is checked by its loader; an unmatched file fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

from safetensors import SafetensorError

Document = Mapping[str, Any]
_DOCUMENTATION = frozenset({"README.md", "recipe.py"})
# What a damaged file, or a network that is not what the file says, may raise.
_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BadZipFile,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class GoldenResult:
    """One golden case: its `worst` error beside the `tolerance`, both relative to the largest golden value."""

    case: str
    ok: bool
    worst: float
    tolerance: float
    message: str = ""
    skipped: bool = False


@dataclass(frozen=True)
class Case:
    """One file that has to be reproduced.

    Attributes:
        path: The file.
        name: Path below the folder that was searched.
        loader: What checks it; None where nothing can.
        trouble: Why it cannot be read, if so.
    """

    path: Path
    name: str
    loader: GoldenLoader | None
    trouble: str = ""


class GoldenLoader(Protocol):
    """Knows one kind of golden file."""

    def claims(self, path: Path, document: Document | None) -> bool:
        """Whether this file is a case of this loader, by folder, kind or model; `document` is a JSON file's content."""
        ...

    def companions(self, path: Path) -> Collection[Path]:
        """Further files that belong to the case at `path`."""
        ...

    def check(self, path: Path, document: Document | None) -> GoldenResult:
        """Run the case."""
        ...


def loaders() -> tuple[GoldenLoader, ...]:
    """Every loader there is, asked in this order."""
    from tasks.golden.datasets import EnsoLoader, NBodyLoader, SevirLoader
    from tasks.golden.earthformer import ModuleLoader
    from tasks.golden.full import FullModelLoader, PatternTableLoader
    from tasks.golden.metrics import IndexLoader, MetricLoader
    from tasks.golden.prediff_diffusion import FewStepLoader, ScheduleLoader, TraceLoader
    from tasks.golden.prediff_full import FullNetworkLoader
    from tasks.golden.prediff_metrics import EnsembleMetricLoader
    from tasks.golden.prediff_networks import NetworkLoader
    from tasks.golden.prediff_training import AutoencoderLossLoader, AverageLoader, DiffusionLossLoader, RateLoader

    return (
        ModuleLoader(),
        FullModelLoader(),
        PatternTableLoader(),
        MetricLoader(),
        IndexLoader(),
        SevirLoader(),
        EnsoLoader(),
        NBodyLoader(),
        EnsembleMetricLoader(),
        NetworkLoader(),
        FullNetworkLoader(),
        ScheduleLoader(),
        TraceLoader(),
        FewStepLoader(),
        DiffusionLossLoader(),
        AutoencoderLossLoader(),
        AverageLoader(),
        RateLoader(),
    )


def run_golden(
    path: str | Path,
    *,
    known: Sequence[GoldenLoader] | None = None,
    progress: Callable[[GoldenResult], None] | None = None,
) -> list[GoldenResult]:
    """Check every golden file at or under `path`, in order of their names.

    Raises:
        ValueError: no golden file there.
    """
    cases = find_cases(path, known=known)
    if not cases:
        raise ValueError(f"expected golden files under {path}; found none")
    results = []
    for case in cases:
        results.append(check_case(case))
        if progress is not None:
            progress(results[-1])
    return results


def find_cases(path: str | Path, *, known: Sequence[GoldenLoader] | None = None) -> list[Case]:
    """Every file at or under `path` that has to be reproduced, matched to its loader by what it holds."""
    root = Path(path)
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    choice = loaders() if known is None else known
    cases = [
        _match(file, str(file.relative_to(root.parent if root.is_file() else root)), choice)
        for file in files
        if file.name not in _DOCUMENTATION and file.parent.name != "__pycache__"
    ]
    accompanied = {companion for case in cases if case.loader for companion in case.loader.companions(case.path)}
    return [case for case in cases if case.loader is not None or case.path not in accompanied]


def check_case(case: Case) -> GoldenResult:
    """Run one case; what breaks while it runs is its failure, not the end of the others."""
    if case.loader is None:
        return GoldenResult(case.name, False, float("nan"), 0.0, case.trouble or "no loader claims this file")
    try:
        return case.loader.check(case.path, _read(case.path))
    except _BROKEN as error:
        return GoldenResult(case.name, False, float("nan"), 0.0, f"{type(error).__name__}: {error}")


def _match(file: Path, name: str, known: Sequence[GoldenLoader]) -> Case:
    try:
        document = _read(file)
        return Case(file, name, next((one for one in known if one.claims(file, document)), None))
    except _BROKEN as error:
        return Case(file, name, None, f"no loader can read this file: {type(error).__name__}: {error}")


def _read(file: Path) -> Document | None:
    if file.suffix != ".json":
        return None
    content = json.loads(file.read_bytes())
    return content if isinstance(content, dict) else {"items": content}
