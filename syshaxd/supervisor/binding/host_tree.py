"""The host as the binding plan sees it: every CPU and node, whether usable or not, from a sysfs tree."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from syshaxd.errors import ConfigError, Problem
from syshaxd.topology import SYSFS, format_cpu_list, parse_cpu_list
from syshaxd.units.accelerators import ACCELERATORS

STATUS = Path("/proc/self/status")
VENDORS = {one.pci_vendor: name for name, one in ACCELERATORS.items() if one.pci_vendor}
_DEVICE_CLASSES = ("0x03", "0x12")  # display and processing accelerators


@dataclass(frozen=True)
class HostNode:
    """One NUMA node. `cpus` are all CPUs of the node that exist; memory in bytes, None: unknown, 0: it has none."""

    id: int
    cpus: frozenset[int]
    memory: int | None = None


@dataclass(frozen=True)
class HostDevice:
    """An accelerator: PCI address, nvidia or ascend, and its NUMA node."""

    address: str
    accelerator: str
    node: int


@dataclass(frozen=True)
class HostTree:
    """CPUs of the host. `cores`: sets of sibling threads; `allowed`, `allowed_nodes`: the cpuset the daemon may hand on
    (None: every node)."""

    nodes: tuple[HostNode, ...]
    cores: tuple[frozenset[int], ...]
    offline: frozenset[int] = frozenset()
    allowed: frozenset[int] = frozenset()
    devices: tuple[HostDevice, ...] = ()  # in PCI order, which is how drivers number them
    allowed_nodes: frozenset[int] | None = None

    @property
    def usable(self) -> frozenset[int]:
        """Online and inside the cpuset."""
        return self.allowed - self.offline

    @property
    def memory_nodes(self) -> tuple[int, ...]:
        """Nodes a unit's memory may come from: those that have some, inside the cpuset."""
        inside = [node for node in self.nodes if self.allowed_nodes is None or node.id in self.allowed_nodes]
        return tuple(node.id for node in inside if node.memory != 0)

    def node_of(self, cpu: int) -> int | None:
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


def read_host(sysfs: Path = SYSFS, allowed: Iterable[int] | None = None) -> HostTree:
    """Reads a sysfs tree: `/sys/devices/system`, or a copy of it from another host.

    `allowed`: CPUs that units may get; where left out, this process' own affinity, and for a copy all that are online.
    Raises ConfigError for a tree that makes no sense.
    """
    try:
        return _read_host(sysfs, allowed)
    except ValueError as err:
        raise ConfigError([Problem(f"not the CPU and node lists of a Linux host: {err}", file=str(sysfs))]) from err


def _read_host(sysfs: Path, allowed: Iterable[int] | None) -> HostTree:
    own = sysfs == SYSFS
    present, online = _list(sysfs / "cpu/present"), _list(sysfs / "cpu/online")
    if allowed is None:
        allowed = os.sched_getaffinity(0) if own else online or present
    usable = frozenset(allowed)
    present = present | online or usable
    online = online or present
    if not present:
        raise ValueError("cpu/present and cpu/online name no CPU")
    nodes = _with_strays(tuple(_nodes(sysfs)) or (HostNode(0, present),), online)
    # The kernel takes an offline CPU out of its node's list; it is kept beside, in `offline`.
    return HostTree(
        nodes=nodes,
        cores=_cores(sysfs, online),
        offline=present - online,
        allowed=usable,
        devices=tuple(_devices(sysfs, nodes[0].id)),
        allowed_nodes=_own_nodes() if own else None,
    )


def _with_strays(nodes: tuple[HostNode, ...], online: frozenset[int]) -> tuple[HostNode, ...]:
    """CPUs that no node lists belong to the first one, as for the native core."""
    strays = online.difference(*(node.cpus for node in nodes))
    first = nodes[0]
    return (HostNode(first.id, first.cpus | strays, first.memory), *nodes[1:]) if strays else nodes


def _own_nodes() -> frozenset[int] | None:
    """Memory nodes of the cpuset this process is in, version 1 or 2 alike."""
    match = re.search(r"(?m)^Mems_allowed_list:\s*(\S+)$", _read(STATUS))
    return parse_cpu_list(match[1]) if match else None


def _nodes(sysfs: Path) -> Iterator[HostNode]:
    names = [path for path in sysfs.glob("node/node[0-9]*") if path.name[4:].isdecimal()]
    for path in sorted(names, key=lambda path: int(path.name[4:])):
        match = re.search(r"MemTotal:\s+(\d+) kB", _read(path / "meminfo"))
        yield HostNode(int(path.name[4:]), _list(path / "cpulist"), int(match[1]) * 1024 if match else None)


def _cores(sysfs: Path, cpus: frozenset[int]) -> tuple[frozenset[int], ...]:
    cores: dict[int, frozenset[int]] = {}
    for cpu in sorted(cpus):
        siblings = _list(sysfs / f"cpu/cpu{cpu}/topology/thread_siblings_list") & cpus | {cpu}
        cores.setdefault(min(siblings), siblings)
    return tuple(cores.values())


def _devices(sysfs: Path, first_node: int) -> Iterator[HostDevice]:
    for path in sorted(sysfs.parent.parent.glob("bus/pci/devices/*")):
        vendor = VENDORS.get(_read(path / "vendor"), "")
        if vendor and _read(path / "class")[:4] in _DEVICE_CLASSES:
            node = _read(path / "numa_node")  # -1: the firmware does not say
            yield HostDevice(path.name, vendor, int(node) if node.isdecimal() else first_node)


def _list(path: Path) -> frozenset[int]:
    try:
        return parse_cpu_list(_read(path))
    except ValueError as err:
        raise ValueError(f"{path}: {err}") from err


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def describe(host: HostTree) -> str:
    """The nodes in one line: CPUs, and memory where it is known."""
    return "; ".join(f"node {node.id}: {_node_words(node)}" for node in host.nodes)


def _node_words(node: HostNode) -> str:
    cpus = f"CPUs {format_cpu_list(node.cpus)}" if node.cpus else "no CPU"
    if node.memory is None:
        return cpus
    return f"{cpus}, {node.memory / 2**30:.1f} GiB" if node.memory else f"{cpus}, no memory"
