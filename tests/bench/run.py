"""Every speed ratio, side by side on this machine: `make bench` prints a table and writes bench.json.

python tests/bench/run.py [--quick] [NAME ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

BENCHES = ("ingest", "archive", "loader", "cycle", "denoiser", "tiling", "earthformer")


def _measure(name: str, quick: bool, folder: Path) -> Any:
    """Rows of one bench, from a process of its own so that none warms the caches of the next."""
    script, out = Path(__file__).with_name(f"bench_{name}.py"), folder / f"{name}.json"
    subprocess.run([sys.executable, str(script), str(out), *(["--quick"] if quick else [])], check=True)
    return json.loads(out.read_text())


def main() -> None:
    """Run the named benches, or all of them."""
    quick = "--quick" in sys.argv
    names = [name for name in sys.argv[1:] if not name.startswith("-")] or list(BENCHES)
    results: dict[str, object] = {}
    console = Console()
    with tempfile.TemporaryDirectory(prefix="squall-bench-") as folder:
        for name in names:
            console.rule(name)
            results[name] = _measure(name, quick, Path(folder))
            console.print_json(data=results[name])
    Path("bench.json").write_text(json.dumps(results, indent=1))
    console.print("written: bench.json")


if __name__ == "__main__":
    main()
