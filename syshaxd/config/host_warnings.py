"""What a good configuration may still get wrong on this host. Warnings only: files come and go."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from syshaxd.errors import Problem

from .load import Loaded
from .nodes import Path
from .shape import problem
from .types import Config, UnitConfig


def host_warnings(loaded: Loaded) -> list[Problem]:
    """Files that are missing, and units' keys open to everybody. What CPUs and memory allow, the binding plan says."""
    found: list[Problem] = []
    for unit in loaded.config.units:
        found.extend(_unit(loaded, loaded.config, unit))
    return found


def _secret(loaded: Loaded, path: Path, name: str) -> Iterator[Problem]:
    try:
        mode = os.stat(name).st_mode
    except OSError as err:
        yield problem(loaded.root, path, f"{name}: {err.strerror}")
        return
    if stat.S_IMODE(mode) & 0o007:
        yield problem(loaded.root, path, f"{name} is open to everybody; chmod 0640 {name}")


def _unit(loaded: Loaded, config: Config, unit: UnitConfig) -> Iterator[Problem]:
    here: Path = ("units", unit.name)
    if unit.backend.starts and unit.model_path and not os.path.exists(unit.model_path):
        path = ("models", "path") if unit.model_path == config.model_path else (*here, "model_path")
        yield problem(loaded.root, path, f"{unit.model_path} does not exist on this host")
    if unit.api_key_file:
        yield from _secret(loaded, (*here, "api_key_file"), unit.api_key_file)
