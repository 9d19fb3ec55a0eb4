"""The binding plan: pure, from the host and what the units ask for.

The two rules of the user's guide are checked for every unit: as many threads as bound CPUs, and the same number of
CPUs on every NUMA node. A plan with problems is never applied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from syshaxd.topology import format_cpu_list, parse_cpu_list
from syshaxd.units.memory import Memory

from .host_tree import HostDevice, HostTree

HOST_THREADS_PER_DEVICE = 2  # of an accelerator unit: engine and API server
ROOMY_NODE = 8  # cores from which on one core a node is kept for the daemon and the API servers
MEMORY_SHARE = 0.95  # of a node's memory that units may plan with


@dataclass(frozen=True)
class Ask:
    """What one unit asks for. `affinity`: "auto", "none" or a CPU list."""

    name: str
    affinity: str = "auto"
    threads: int | None = None
    reserved: str = ""  # CPUs that nothing is placed on automatically
    memory_nodes: str = ""
    accelerator: str = "none"  # nvidia | ascend | none
    device_ids: tuple[str, ...] = ()
    n_devices: int = 1
    ranks: int = 1
    rank_cpus: tuple[frozenset[int], ...] = ()  # where the unit's own variables cut them
    one_rank_a_node: bool = False  # stock vLLM: the threads of one rank stay inside one node
    memory: Memory = Memory()
    memory_unknown: str = ""  # why `memory` lacks the model
    kv_heads: int = 0  # that its nodes share whole; 0: KV is spread evenly
    problems: tuple[str, ...] = ()  # in what was asked for

    @property
    def on_accelerator(self) -> bool:
        """Whether its CPUs only feed a device."""
        return self.accelerator != "none"


@dataclass(frozen=True)
class Binding:
    """What one unit gets. `rank_cpus` is `cpus` cut into ranks, in order."""

    name: str
    cpus: frozenset[int] = frozenset()
    memory_nodes: tuple[int, ...] = ()
    bind_memory: bool = False  # whether those are fewer than the host has
    housekeeping: frozenset[int] = frozenset()  # of threads that are not pinned: API server, tokenizer, scheduler
    rank_cpus: tuple[frozenset[int], ...] = ()
    memory: Memory = Memory()
    memory_per_node: Mapping[int, int] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """One a CPU."""
        return len(self.cpus)

    @property
    def all_cpus(self) -> frozenset[int]:
        """Where its processes may run at all; empty: not bound."""
        return self.cpus | self.housekeeping if self.cpus else frozenset()


@dataclass(frozen=True)
class BindingPlan:
    """All units, and why the plan can't be used where `problems` holds anything."""

    units: tuple[Binding, ...] = ()
    housekeeping: frozenset[int] = frozenset()  # CPUs left to the daemon
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def unit(self, name: str) -> Binding | None:
        """Binding of a unit."""
        return next((binding for binding in self.units if binding.name == name), None)


def plan(host: HostTree, asks: Sequence[Ask]) -> BindingPlan:
    """Explicit lists first, then accelerators' host threads near their node, then the rest evenly to the auto units."""
    problems = [problem for ask in asks for problem in ask.problems]
    notes = [f"unit {ask.name}: {ask.memory_unknown}" for ask in asks if ask.memory_unknown]
    chosen: dict[str, frozenset[int]] = {}
    for ask in asks:
        if ask.affinity not in ("auto", "none"):
            chosen[ask.name] = _explicit(host, ask, problems)
    _check_overlaps(chosen, problems)
    reserved = {ask.name: _reserved(host, ask, problems) for ask in asks}
    taken = frozenset().union(*chosen.values(), *reserved.values())
    free = _place_accelerators(host, asks, host.first_threads() - _siblings(host, taken), chosen)
    kept = _housekeeping(host, free)
    _share_out(host, asks, free - kept, chosen, problems, notes)
    helpers = {
        ask.name: _helpers(host, ask, chosen.get(ask.name, frozenset()), reserved[ask.name] or kept) for ask in asks
    }
    bindings = tuple(
        _binding(host, ask, chosen.get(ask.name, frozenset()), helpers[ask.name], problems, notes) for ask in asks
    )
    _check_memory(host, bindings, problems)
    pinned = frozenset().union(*(binding.cpus for binding in bindings)) if bindings else frozenset()
    return BindingPlan(bindings, (host.usable - pinned) or host.usable, tuple(problems), tuple(notes))


def _reserved(host: HostTree, ask: Ask, problems: list[str]) -> frozenset[int]:
    try:
        wanted = parse_cpu_list(ask.reserved)
    except ValueError as error:
        problems.append(f"unit {ask.name}: reserved: {error}")
        return frozenset()
    if wanted - host.usable:
        absent, usable = format_cpu_list(wanted - host.usable), format_cpu_list(host.usable)
        problems.append(f"unit {ask.name}: reserved CPUs {absent} can't be had; usable are {usable}")
    return wanted & host.usable


def _helpers(host: HostTree, ask: Ask, cpus: frozenset[int], kept: frozenset[int]) -> frozenset[int]:
    """Cores kept free on the nodes of an automatically placed unit: its unpinned threads run there too."""
    if ask.affinity != "auto" or not cpus:
        return frozenset()
    if ask.reserved:
        return kept
    nodes = host.per_node(cpus)
    return frozenset(cpu for cpu in kept if host.node_of(cpu) in nodes)


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
    if not wanted:
        problems.append(f"unit {ask.name}: affinity {ask.affinity!r} names no CPU; expected 0-3,8, or auto, or none")
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
            # An accelerator unit never takes more than a quarter of a small host.
            left = max(1, min(HOST_THREADS_PER_DEVICE * max(1, ask.n_devices), len(free) // 4))
            taken: list[int] = []
            for near in _device_nodes(host, ask):
                order = sorted(free.difference(taken), key=lambda cpu: (host.node_of(cpu) != near, cpu))
                taken += order[: min(HOST_THREADS_PER_DEVICE, left - len(taken))]
            chosen[ask.name] = frozenset(taken)
            free -= chosen[ask.name]
    return free


def _device_nodes(host: HostTree, ask: Ask) -> tuple[int, ...]:
    """Node of each device; that of the first of its kind where it is not known."""
    known = [device for device in host.devices if device.accelerator == ask.accelerator]
    nodes = [_device(known, name) for name in ask.device_ids or map(str, range(max(1, ask.n_devices)))]
    first = known[0].node if known else host.nodes[0].id
    return tuple(first if node is None else node for node in nodes)


def _device(known: Sequence[HostDevice], name: str) -> int | None:
    if name.isdecimal() and int(name) < len(known):
        return known[int(name)].node
    return None


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


def _binding(
    host: HostTree, ask: Ask, cpus: frozenset[int], helpers: frozenset[int], problems: list[str], notes: list[str]
) -> Binding:
    nodes = _memory_nodes(host, ask, cpus, problems, notes)
    each = _share(ask, len(nodes))
    bound = (bool(cpus) or bool(ask.memory_nodes)) and set(nodes) != set(host.memory_nodes)
    binding = Binding(
        ask.name, cpus, nodes, bound, helpers - cpus, (), ask.memory, {node: each for node in nodes} if each else {}
    )
    if ask.affinity == "none":
        return binding
    if not ask.on_accelerator:
        _check_rules(host, ask, cpus, problems)
    return replace(binding, rank_cpus=_ranks(host, ask, cpus, problems, notes))


def _share(ask: Ask, nodes: int) -> int:
    """Bytes of the fullest node: whole KV heads, the rest evenly."""
    if not nodes:
        return 0
    heads = ask.kv_heads
    kv = ask.memory.kv * -(-heads // nodes) / heads if heads else ask.memory.kv / nodes
    return math.ceil((ask.memory.total - ask.memory.kv) / nodes + kv)


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
    if ask.rank_cpus and cpus:
        return _own_ranks(host, ask, problems)
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


def _own_ranks(host: HostTree, ask: Ask, problems: list[str]) -> tuple[frozenset[int], ...]:
    """As the unit's variables cut them: equally many CPUs a rank, each within one node."""
    sizes = {len(part) for part in ask.rank_cpus}
    if len(sizes) > 1:
        counts = ", ".join(f"{len(part)} ({format_cpu_list(part)})" for part in ask.rank_cpus)
        problems.append(f"unit {ask.name}: every rank needs the same number of CPUs, found {counts}")
    for part in ask.rank_cpus:
        if len(host.per_node(part)) > 1:
            nodes = format_cpu_list(host.per_node(part))
            problems.append(f"unit {ask.name}: the rank of CPUs {format_cpu_list(part)} spans nodes {nodes}")
    return ask.rank_cpus


def _memory_nodes(
    host: HostTree, ask: Ask, cpus: frozenset[int], problems: list[str], notes: list[str]
) -> tuple[int, ...]:
    if ask.memory_nodes:
        return _asked_nodes(host, ask, problems)
    near = host.per_node(cpus)
    found = tuple(node for node in host.memory_nodes if node in near)
    bare = [node for node in near if node not in host.memory_nodes]
    if bare:
        where = format_cpu_list(found or host.memory_nodes)
        notes.append(
            f"unit {ask.name}: nodes {format_cpu_list(bare)} of its CPUs give no memory; it comes from {where}"
        )
    return found or host.memory_nodes


def _asked_nodes(host: HostTree, ask: Ask, problems: list[str]) -> tuple[int, ...]:
    try:
        wanted = parse_cpu_list(ask.memory_nodes)
    except ValueError as error:
        problems.append(f"unit {ask.name}: memory_nodes {error}")
        return ()
    known, able = {node.id for node in host.nodes}, set(host.memory_nodes)
    have = format_cpu_list(able)
    for nodes, what in (
        (wanted - known, "do not exist"),
        ((wanted & known) - able, "have none, or none for the daemon"),
    ):
        if nodes:
            problems.append(f"unit {ask.name}: memory nodes {format_cpu_list(nodes)} {what}; usable are {have}")
    return tuple(sorted(wanted & able))


def _check_memory(host: HostTree, bindings: Sequence[Binding], problems: list[str]) -> None:
    for node in host.nodes:
        asked = {b.name: b.memory_per_node.get(node.id, 0) for b in bindings if b.memory_per_node.get(node.id, 0)}
        if not node.memory or sum(asked.values()) <= node.memory * MEMORY_SHARE:
            continue
        who = ", ".join(f"{name} {_gib(size)}" for name, size in asked.items())
        parts = "; ".join(f"{b.name}: {memory_words(b.memory)}" for b in bindings if b.name in asked)
        problems.append(
            f"node {node.id} has {_gib(node.memory)} ({_gib(node.memory * MEMORY_SHARE)} for units), asked for are "
            f"{_gib(sum(asked.values()))}: {who} ({parts})"
        )


def memory_words(memory: Memory) -> str:
    """The parts of a unit's memory, in all its nodes together."""
    parts = (("weights", memory.weights), ("KV", memory.kv), ("pool", memory.pool), ("activations", memory.activations))
    return " + ".join(f"{name} {_gib(size)}" for name, size in parts)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
