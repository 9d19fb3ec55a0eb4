"""The variables of the user's guides as inputs of the plan: taken over, checked, conflicts named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from syshaxd.config.types import CpuConfig, UnitConfig
from syshaxd.model.unit import Role
from syshaxd.supervisor.binding.inputs import own_environment, parse_affinity, read_inputs
from syshaxd.topology import parse_cpu_list

GUIDE = "0-21,24-45,48-69,72-93"


def unit(env: Mapping[str, str], kind: str = "sysinfer", **more: Any) -> UnitConfig:
    cpu = CpuConfig(**{name: more.pop(name) for name in ("affinity", "threads") if name in more})
    return UnitConfig("cpu", Role.CPU, kind, env=env, cpu=cpu, **more)


@pytest.mark.parametrize(
    ("env", "affinity", "threads"),
    [
        ({}, "auto", None),
        ({"CUSTOM_CPU_AFFINITY": "auto"}, "auto", None),
        ({"CUSTOM_CPU_AFFINITY": "0-159", "OMP_NUM_THREADS": "160"}, "0-159", 160),
        ({"GOMP_CPU_AFFINITY": GUIDE, "OMP_NUM_THREADS": "88"}, GUIDE, 88),
        ({"GOMP_CPU_AFFINITY": "0 2 4-6 8-14:2"}, "0,2,4-6,8,10,12,14", None),
        ({"CUSTOM_CPU_AFFINITY": "0-3", "GOMP_CPU_AFFINITY": "3 2 1 0"}, "0-3", None),
        ({"CUSTOM_CPU_AFFINITY": "auto", "GOMP_CPU_AFFINITY": "0-3"}, "0-3", None),
    ],
)
def test_as_in_the_guides(env: Mapping[str, str], affinity: str, threads: int | None) -> None:
    said = read_inputs(unit(env))
    assert (said.affinity, said.threads, said.problems) == (affinity, threads, ())


CONFLICTS = [
    (unit({"CUSTOM_CPU_AFFINITY": "0-3"}, affinity="0-7"), ("cpu.affinity says CPUs 0-7", "says CPUs 0-3")),
    (unit({"CUSTOM_CPU_AFFINITY": "0-3"}, affinity="none"), ("cpu.affinity says not to bind", "says CPUs 0-3")),
    (unit({"CUSTOM_CPU_AFFINITY": "0-3", "GOMP_CPU_AFFINITY": "0-7"}), ("CUSTOM_CPU_AFFINITY says", "env.GOMP")),
    (unit({"OMP_NUM_THREADS": "4"}, threads=8), ("cpu.threads is 8, env.OMP_NUM_THREADS is 4",)),
    (unit({"OMP_NUM_THREADS": "four"}), ("env.OMP_NUM_THREADS is 'four', expected a whole number",)),
    (unit({"GOMP_CPU_AFFINITY": "0-3-"}), ("env.GOMP_CPU_AFFINITY is '0-3-'", "'0-3-' is not a CPU")),
    (unit({"CUSTOM_CPU_AFFINITY": "all"}), ("'all' is not a CPU", "or auto")),
    (unit({"CUSTOM_CPU_AFFINITY": "0,0"}), ("'0' names 0 a second time",)),
    (unit({"GOMP_CPU_AFFINITY": "0-4:0"}), ("'0-4:0' is not a CPU",)),
    (unit({"CUSTOM_CPU_AFFINITY": "0-1000000000"}), ("is not a CPU",)),
    (unit({"CUSTOM_CPU_AFFINITY": "0-999999999"}), ("goes beyond 99999",)),
    (
        unit({"VLLM_CPU_OMP_THREADS_BIND": "0-3|4-7"}, "vllm"),
        ("2 lists for tensor_parallel_size 1; give each rank one",),
    ),
    (
        unit({"VLLM_CPU_OMP_THREADS_BIND": "0-3|3-7"}, "vllm", tensor_parallel_size=2),
        ("two ranks share CPUs 3",),
    ),
]


@pytest.mark.parametrize(("faulty", "words"), CONFLICTS)
def test_conflicts_are_one_problem_that_names_both(faulty: UnitConfig, words: tuple[str, ...]) -> None:
    (problem,) = read_inputs(faulty).problems
    assert problem.startswith("unit cpu: ") and all(word in problem for word in words), problem


def test_vllms_own_ranks() -> None:
    env = {"VLLM_CPU_OMP_THREADS_BIND": "0-3|4-7", "OMP_NUM_THREADS": "4"}
    said = read_inputs(unit(env, "vllm", tensor_parallel_size=2))
    assert said.problems == () and (said.affinity, said.threads) == ("0-7", 8)
    assert said.rank_cpus == (frozenset(range(4)), frozenset(range(4, 8)))
    assert read_inputs(unit({"VLLM_CPU_OMP_THREADS_BIND": "nobind"}, "vllm")).affinity == "none"


def test_what_the_plan_decides_is_not_passed_on_twice() -> None:
    env = {"CUSTOM_CPU_AFFINITY": "auto", "OMP_NUM_THREADS": "2", "MINE": "1"}
    assert own_environment(unit(env), True) == {"MINE": "1"}
    assert own_environment(unit(env, affinity="none"), False) == {"OMP_NUM_THREADS": "2", "MINE": "1"}
    device = UnitConfig("npu", Role.ACCELERATOR, "vllm", accelerator="ascend", env=env)
    assert own_environment(device, True) == env and read_inputs(device).threads is None


@pytest.mark.parametrize("text", ["", " ", ",", "a-b", "5-2", "-1", "1-2-3", "0x3", "1.5", "٣", "0-3:2:1", "1e9"])
def test_broken_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a list such as 0-3,8"):
        parse_affinity(text)


@pytest.mark.parametrize("text", ["0-3:2", "0,0", "0-3,2-5", "a-b", "5-2", "1000000000", "0-1000000000", "100000", "٣"])
def test_broken_lists_of_the_kernels_form_are_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="expected a list such as 0-3,8"):
        parse_cpu_list(text)
