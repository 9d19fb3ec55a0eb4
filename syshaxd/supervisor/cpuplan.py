"""Which CPUs each unit gets. Pure: units and topology in, one set a unit out.

Explicit lists are taken as they are. The rest of the cores goes to the units with affinity "auto" in equal, contiguous
parts, whole cores (sibling threads stay together) and in node order, so that a part spans as few nodes as possible.
Two pinned thread pools on one core slow each other down many times over, so parts only overlap where cores run out.
"""

from __future__ import annotations

from typing import Mapping, Sequence

from syshaxd.config.types import UnitConfig
from syshaxd.errors import ConfigError, Problem
from syshaxd.model.unit import BackendKind, Role
from syshaxd.topology import Topology, format_cpu_list, parse_cpu_list

Cores = Sequence[frozenset[int]]


def plan(units: Sequence[UnitConfig], topology: Topology) -> Mapping[str, frozenset[int]]:
    """CPUs by unit name; empty: not bound. Raises ConfigError for a list that this host can't serve."""
    bound = [unit for unit in units if _computes_here(unit)]
    explicit = {unit.name: _explicit(unit, topology) for unit in bound if unit.cpu.affinity != "auto"}
    automatic = [unit for unit in bound if unit.cpu.affinity == "auto"]
    taken = frozenset().union(*explicit.values(), *(parse_cpu_list(unit.cpu.reserved) for unit in bound))
    parts = _split(_free_cores(topology, taken), len(automatic))
    planned = {**explicit, **{unit.name: part for unit, part in zip(automatic, parts)}}
    return {unit.name: planned.get(unit.name, frozenset()) for unit in units}


def _computes_here(unit: UnitConfig) -> bool:
    """A unit with a device of its own, or elsewhere, is not bound."""
    if unit.backend is BackendKind.EXTERNAL or unit.cpu.affinity == "none":
        return False
    return unit.cpu.affinity != "auto" or unit.role is Role.CPU or unit.accelerator == "none"


def _explicit(unit: UnitConfig, topology: Topology) -> frozenset[int]:
    cpus = parse_cpu_list(unit.cpu.affinity)
    missing = cpus - topology.cpus
    if missing:
        text = (
            f"CPUs {format_cpu_list(missing)} can't be used here; this process may use {format_cpu_list(topology.cpus)}"
        )
        raise ConfigError([Problem(text, key=f"units.{unit.name}.cpu.affinity")])
    return cpus


def _free_cores(topology: Topology, taken: frozenset[int]) -> Cores:
    node_of = {cpu: node.id for node in topology.nodes for cpu in node.cpus}
    ordered = sorted(topology.cores, key=lambda core: (node_of.get(min(core), 0), min(core)))
    free = [core - taken for core in ordered]
    return [core for core in free if core] or ordered


def _split(cores: Cores, parts: int) -> Sequence[frozenset[int]]:
    """Equal contiguous parts; the first ones are larger by one where it does not come out even."""
    if parts == 0:
        return []
    if len(cores) < parts:
        return [cores[index % len(cores)] for index in range(parts)]
    bounds = [(len(cores) * index + parts - 1) // parts for index in range(parts + 1)]
    return [frozenset().union(*cores[start:end]) for start, end in zip(bounds, bounds[1:])]
