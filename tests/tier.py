"""Run one test tier within its budget: `tier.py NAME -- COMMAND [-- COMMAND ...]`; `tier.py --summary`.

A tier fails when a command fails or its time is over budget, and is killed at twice the budget. A tier whose tools this
machine lacks is skipped with a line that says what to install; under CI=true that is a failure too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "build" / "tiers"
LAST_LINE = re.compile(r" in \d+\.\d+s\b")
COUNT = re.compile(r"(\d+) (passed|failed|errors?)\b")


@dataclass(frozen=True)
class Tier:
    """Budget in minutes, programs it needs and how to get them, and whether it must be root."""

    minutes: float
    programs: tuple[str, ...] = ()
    install: str = ""
    root: bool = False


ENVIRONMENTS = ("VLLM_VENV", "VLLM_OLD_VENV")
TIERS = {
    "check": Tier(3),
    "unit": Tier(2),
    "process": Tier(8),
    "kernels": Tier(8),
    "sysinfer": Tier(10),
    "vllm": Tier(18, tuple(f"{os.environ.get(name, '-')}/bin/python" for name in ENVIRONMENTS), "make vllm-env"),
    "deployed": Tier(
        20,
        ("ip", "podman", "dockerd", "runc", "mmdebstrap", f"{os.environ.get('VLLM_VENV', '-')}/bin/python"),
        "make vllm-env, and apt-get install -y iproute2 podman docker.io runc mmdebstrap",
        root=True,
    ),
    "system": Tier(
        16,
        ("ip", "podman", "dockerd", "runc", "rpmbuild", "rpmlint", "createrepo_c", "mmdebstrap"),
        "apt-get install -y iproute2 podman docker.io runc rpm rpmlint createrepo-c mmdebstrap",
        root=True,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What one command did: test counts read from its output, and its exit status."""

    passed: int
    failed: int
    status: int


def lacking(tier: Tier, commands: list[list[str]]) -> str | None:
    """What this machine lacks for the tier, or None."""
    programs = [*tier.programs, *(command[0] for command in commands)]
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(dict.fromkeys(missing))}; install: {tier.install or 'make .venv'}"
    if tier.root and os.geteuid() != 0:
        return "needs root; run it with sudo"
    return None


def counts(text: str) -> tuple[int, int]:
    """Passed and failed of pytest's last line; (0, 0) where there is none."""
    for line in reversed(text.splitlines()):
        found = COUNT.findall(line)
        if found and LAST_LINE.search(line):
            passed = sum(int(number) for number, word in found if word == "passed")
            return passed, sum(int(number) for number, word in found if word != "passed")
    return 0, 0


def kill(process: subprocess.Popen[str]) -> None:
    """End the command and what it started."""
    print("tier: at twice its budget, killed", flush=True)
    os.killpg(process.pid, signal.SIGKILL)


def run(command: list[str], limit: float) -> Outcome:
    """Run one command in its own process group with its output passed on, for at most `limit` seconds."""
    print("+ " + " ".join(command), flush=True)
    seen: list[str] = []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    watch = threading.Timer(max(limit, 1.0), kill, (process,))
    watch.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            seen.append(line)
            print(line, end="", flush=True)
        status = process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise
    finally:
        watch.cancel()
    return outcome("".join(seen), status)


def outcome(text: str, status: int) -> Outcome:
    """A command without test counts is one check that passed or failed."""
    passed, failed = counts(text)
    if not passed and not failed:
        return Outcome(int(status == 0), int(status != 0), status)
    return Outcome(passed, max(failed, int(status != 0)), status)


def record(name: str, passed: int, failed: int, seconds: float) -> None:
    """Keep the result for the summary."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"passed": passed, "failed": failed, "seconds": round(seconds, 1)}
    (RESULTS / f"{name}.json").write_text(json.dumps(result))


def run_tier(name: str, commands: list[list[str]]) -> int:
    """Run the commands of a tier; exit status."""
    tier = TIERS[name]
    reason = lacking(tier, commands)
    if reason is not None:
        ci = os.environ.get("CI") == "true"
        print(f"tier {name}: {'FAILED' if ci else 'skipped'}: {reason}")
        record(name, 0, int(ci), 0.0)
        return int(ci)
    budget = tier.minutes * 60
    start = time.monotonic()
    outcomes = [run(command, 2 * budget - (time.monotonic() - start)) for command in commands]
    seconds = time.monotonic() - start
    late = seconds > budget
    passed = sum(item.passed for item in outcomes)
    failed = sum(item.failed for item in outcomes) + int(late)
    verdict = "FAILED" if failed else "passed"
    spent = f"{seconds:.0f} s of {budget:.0f} s{', over budget' if late else ''}"
    print(f"tier {name}: {verdict}: {passed} passed, {failed} failed in {spent}", flush=True)
    record(name, passed, failed, seconds)
    return int(failed > 0)


def summary() -> int:
    """One line a tier, and the sum as the last line."""
    total = {"passed": 0, "failed": 0}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        print(f"{path.stem:10} {result['passed']:5} passed {result['failed']:4} failed {result['seconds']:7} s")
        for word in total:
            total[word] += result[word]
    print(f"{total['passed']} passed, {total['failed']} failed")
    return int(total["failed"] > 0)


def split(arguments: list[str]) -> list[list[str]]:
    """Commands between `--`."""
    commands: list[list[str]] = []
    for argument in arguments:
        if argument == "--":
            commands.append([])
        else:
            commands[-1].append(argument)
    return commands


def main(arguments: list[str]) -> int:
    """Entry point."""
    if arguments == ["--summary"]:
        return summary()
    if len(arguments) < 3 or arguments[0] not in TIERS or arguments[1] != "--":
        raise SystemExit(f"usage: tier.py {{{'|'.join(TIERS)}}} -- COMMAND [-- COMMAND ...] | --summary")
    return run_tier(arguments[0], split(arguments[1:]))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
