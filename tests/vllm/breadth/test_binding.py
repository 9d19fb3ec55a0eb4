"""vLLM's own binding: what the plan says arrives in its variables, and its threads are where they say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from syshaxd.supervisor.binding.shortfalls import allowed
from syshaxd.topology import format_cpu_list, parse_cpu_list
from testbed import daemon_real_units as house
from testbed import twin_models as twins
from tests.vllm import pairs

pytestmark = [
    pytest.mark.skipif(not pairs.NEW.exists(), reason="no environment with vLLM: run `make vllm-env`"),
    pytest.mark.timeout(900),
]
CPUS = frozenset(sorted(os.sched_getaffinity(0))[:2])
LIST = format_cpu_list(CPUS)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[house.Daemon]:
    """One vLLM unit, bound by the variable of the user's guide."""
    model = twins.write(tmp_path_factory.mktemp("model"), "llama")
    unit = pairs.Vllm(32).unit(model)
    unit = {**unit, "role": "cpu", "kv_blocks": 80, "env": {"CUSTOM_CPU_AFFINITY": LIST}}
    lines = [line for line in house.CONFIG.splitlines() if not line.startswith(("  gpu:", "  cpu:"))]
    text = json.dumps(unit).replace("{", "{{").replace("}", "}}")
    lines.insert(lines.index("units:") + 1, f"  cpu: {text}")
    with house.running(model.gguf, "\n".join(lines) + "\n", pairs.START, pairs.PATIENCE) as running:
        yield running


def test_plan_variables_and_threads_agree(daemon: house.Daemon) -> None:
    (unit,) = daemon.status()["units"]
    bound = unit["binding"]
    assert bound["cpus"] == LIST and bound["shortfalls"] == []
    assert parse_cpu_list(bound["allowed"]["cpus"]) <= CPUS
    assert bound["memory"]["kv"] > 0 and bound["memory"]["weights"] > 0
    environ = dict(psutil.Process(unit["pid"]).environ())
    assert environ["VLLM_CPU_OMP_THREADS_BIND"] == LIST and environ["OMP_NUM_THREADS"] == str(len(CPUS))
    assert environ["CPU_VISIBLE_MEMORY_NODES"] == bound["memory_nodes"]
    places = thread_places(unit["pid"])
    assert set().union(*(each for found in places.values() for each in found)) == CPUS, "no thread leaves its CPUs"
    pinned = {min(found) for each in places.values() for found in each if len(found) == 1}
    assert pinned == CPUS, f"a compute thread on each CPU, found {places}"


def thread_places(pid: int) -> dict[int, set[frozenset[int]]]:
    """Where the threads of a process and its children may run, by process."""
    leader = psutil.Process(pid)
    found: dict[int, set[frozenset[int]]] = {}
    for process in (leader, *leader.children(recursive=True)):
        tasks = Path(f"/proc/{process.pid}/task")
        seen = [allowed(int(task.name), tasks) for task in tasks.iterdir()]
        found[process.pid] = {one.cpus for one in seen if one is not None}
    return found
