"""Which units `bench calibrate` measures, how they are reached, and where the result is kept."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syshaxd.config.types import Config
from syshaxd.engine.calibration import calibration_path

from ..options import client, source
from .completions_client import BenchError


@dataclass(frozen=True)
class Measured:
    """One READY unit. `file`: where its daemon looks for the calibration."""

    name: str
    url: str
    api_key: str
    file: Path


def ready_units(args: argparse.Namespace) -> Sequence[Measured]:
    """All that the control socket lists, or those of --unit. Raises BenchError, ConfigError, CommandError."""
    config = source(args).load()
    listed = {str(unit["name"]): unit for unit in client(args).get("units")["units"]}
    chosen = []
    for name in args.unit or list(listed):
        if name not in listed:
            raise BenchError(f"no unit {name}; units are: {', '.join(listed) or 'none'}")
        if listed[name]["state"] != "ready":
            raise BenchError(f"unit {name} is {listed[name]['state']}; it must be ready to be measured")
        chosen.append(_measured(config, listed[name]))
    return chosen


def _measured(config: Config, unit: Mapping[str, Any]) -> Measured:
    name = str(unit["name"])
    own = next((one.api_key_file for one in config.units if one.name == name), "")
    secret = Path(own) if own else Path(config.state_dir) / "units" / name
    try:
        key = secret.read_text(encoding="utf-8").strip() if own or secret.exists() else ""
    except OSError as err:
        raise BenchError(f"the secret of unit {name} can't be read ({secret}: {err.strerror}); use sudo") from err
    return Measured(name, str(unit["url"]), key, calibration_path(config.state_dir, str(unit["digest"])))


def keep(file: Path, value: Mapping[str, object]) -> None:
    """Writes the file whole or not at all: the daemon may read it at any moment."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump(value, out, indent=1)
            out.write("\n")
        os.chmod(name, 0o644)
        os.replace(name, file)
    except OSError as err:
        raise BenchError(f"{file}: can't be written: {err.strerror}") from err
