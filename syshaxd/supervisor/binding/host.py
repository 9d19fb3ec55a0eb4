"""The host as the binding plan sees it: every CPU and node, whether usable or not, from a sysfs tree."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Mapping, Optional

from syshaxd.topology import SYSFS, format_cpu_list, parse_cpu_list


@dataclass(frozen=True)
class HostNode:
    """One NUMA node. `cpus` are all CPUs of the node that exist; memory in bytes, 0: unknown."""

    id: int
    cpus: frozenset[int]
    memory: int = 0


@dataclass(frozen=True)
class HostTree:
    """CPUs of the host. `cores`: sets of sibling threads; `allowed`: the cpuset the daemon may hand on."""

    nodes: tuple[HostNode, ...]
    cores: tuple[frozenset[int], ...]
    offline: frozenset[int] = frozenset()
    allowed: frozenset[int] = frozenset()
    device_nodes: Mapping[str, int] = field(default_factory=dict)  # PCI address of accelerators -> node

    @property
    def usable(self) -> frozenset[int]:
        """Online and inside the cpuset."""
        return self.allowed - self.offline

    def node_of(self, cpu: int) -> Optional[int]:
        """Node id of a CPU, None where the host has no such CPU."""
        return next((node.id for node in self.nodes if cpu in node.cpus), None)

    def per_node(self, cpus: Iterable[int]) -> dict[int, frozenset[int]]:
        """The CPUs sorted into nodes; nodes without any are left out."""
        wanted = frozenset(cpus)
        found = {node.id: node.cpus & wanted for node in self.nodes}
        return {node: held for node, held in found.items() if held}

    def first_threads(self) -> frozenset[int]:
        """One usable CPU a physical core: the lowest numbered."""
        return frozenset(min(core & self.usable) for core in self.cores if core & self.usable)

    def describe(self) -> str:
        """One line a node, for error messages."""
        return "; ".join(f"node {node.id}: {format_cpu_list(node.cpus) or 'no CPU'}" for node in self.nodes)


def read_host(sysfs: Path = SYSFS, allowed: Optional[Iterable[int]] = None) -> HostTree:
    """Reads a sysfs tree (`/sys/devices/system` or a copy). `allowed`: default this process' own affinity."""
    present = parse_cpu_list(_read(sysfs / "cpu/present"))
    online = parse_cpu_list(_read(sysfs / "cpu/online"))
    usable = frozenset(os.sched_getaffinity(0)) if allowed is None else frozenset(allowed)
    present = present or usable
    online = online or present
    nodes = tuple(_nodes(sysfs)) or (HostNode(0, present),)
    placed = frozenset().union(*(node.cpus for node in nodes))
    # The kernel takes an offline CPU out of its node's list; it is kept beside, in `offline`.
    return HostTree(nodes, _cores(sysfs, placed & online), present - online, usable, _device_nodes(sysfs))


def _nodes(sysfs: Path) -> Iterable[HostNode]:
    for path in sorted(sysfs.glob("node/node[0-9]*"), key=lambda p: int(p.name[4:])):
        match = re.search(r"MemTotal:\s+(\d+) kB", _read(path / "meminfo"))
        memory = int(match[1]) * 1024 if match else 0
        yield HostNode(int(path.name[4:]), parse_cpu_list(_read(path / "cpulist")), memory)


def _cores(sysfs: Path, cpus: frozenset[int]) -> tuple[frozenset[int], ...]:
    cores: dict[int, frozenset[int]] = {}
    for cpu in sorted(cpus):
        siblings = parse_cpu_list(_read(sysfs / f"cpu/cpu{cpu}/topology/thread_siblings_list")) & cpus
        cores.setdefault(min(siblings, default=cpu), siblings or frozenset((cpu,)))
    return tuple(cores.values())


def _device_nodes(sysfs: Path) -> Mapping[str, int]:
    """NUMA node of PCI display and processing accelerators (class 0x03.., 0x12..)."""
    found: dict[str, int] = {}
    for path in sorted(sysfs.parent.parent.glob("bus/pci/devices/*")):
        if _read(path / "class")[:4] in ("0x03", "0x12"):
            node = _read(path / "numa_node")
            found[path.name] = max(0, int(node)) if re.fullmatch(r"-?\d+", node) else 0
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
