"""The binding of real process units: asked for by the guides' variables, in force, and told by `syshax status`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from syshaxd.supervisor.binding.shortfalls import allowed
from syshaxd.topology import format_cpu_list
from testbed import daemon_real_units as house
from testbed.daemon_real_units import ROOT, Daemon
from testbed.small_gguf import write_model

CPUS = sorted(os.sched_getaffinity(0))[:2]
UNITS = (
    "  cpu: {{{{role: cpu, kind: sysinfer, kv_blocks: 64, restart: {{{{backoff: 100ms}}}},"
    " env: {{{{CUSTOM_CPU_AFFINITY: '{cpus}', OMP_NUM_THREADS: '{threads}'}}}}}}}}"
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    model = write_model(tmp_path_factory.mktemp("model") / "llama.gguf", "llama")
    lines = [line for line in house.CONFIG.splitlines() if not line.startswith(("  gpu:", "  cpu:"))]
    unit = UNITS.format(cpus=format_cpu_list(CPUS), threads=len(CPUS))
    lines.insert(lines.index("units:") + 1, unit)
    with house.running(model, "\n".join(lines) + "\n") as running:
        yield running


def syshax(daemon: Daemon, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "syshaxd.cli", *words, "--socket", str(daemon.folder / "control.sock")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_every_compute_thread_has_its_cpu_and_status_says_so(daemon: Daemon) -> None:
    (unit,) = daemon.status()["units"]
    bound, tasks = unit["binding"], Path(f"/proc/{unit['pid']}/task")
    assert bound["cpus"] == bound["allowed"]["cpus"] == format_cpu_list(CPUS) and bound["shortfalls"] == []
    granted = bound["granted"]
    assert (granted["threads"], granted["pinned"], granted["unbound"]) == (len(CPUS), len(CPUS), 0)
    assert bound["memory"]["weights"] > 0 and bound["memory"]["kv"] > 0 and bound["memory"]["pool"] == 64 << 20
    seen = [allowed(int(task.name), tasks) for task in tasks.iterdir()]
    places: list[frozenset[int]] = [one.cpus for one in seen if one is not None]
    assert frozenset().union(*places) == frozenset(CPUS), "no thread leaves the unit's CPUs"
    # The first compute thread borrows its CPU for each step; the others are pinned for good.
    assert len(CPUS) == 1 or frozenset(CPUS[1:]) in places
    text = syshax(daemon, "status").stdout
    assert f"cpu: {len(CPUS)} threads on CPUs {format_cpu_list(CPUS)}" in text
    assert f"{len(CPUS)} of {len(CPUS)} pinned" in text and "not as planned" not in text


def test_a_reload_that_the_host_cannot_carry_changes_nothing(daemon: Daemon) -> None:
    (before,) = daemon.status()["units"]
    path = daemon.folder / "syshax.yaml"
    text = path.read_text()
    path.write_text(text.replace(f"OMP_NUM_THREADS: '{len(CPUS)}'", "OMP_NUM_THREADS: '77'"))
    try:
        refused = syshax(daemon, "reload", "--wait")
        assert refused.returncode != 0
        assert f"77 threads on {len(CPUS)} bound CPUs" in refused.stdout + refused.stderr
        (after,) = daemon.status()["units"]
        assert (after["pid"], after["epoch"], after["state"]) == (before["pid"], before["epoch"], "ready")
    finally:
        path.write_text(text)
