"""Which code is running: the revision that products, runs and reports quote."""

from __future__ import annotations

import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@lru_cache(maxsize=1)
def code_revision() -> str:
    """Commit of the checkout, `+dirty` when tracked files differ from it; outside a checkout, the installed version."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return f"squall-{version('squall')}"
    return f"{commit}+dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit


def software_versions() -> dict[str, str]:
    """Versions of the packages that shape a product's bytes."""
    names = ("squall", "torch", "numpy", "xarray", "zarr", "icechunk", "opencv-python-headless", "prefect", "mlflow")
    return {name: version(name) for name in names}
