"""A binding in the words of each kind of unit: environment variables, and the lines that people read."""

from __future__ import annotations

from typing import Mapping, Sequence

from syshaxd.topology import format_cpu_list

from .host import HostTree
from .plan import Binding, BindingPlan


def environment(binding: Binding) -> Mapping[str, str]:
    """Names of the user's documents and of OpenMP; empty for a unit that is not bound."""
    if not binding.cpus:
        return {}
    cpus = format_cpu_list(binding.cpus)
    return {"OMP_NUM_THREADS": str(binding.threads), "GOMP_CPU_AFFINITY": cpus, "CUSTOM_CPU_AFFINITY": cpus}


def vllm_environment(binding: Binding) -> Mapping[str, str]:
    """vLLM's CPU variables: one list a rank, joined by `|`, nodes in rank order; we reserve cores, not vLLM."""
    if not binding.cpus:
        return {}
    return {
        **environment(binding),
        "OMP_NUM_THREADS": str(len(binding.rank_cpus[0])),
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(format_cpu_list(part) for part in binding.rank_cpus),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "CPU_VISIBLE_MEMORY_NODES": ",".join(str(node) for node in binding.memory_nodes),
    }


def lines(plan: BindingPlan, host: HostTree) -> Sequence[str]:
    """The plan for a terminal: one line a unit, then what is left, notes and problems."""
    return (
        *(_unit_line(binding, host) for binding in plan.units),
        f"daemon and helpers: CPUs {format_cpu_list(plan.housekeeping)}",
        *(f"note: {note}" for note in plan.notes),
        *(f"problem: {problem}" for problem in plan.problems),
    )


def _unit_line(binding: Binding, host: HostTree) -> str:
    nodes = ",".join(str(node) for node in binding.memory_nodes)
    if not binding.cpus:
        return f"{binding.name}: not bound; memory nodes {nodes}"
    per_node = ", ".join(f"node {node}: {len(cpus)}" for node, cpus in host.per_node(binding.cpus).items())
    memory = max(binding.memory_per_node.values(), default=0)
    size = f"; {memory / 2**30:.1f} GiB a node" if memory else ""
    cpus = format_cpu_list(binding.cpus)
    return f"{binding.name}: {binding.threads} threads on CPUs {cpus} ({per_node}); memory nodes {nodes}{size}"
