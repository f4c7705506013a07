"""pysteps without its voice: it writes to standard output on import and during every forecast."""

from __future__ import annotations

from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from typing import Any


def pysteps_module(name: str) -> Any:
    """A module of pysteps by its full name, imported silently (the first import takes a second or two)."""
    with redirect_stdout(StringIO()):
        return import_module(name)
