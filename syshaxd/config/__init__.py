"""YAML in, frozen and checked values out.

`find_source` decides what is read, `Source.load` reads it (again at each reload), `diff` says what a change means.
"""

from __future__ import annotations

from .diff import Change, Reload, ReloadPlan, diff, effective, unit_digest
from .embedded import embedded_default
from .load import Loaded, load, loads, read
from .source import Source, find_source

__all__ = [
    "Change", "Loaded", "Reload", "ReloadPlan", "Source", "diff", "effective", "embedded_default", "find_source",
    "load", "loads", "read", "unit_digest",
]  # fmt: skip
