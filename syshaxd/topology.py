"""CPUs and NUMA nodes of this host, from sysfs, and CPU lists in the kernel's notation (0-3,8)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SYSFS = Path("/sys/devices/system")
MOST_CPUS = 100_000  # the configuration takes five digits; bounds what a mistyped list can cost
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


@dataclass(frozen=True)
class Node:
    """One NUMA node: its CPUs, and its memory in bytes (0: unknown)."""

    id: int
    cpus: frozenset[int]
    memory: int = 0


@dataclass(frozen=True)
class Topology:
    """What this process may use. `cores` holds one set of sibling threads a physical core."""

    nodes: tuple[Node, ...]
    cores: tuple[frozenset[int], ...]

    @property
    def cpus(self) -> frozenset[int]:
        """All usable CPUs."""
        return frozenset().union(*(node.cpus for node in self.nodes))


def parse_cpu_list(text: str) -> frozenset[int]:
    """ "0-3,8" -> {0, 1, 2, 3, 8}; "" -> {}. ValueError on anything else, and where a number comes twice."""
    cpus: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = _RANGE.fullmatch(part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{part!r} is not a CPU or a range of CPUs; expected a list such as 0-3,8")
        add_range(cpus, part, range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(cpus)


def add_range(cpus: set[int], part: str, numbers: range) -> None:
    """Add one part of a list. ValueError where it goes beyond any machine, or repeats a number."""
    if numbers[-1] >= MOST_CPUS:
        raise ValueError(f"{part!r} goes beyond {MOST_CPUS - 1}; expected a list such as 0-3,8")
    twice = cpus.intersection(numbers)
    if twice:
        raise ValueError(f"{part!r} names {format_cpu_list(twice)} a second time; expected a list such as 0-3,8")
    cpus.update(numbers)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """{0, 1, 2, 3, 8} -> "0-3,8"."""
    ranges: list[tuple[int, int]] = []
    for cpu in sorted(cpus):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1] = (ranges[-1][0], cpu)
        else:
            ranges.append((cpu, cpu))
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ranges)


def read_topology(sysfs: Path = SYSFS, allowed: Iterable[int] = ()) -> Topology:
    """Nodes and cores cut down to `allowed` CPUs (default: the affinity of this process)."""
    usable = frozenset(allowed) or frozenset(os.sched_getaffinity(0))
    nodes = tuple(node for node in _nodes(sysfs, usable) if node.cpus)
    return Topology(nodes or (Node(0, usable),), _cores(sysfs, usable))


def _nodes(sysfs: Path, usable: frozenset[int]) -> list[Node]:
    paths = sorted(sysfs.glob("node/node[0-9]*"), key=lambda path: int(path.name[4:]))
    return [Node(int(path.name[4:]), parse_cpu_list(_read(path / "cpulist")) & usable, _memory(path)) for path in paths]


def _cores(sysfs: Path, usable: frozenset[int]) -> tuple[frozenset[int], ...]:
    cores: dict[int, frozenset[int]] = {}
    for cpu in sorted(usable):
        siblings = parse_cpu_list(_read(sysfs / f"cpu/cpu{cpu}/topology/thread_siblings_list")) & usable
        cores.setdefault(min(siblings, default=cpu), siblings or frozenset((cpu,)))
    return tuple(cores.values())


def _memory(node: Path) -> int:
    match = re.search(r"MemTotal:\s+(\d+) kB", _read(node / "meminfo"))
    return int(match[1]) * 1024 if match else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
