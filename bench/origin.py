"""Where a saved result comes from: date, commit, command, machine."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def origin(command: str) -> dict[str, Any]:
    """To be saved with what `command` measured. A commit that ends in + had changes on top."""
    return {"date": datetime.date.today().isoformat(), "commit": _commit(), "command": command, "machine": _machine()}


def _git(*words: str) -> str:
    return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _commit() -> str:
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":!bench/results")
    return _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(), "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(), "python": platform.python_version(), "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip
