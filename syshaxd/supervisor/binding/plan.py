"""The binding plan: pure, from the host and what the units ask for.

The two rules of the user's guide are checked for every unit: as many threads as bound CPUs, and the same number of
CPUs on every NUMA node. A plan with problems is never applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional, Sequence

from syshaxd.topology import format_cpu_list, parse_cpu_list

from .host import HostTree

HOST_THREADS_PER_DEVICE = 2  # of an accelerator unit: engine and API server
ROOMY_NODE = 8  # cores from which on one core a node is kept for the daemon and the API servers
MEMORY_SHARE = 0.95  # of a node's memory that units may plan with


@dataclass(frozen=True)
class Memory:
    """Bytes a unit will hold."""

    weights: int = 0
    kv: int = 0
    pool: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.pool + self.activations


@dataclass(frozen=True)
class Ask:
    """What one unit asks for. `affinity`: "auto", "none" or a CPU list; `devices`: its accelerators' PCI addresses."""

    name: str
    affinity: str = "auto"
    threads: Optional[int] = None
    reserved: str = ""
    memory_nodes: str = ""
    on_accelerator: bool = False
    n_devices: int = 1
    devices: tuple[str, ...] = ()
    ranks: int = 1
    one_rank_a_node: bool = False  # stock vLLM: the threads of one rank stay inside one node
    memory: Memory = Memory()


@dataclass(frozen=True)
class Binding:
    """What one unit gets. `rank_cpus` is `cpus` cut into ranks, in order."""

    name: str
    cpus: frozenset[int] = frozenset()
    memory_nodes: tuple[int, ...] = ()
    housekeeping: frozenset[int] = frozenset()  # unpinned helper threads: API server, tokenizer
    rank_cpus: tuple[frozenset[int], ...] = ()
    memory_per_node: Mapping[int, int] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """One a CPU."""
        return len(self.cpus)


@dataclass(frozen=True)
class BindingPlan:
    """All units, and why the plan can't be used where `problems` holds anything."""

    units: tuple[Binding, ...] = ()
    housekeeping: frozenset[int] = frozenset()  # CPUs left to the daemon
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def unit(self, name: str) -> Optional[Binding]:
        """Binding of a unit."""
        return next((binding for binding in self.units if binding.name == name), None)


def plan(host: HostTree, asks: Sequence[Ask]) -> BindingPlan:
    """Explicit lists first, then accelerators' host threads near their node, then the rest evenly to the auto units."""
    problems: list[str] = []
    notes: list[str] = []
    chosen: dict[str, frozenset[int]] = {}
    for ask in asks:
        if ask.affinity not in ("auto", "none"):
            chosen[ask.name] = _explicit(host, ask, problems)
    _check_overlaps(chosen, problems)
    free = (
        host.first_threads() - _siblings(host, frozenset().union(*chosen.values())) if chosen else host.first_threads()
    )
    free = _place_accelerators(host, asks, free, chosen)
    kept = _housekeeping(host, free)
    _share_out(host, asks, free - kept, chosen, problems, notes)
    bindings = tuple(_binding(host, ask, chosen.get(ask.name, frozenset()), problems, notes) for ask in asks)
    _check_memory(host, bindings, problems)
    pinned = frozenset().union(*(binding.cpus for binding in bindings)) if bindings else frozenset()
    return BindingPlan(bindings, (host.usable - pinned) or host.usable, tuple(problems), tuple(notes))


def _siblings(host: HostTree, cpus: frozenset[int]) -> frozenset[int]:
    """The CPUs and every thread that shares a core with one of them."""
    return cpus.union(*(core for core in host.cores if core & cpus)) if cpus else cpus


def _explicit(host: HostTree, ask: Ask, problems: list[str]) -> frozenset[int]:
    where = f"unit {ask.name}: CPU list {ask.affinity}"
    try:
        wanted = parse_cpu_list(ask.affinity)
    except ValueError as error:
        problems.append(f"unit {ask.name}: affinity {error}, or auto, or none")
        return frozenset()
    existing = frozenset().union(*(node.cpus for node in host.nodes)) | host.offline
    for cpus, what in (
        (wanted - existing, "do not exist on this host"),
        (wanted & host.offline, "are offline"),
        ((wanted & existing) - host.offline - host.allowed, "lie outside the cpuset this daemon may use"),
    ):
        if cpus:
            allowed = format_cpu_list(host.usable)
            problems.append(f"{where}: CPUs {format_cpu_list(cpus)} {what}; usable are {allowed}")
    return wanted & host.usable


def _check_overlaps(chosen: Mapping[str, frozenset[int]], problems: list[str]) -> None:
    names = list(chosen)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            common = chosen[first] & chosen[second]
            if common:
                shared = format_cpu_list(common)
                problems.append(f"units {first} and {second} both ask for CPUs {shared}; give each its own")


def _place_accelerators(
    host: HostTree, asks: Sequence[Ask], free: frozenset[int], chosen: dict[str, frozenset[int]]
) -> frozenset[int]:
    """Host threads of real accelerators, on the node of their device where it has room."""
    for ask in asks:
        if ask.on_accelerator and ask.affinity == "auto":
            near = next((host.device_nodes[d] for d in ask.devices if d in host.device_nodes), None)
            if near is None:
                near = min(host.device_nodes.values(), default=host.nodes[0].id)
            wanted = HOST_THREADS_PER_DEVICE * max(1, ask.n_devices)
            order = sorted(free, key=lambda cpu: (host.node_of(cpu) != near, cpu))
            # An accelerator unit never takes more than a quarter of a small host.
            taken = frozenset(order[: max(1, min(wanted, len(free) // 4))])
            chosen[ask.name] = taken
            free -= taken
    return free


def _housekeeping(host: HostTree, free: frozenset[int]) -> frozenset[int]:
    """One core a node for the daemon and API servers, where nodes are roomy: the last of each node."""
    per_node = host.per_node(free)
    if not per_node or min(len(cpus) for cpus in per_node.values()) < ROOMY_NODE:
        return frozenset()
    return frozenset(max(cpus) for cpus in per_node.values())


def _share_out(
    host: HostTree,
    asks: Sequence[Ask],
    free: frozenset[int],
    chosen: dict[str, frozenset[int]],
    problems: list[str],
    notes: list[str],
) -> None:
    """The same number of cores on every node used, for each auto unit; the widest even choice wins."""
    waiting = [ask for ask in asks if ask.affinity == "auto" and ask.name not in chosen]
    for position, ask in enumerate(waiting):
        per_node = host.per_node(free)
        share = {node: len(cpus) // (len(waiting) - position) for node, cpus in per_node.items()}
        nodes, count = _widest(share)
        if ask.threads is not None:
            nodes, count = _for_threads(ask, share, problems)
        if not count:
            _share_one_core(host, ask, chosen, notes)
            continue
        taken = frozenset().union(*(frozenset(sorted(per_node[node])[:count]) for node in nodes))
        chosen[ask.name] = taken
        free -= taken


def _widest(share: Mapping[int, int]) -> tuple[list[int], int]:
    """Nodes and CPUs a node with the largest even total; on a tie more nodes (memory bandwidth adds up)."""
    order = sorted(share, key=lambda node: (-share[node], node))
    best: tuple[list[int], int] = ([], 0)
    for width in range(1, len(order) + 1):
        count = share[order[width - 1]]
        if count and width * count >= len(best[0]) * best[1]:
            best = (sorted(order[:width]), count)
    return best


def _for_threads(ask: Ask, share: Mapping[int, int], problems: list[str]) -> tuple[list[int], int]:
    """Exactly `threads` CPUs, evenly on as many nodes as possible."""
    threads = ask.threads or 0
    order = sorted(share, key=lambda node: (-share[node], node))
    for width in range(len(order), 0, -1):
        count, rest = divmod(threads, width)
        if not rest and count and share[order[width - 1]] >= count:
            return sorted(order[:width]), count
    free = ", ".join(f"node {node}: {share[node]}" for node in sorted(share)) or "none"
    problems.append(f"unit {ask.name}: {threads} threads don't fit evenly on the free cores ({free})")
    return [], 0


def _share_one_core(host: HostTree, ask: Ask, chosen: dict[str, frozenset[int]], notes: list[str]) -> None:
    if ask.threads is None:
        chosen[ask.name] = frozenset(sorted(host.usable)[-1:])
        notes.append(f"unit {ask.name}: fewer free cores than units; it shares CPU {format_cpu_list(chosen[ask.name])}")


def _binding(host: HostTree, ask: Ask, cpus: frozenset[int], problems: list[str], notes: list[str]) -> Binding:
    if ask.affinity == "none":
        return Binding(ask.name, memory_nodes=_memory_nodes(host, ask, frozenset(), problems))
    if not ask.on_accelerator:
        _check_rules(host, ask, cpus, problems)
    ranks = _ranks(host, ask, cpus, problems, notes)
    nodes = _memory_nodes(host, ask, cpus, problems)
    each = -(-ask.memory.total // len(nodes)) if nodes else 0
    helpers = parse_cpu_list(ask.reserved) & host.usable if ask.reserved else frozenset()
    return Binding(ask.name, cpus, nodes, helpers, ranks, {node: each for node in nodes})


def _check_rules(host: HostTree, ask: Ask, cpus: frozenset[int], problems: list[str]) -> None:
    """Threads = bound CPUs; the same number of CPUs on every node used."""
    if ask.threads is not None and cpus and ask.threads != len(cpus):
        problems.append(
            f"unit {ask.name}: {ask.threads} threads on {len(cpus)} bound CPUs ({format_cpu_list(cpus)}); "
            f"the numbers must be equal: set threads to {len(cpus)} or bind {ask.threads} CPUs"
        )
    per_node = host.per_node(cpus)
    if len({len(held) for held in per_node.values()}) > 1:
        counts = ", ".join(f"node {node}: {len(held)} ({format_cpu_list(held)})" for node, held in per_node.items())
        fewest = min(len(held) for held in per_node.values())
        problems.append(
            f"unit {ask.name}: every NUMA node must give the same number of CPUs, found {counts}; "
            f"use {fewest} on each or leave a node out"
        )


def _ranks(
    host: HostTree, ask: Ask, cpus: frozenset[int], problems: list[str], notes: list[str]
) -> tuple[frozenset[int], ...]:
    """Equal parts of the CPUs, in node order."""
    per_node = host.per_node(cpus)
    ordered = [cpu for node in per_node for cpu in sorted(per_node[node])]
    if ask.ranks <= 1 or not cpus:
        if ask.one_rank_a_node and len(per_node) > 1:
            notes.append(
                f"unit {ask.name}: stock vLLM keeps one rank inside one node; for all {len(per_node)} nodes set "
                f"tensor_parallel_size: {len(per_node)}"
            )
        return (cpus,) if cpus else ()
    each, rest = divmod(len(ordered), ask.ranks)
    if rest or not each:
        problems.append(f"unit {ask.name}: {len(ordered)} CPUs can't be cut into {ask.ranks} equal ranks")
        return (cpus,)
    parts = tuple(frozenset(ordered[i * each : (i + 1) * each]) for i in range(ask.ranks))
    if ask.one_rank_a_node and any(len(host.per_node(part)) > 1 for part in parts):
        problems.append(f"unit {ask.name}: {ask.ranks} ranks on {len(per_node)} nodes: a rank would span two nodes")
    return parts


def _memory_nodes(host: HostTree, ask: Ask, cpus: frozenset[int], problems: list[str]) -> tuple[int, ...]:
    known = {node.id for node in host.nodes}
    if not ask.memory_nodes:
        return tuple(host.per_node(cpus)) if cpus else tuple(sorted(known))
    try:
        wanted = parse_cpu_list(ask.memory_nodes)
    except ValueError as error:
        problems.append(f"unit {ask.name}: memory_nodes {error}")
        return ()
    if wanted - known:
        have = format_cpu_list(known)
        problems.append(
            f"unit {ask.name}: memory nodes {format_cpu_list(wanted - known)} do not exist; the host has {have}"
        )
    return tuple(sorted(wanted & known))


def _check_memory(host: HostTree, bindings: Sequence[Binding], problems: list[str]) -> None:
    for node in host.nodes:
        asked = {b.name: b.memory_per_node.get(node.id, 0) for b in bindings if b.memory_per_node.get(node.id, 0)}
        limit = int(node.memory * MEMORY_SHARE)
        if node.memory and sum(asked.values()) > limit:
            who = ", ".join(f"{name} {size / 2**30:.1f} GiB" for name, size in asked.items())
            problems.append(
                f"node {node.id} has {node.memory / 2**30:.1f} GiB ({limit / 2**30:.1f} GiB for units), asked for are "
                f"{sum(asked.values()) / 2**30:.1f} GiB: {who}"
            )
