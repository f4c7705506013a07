"""Which golden files are checked: those of a folder that was named, or the project's own and then the owner's."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path

from tasks.golden.cases import Case, GoldenResult, check_case, find_cases

# Families whose models are not built yet; without a named folder their files are reported and do not fail.
AWAITED = frozenset({"baselines", "boon", "enso", "mq", "probconserv"})
NOT_YET = "no model of this family yet"


def default_folders(checkout: Path) -> tuple[Path, ...]:
    """The project's own selection, then the owner's complete set beside the checkout, those that are there."""
    folders = checkout / "tests" / "golden", checkout.parent / "shared" / "golden"
    return tuple(folder for folder in folders if folder.is_dir())


def discover(folders: Sequence[Path]) -> list[Case]:
    """The cases of several folders, one that lies in an earlier folder with the same content only once."""
    cases: list[Case] = []
    for number, folder in enumerate(folders):
        earlier = folders[:number]
        cases += [case for case in find_cases(folder) if not any(_repeats(case, other) for other in earlier)]
    return cases


def is_awaited(case: Case) -> bool:
    """Whether nothing can check the file because its family's model comes later."""
    return case.loader is None and not case.trouble and not AWAITED.isdisjoint(Path(case.name).parts)


def check_selection(cases: Sequence[Case], *, lenient: bool) -> list[GoldenResult]:
    """Results of `cases`; where `lenient`, files of families to come are skipped instead of failed."""
    return [_skipped(case) if lenient and is_awaited(case) else check_case(case) for case in cases]


def _skipped(case: Case) -> GoldenResult:
    return GoldenResult(case.name, True, float("nan"), 0.0, NOT_YET, skipped=True)


def _repeats(case: Case, folder: Path) -> bool:
    names = [case.path, *(case.loader.companions(case.path) if case.loader else ())]
    root = _root(case)
    pairs = [(path, folder / path.relative_to(root)) for path in names if path.is_relative_to(root)]
    return all(path.exists() == other.exists() for path, other in pairs) and all(
        filecmp.cmp(path, other, shallow=False) for path, other in pairs if path.exists()
    )


def _root(case: Case) -> Path:
    return case.path.parents[len(Path(case.name).parts) - 1]
