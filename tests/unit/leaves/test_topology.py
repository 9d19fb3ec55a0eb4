"""CPU lists round-trip; sysfs trees of real machines are read as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshaxd.topology import format_cpu_list, parse_cpu_list, read_topology


@given(st.frozensets(st.integers(0, 300)))
def test_cpu_lists_round_trip(cpus: frozenset[int]) -> None:
    assert parse_cpu_list(format_cpu_list(cpus)) == cpus


@pytest.mark.parametrize("text", ["a", "1-", "3-1", "1,,x", "-1"])
def test_nonsense_is_refused_with_what_came(text: str) -> None:
    with pytest.raises(ValueError, match="expected a list such as 0-3,8"):
        parse_cpu_list(text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="ascii")


def test_two_nodes_with_smt(tmp_path: Path) -> None:
    for node, cpus in ((0, "0-1,4-5"), (1, "2-3,6-7")):
        _write(tmp_path / f"node/node{node}/cpulist", cpus)
        _write(tmp_path / f"node/node{node}/meminfo", f"Node {node} MemTotal:       1024 kB")
    for cpu in range(8):
        _write(tmp_path / f"cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 4},{cpu % 4 + 4}")
    topology = read_topology(tmp_path, allowed=range(7))
    assert [node.cpus for node in topology.nodes] == [{0, 1, 4, 5}, {2, 3, 6}]
    assert topology.nodes[0].memory == 1024 * 1024
    assert set(topology.cores) == {frozenset({0, 4}), frozenset({1, 5}), frozenset({2, 6}), frozenset({3})}


def test_a_kernel_without_numa_is_one_node(tmp_path: Path) -> None:
    topology = read_topology(tmp_path, allowed=(0, 1))
    assert topology.cpus == {0, 1}
    assert topology.cores == (frozenset({0}), frozenset({1}))


def test_this_machine_can_be_read() -> None:
    assert read_topology().cpus
