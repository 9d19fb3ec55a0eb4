"""What units really got, beside what was planned for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from syshaxd.model.unit import Granted, UnitView
from syshaxd.topology import format_cpu_list, parse_cpu_list

from .apply import unit_json
from .binding_plan import Binding
from .host_tree import HostTree

PROC = Path("/proc")


@dataclass(frozen=True)
class Allowed:
    """Where the kernel lets a process run and take memory from."""

    cpus: frozenset[int]
    memory_nodes: frozenset[int]


def allowed(pid: int | None, proc: Path = PROC) -> Allowed | None:
    """Of a unit's first process, in a container too; None where it can't be seen."""
    try:
        text = (proc / str(pid) / "status").read_text(encoding="ascii", errors="replace") if pid else ""
    except OSError:
        return None
    found = [re.search(rf"(?m)^{name}_allowed_list:\s*(\S+)$", text) for name in ("Cpus", "Mems")]
    lists = [parse_cpu_list(match[1]) if match else frozenset() for match in found]
    return Allowed(lists[0], lists[1]) if lists[0] else None


def shortfalls(
    binding: Binding, granted: Granted | None, seen: Allowed | None = None, in_container: bool = False
) -> Iterator[str]:
    """Where a unit got less than planned, one sentence each. Pure."""
    if not binding.cpus:
        return
    if granted is not None and granted.threads != binding.threads:
        yield f"it computes with {granted.threads} threads, planned are {binding.threads}"
    if granted is not None and granted.pinned < granted.threads:
        yield f"{granted.threads - granted.pinned} of {granted.threads} threads are not pinned"
    if granted is not None and granted.unbound:
        yield f"{granted.unbound} ranges of weights or KV cache are not bound to their node (is CAP_SYS_NICE missing?)"
    if seen is not None and seen.cpus - binding.all_cpus:
        yield f"it may run on CPUs {format_cpu_list(seen.cpus)}, planned are {format_cpu_list(binding.all_cpus)}"
    if seen is not None and in_container and seen.memory_nodes - set(binding.memory_nodes):
        nodes = format_cpu_list(seen.memory_nodes)
        yield f"its memory may come from nodes {nodes}, planned are {format_cpu_list(binding.memory_nodes)}"


def binding_json(view: UnitView, binding: Binding, host: HostTree, proc: Path = PROC) -> Mapping[str, Any]:
    """Plan and reality of one unit. `granted`: what it says itself; `allowed`: what the kernel says of its process."""
    seen = allowed(view.pid, proc)
    kernel = None
    if seen is not None:
        kernel = {"cpus": format_cpu_list(seen.cpus), "memory_nodes": format_cpu_list(seen.memory_nodes)}
    return {
        **unit_json(binding, host),
        "granted": asdict(view.granted) if view.granted else None,
        "allowed": kernel,
        "shortfalls": list(shortfalls(binding, view.granted, seen, bool(view.container))),
    }
