"""Golden cases: every file of reference figures under a path is checked by its loader; an unmatched file fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Document = Mapping[str, Any]
_DOCUMENTATION = frozenset({"README.md", "recipe.py"})


@dataclass(frozen=True)
class GoldenResult:
    """One golden case: its `worst` error beside the `tolerance`, both relative to the largest golden value."""

    case: str
    ok: bool
    worst: float
    tolerance: float
    message: str = ""


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
    from tasks.golden.earthformer import ModuleLoader
    from tasks.golden.full import FullModelLoader, PatternTableLoader
    from tasks.golden.metrics import MetricLoader
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
    root = Path(path)
    results = []
    for result in _results(root, loaders() if known is None else known):
        results.append(result)
        if progress is not None:
            progress(result)
    if not results:
        raise ValueError(f"expected golden files under {root}; found none")
    return results


def _results(root: Path, known: Sequence[GoldenLoader]) -> Iterator[GoldenResult]:
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    documents = {file: _read(file) for file in files if file.name not in _DOCUMENTATION}
    owners = {
        file: loader
        for file, document in documents.items()
        if (loader := next((one for one in known if one.claims(file, document)), None)) is not None
    }
    accompanied = {companion for file, loader in owners.items() for companion in loader.companions(file)}
    for file, document in documents.items():
        if file in owners:
            yield owners[file].check(file, document)
        elif file not in accompanied:
            yield GoldenResult(_name(file), False, float("nan"), 0.0, "no loader claims this file")


def _read(file: Path) -> Document | None:
    if file.suffix != ".json":
        return None
    content = json.loads(file.read_bytes())
    return content if isinstance(content, dict) else {"items": content}


def _name(file: Path) -> str:
    return "/".join(file.parts[-3:])
