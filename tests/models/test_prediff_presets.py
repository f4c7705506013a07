"""PreDiff's presets are what the documentation says of them."""

from __future__ import annotations

import re
from pathlib import Path

from models.prediff.presets import preset, preset_names, summarise

TABLE = Path(__file__).parents[2] / "models" / "PRESETS.md"
ROW = re.compile(r"^\| `(prediff/[\w-]+)` \| (\w+) \| ([\d,]+) \| ([\d.]+) \|", re.MULTILINE)


def test_the_documented_table_of_networks_is_what_is_measured() -> None:
    documented = {(name, network): (count, cost) for name, network, count, cost in ROW.findall(TABLE.read_text())}
    measured = {
        (one.preset, one.network): (f"{one.parameters:,}", f"{one.gmac:.2f}")
        for name in preset_names()
        for one in summarise(name)
    }
    assert documented == measured


def test_no_preset_carries_an_earthformer() -> None:
    """README, CHANGELOG and PRESETS.md say so; a preset that does changes all three."""
    anchors = {name: preset(name).anchor for name in preset_names()}
    assert anchors == {"prediff/sevir-lr": "none", "prediff/small-64": "extrapolation", "prediff/tiny": "none"}
