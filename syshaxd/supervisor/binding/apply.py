"""The plan in words: lines that people read, JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from syshaxd.topology import format_cpu_list

from .binding_plan import Binding, BindingPlan, memory_words
from .host_tree import HostTree, describe


def lines(plan: BindingPlan, host: HostTree) -> Sequence[str]:
    """The plan for a terminal: the host, one line a unit, then what is left, notes and problems."""
    return (
        f"host: {describe(host)}",
        *(unit_line(binding, host) for binding in plan.units),
        f"daemon and helpers: CPUs {format_cpu_list(plan.housekeeping)}",
        *(f"note: {note}" for note in plan.notes),
        *(f"problem: {problem}" for problem in plan.problems),
    )


def unit_line(binding: Binding, host: HostTree) -> str:
    """What one unit gets."""
    nodes = format_cpu_list(binding.memory_nodes) or "none"
    memory = _memory_words(binding)
    if not binding.cpus:
        return f"{binding.name}: not bound; memory nodes {nodes}{memory}"
    per_node = ", ".join(f"node {node}: {len(cpus)}" for node, cpus in host.per_node(binding.cpus).items())
    helpers = f", its other threads also on {format_cpu_list(binding.housekeeping)}" if binding.housekeeping else ""
    cpus = format_cpu_list(binding.cpus)
    return (
        f"{binding.name}: {binding.threads} threads on CPUs {cpus} ({per_node}){helpers}; memory nodes {nodes}{memory}"
    )


def _memory_words(binding: Binding) -> str:
    if not binding.memory.total:
        return ""
    each = max(binding.memory_per_node.values(), default=0)
    return f"; {each / 2**30:.1f} GiB a node ({memory_words(binding.memory)})"


def plan_json(plan: BindingPlan, host: HostTree) -> Mapping[str, Any]:
    """The plan for programs. CPU lists in the kernel's notation, memory in bytes."""
    return {
        "host": [{"node": node.id, "cpus": format_cpu_list(node.cpus), "memory": node.memory} for node in host.nodes],
        "units": {binding.name: unit_json(binding, host) for binding in plan.units},
        "daemon": format_cpu_list(plan.housekeeping),
        "notes": list(plan.notes),
        "problems": list(plan.problems),
    }


def unit_json(binding: Binding, host: HostTree) -> Mapping[str, Any]:
    """One unit's part."""
    return {
        "threads": binding.threads,
        "cpus": format_cpu_list(binding.cpus),
        "per_node": {str(node): format_cpu_list(cpus) for node, cpus in host.per_node(binding.cpus).items()},
        "ranks": [format_cpu_list(cpus) for cpus in binding.rank_cpus],
        "reserved": format_cpu_list(binding.housekeeping),
        "memory_nodes": format_cpu_list(binding.memory_nodes),
        "memory": {**asdict(binding.memory), "total": binding.memory.total},
        "memory_per_node": {str(node): size for node, size in binding.memory_per_node.items()},
    }
