"""Units get disjoint, whole cores."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshaxd.config.types import CpuConfig, UnitConfig
from syshaxd.errors import ConfigError
from syshaxd.model.unit import BackendKind, Role
from syshaxd.supervisor.cpuplan import plan
from syshaxd.topology import Node, Topology


def _topology(nodes: int, cores: int, threads: int = 1) -> Topology:
    """Numbered as Linux does on x86: first threads of all cores, then the second ones."""
    total = nodes * cores
    siblings = [frozenset(core + total * thread for thread in range(threads)) for core in range(total)]
    node_cpus = [frozenset().union(*siblings[node * cores : (node + 1) * cores]) for node in range(nodes)]
    return Topology(tuple(Node(node, cpus) for node, cpus in enumerate(node_cpus)), tuple(siblings))


def _unit(name: str, affinity: str = "auto", role: Role = Role.CPU, **more: Optional[str]) -> UnitConfig:
    accelerator = more.get("accelerator") or "none"
    cpu = CpuConfig(affinity=affinity, reserved=more.get("reserved") or "")
    return UnitConfig(name=name, role=role, cpu=cpu, accelerator=accelerator)


def test_two_units_on_two_cores() -> None:
    assert plan([_unit("a", role=Role.ACCELERATOR), _unit("b")], _topology(1, 2)) == {"a": {0}, "b": {1}}


def test_two_units_on_two_nodes_get_a_node_each() -> None:
    topology = _topology(2, 4, threads=2)
    planned = plan([_unit("a"), _unit("b")], topology)
    assert [planned["a"], planned["b"]] == [node.cpus for node in topology.nodes]


def test_explicit_lists_and_reserved_cpus_are_left_to_their_owners() -> None:
    planned = plan([_unit("a", "0-1"), _unit("b", reserved="2")], _topology(1, 6))
    assert planned == {"a": {0, 1}, "b": {3, 4, 5}}


def test_a_unit_with_a_device_is_not_bound() -> None:
    units = [_unit("gpu", role=Role.ACCELERATOR, accelerator="nvidia"), _unit("cpu")]
    assert plan(units, _topology(1, 4)) == {"gpu": frozenset(), "cpu": {0, 1, 2, 3}}
    external = UnitConfig(name="far", role=Role.CPU, backend=BackendKind.EXTERNAL)
    assert plan([external, _unit("free", "none")], _topology(1, 4)) == {"far": frozenset(), "free": frozenset()}


def test_more_units_than_cores_share() -> None:
    assert plan([_unit("a"), _unit("b")], _topology(1, 1)) == {"a": {0}, "b": {0}}


def test_cpus_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match=r"units\.a\.cpu\.affinity: CPUs 4-5 can't be used here; .* may use 0-3"):
        plan([_unit("a", "2-5")], _topology(1, 4))


@given(nodes=st.integers(1, 4), cores=st.integers(1, 8), threads=st.integers(1, 2), units=st.integers(1, 6))
def test_parts_are_disjoint_whole_and_even(nodes: int, cores: int, threads: int, units: int) -> None:
    topology = _topology(nodes, cores, threads)
    parts = list(plan([_unit(f"u{index}") for index in range(units)], topology).values())
    assert all(parts)
    if units <= nodes * cores:
        assert sum(len(part) for part in parts) == len(topology.cpus)
        assert frozenset().union(*parts) == topology.cpus
        assert max(map(len, parts)) - min(map(len, parts)) <= threads
        assert all(any(core <= part for part in parts) for core in topology.cores)
