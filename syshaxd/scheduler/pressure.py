"""Moves of running requests: offload under KV pressure, return, drain, and where to go after a failure."""

from __future__ import annotations

from collections.abc import Iterable

from syshaxd.model.plan import Move, Reason, Whole
from syshaxd.model.request import RequestInfo, Route
from syshaxd.model.snapshot import InFlight, Snapshot, UnitSnapshot
from syshaxd.model.unit import Role, UnitState

from .able import may_go_to
from .candidates import (
    Failed,
    accelerator_bounds,
    candidates,
    cpu_bounds,
    full,
    kv_usage,
    may_move,
    preempted,
    requests,
)  # fmt: skip
from .policy import Policy

LOOK_AHEAD = 0.1  # seconds of growth to keep free: a scheduling cycle and an abort
MAX_GROWTH = 0.2  # share of the cache; a tiny cache would otherwise be emptied before it is half full
RELIEF = 0.05  # share of the cache freed below `offload_above`, so that not every token triggers a move
SETTLE = 1.0  # seconds a request stays after a move
RETURN_GAP = 0.25  # seconds between two returns
WORTH = 16  # tokens left below which a move costs more than it brings


def rescue(info: RequestInfo, snapshot: Snapshot, policy: Policy, failed: frozenset[Failed]) -> Whole | None:
    """Any ready unit that goes on from token ids, one with room first, the accelerator side before the CPU side."""
    options = []
    for role, route in ((Role.ACCELERATOR, Route.ACCELERATOR), (Role.CPU, Route.CPU)):
        for unit in candidates(info, snapshot, policy, failed, role):
            bounds = accelerator_bounds(policy, unit) if role is Role.ACCELERATOR else cpu_bounds(policy)
            if unit.view.abilities.token_ids:
                options.append((unit, route, full(unit, bounds, info.prompt_tokens) is not None))
    if not options:
        return None
    unit, route, _ = min(options, key=lambda option: option[2])
    return Whole(unit.view.name, route, Reason("failover", "its unit failed"))


def moves(snapshot: Snapshot, policy: Policy) -> tuple[Move, ...]:
    """All moves that should begin now."""
    if not (policy.pd.enabled and snapshot.pd.enabled):
        return ()
    chosen = list(_drains(snapshot, policy))
    if policy.pd.auto_offload:
        for unit in snapshot.ready(Role.ACCELERATOR):
            chosen += _offloads(unit, snapshot, policy)
        if not chosen:
            chosen += _returns(snapshot, policy)
    return tuple(chosen)


def drains(snapshot: Snapshot, policy: Policy) -> tuple[Move, ...]:
    """Requests that leave a unit which is draining."""
    return tuple(_drains(snapshot, policy)) if policy.pd.enabled and snapshot.pd.enabled else ()


def movable(entry: InFlight, snapshot: Snapshot, policy: Policy) -> bool:
    """Whether this request may move now."""
    settled = entry.last_move is None or snapshot.at - entry.last_move >= SETTLE
    return may_move(entry) and settled and entry.moves < policy.pd.max_moves


def wanted(entry: InFlight, snapshot: Snapshot, policy: Policy) -> bool:
    """Whether it may move for the scheduler's own reasons: a client that asked for a route keeps it while it lasts."""
    return entry.info.route is None and movable(entry, snapshot, policy)


def _drains(snapshot: Snapshot, policy: Policy) -> Iterable[Move]:
    leaving = {unit.view.name for unit in snapshot.units if unit.view.state is UnitState.DRAINING}
    for entry in snapshot.in_flight:
        if entry.unit in leaving and movable(entry, snapshot, policy):
            target = _other(entry, snapshot, policy)
            if target is not None:
                yield Move(entry.info.request_id, target, Reason("drain", f"{entry.unit} is draining"))


def _other(entry: InFlight, snapshot: Snapshot, policy: Policy) -> str | None:
    ready = snapshot.ready(Role.ACCELERATOR) + snapshot.ready(Role.CPU)
    fit = (unit for unit in ready if may_go_to(entry, unit, snapshot, policy.models))
    return next((unit.view.name for unit in fit if unit.view.can_hand_over), None)


def _offloads(unit: UnitSnapshot, snapshot: Snapshot, policy: Policy) -> list[Move]:
    excess = _excess_tokens(unit, snapshot, policy)
    if excess <= 0 or not unit.view.can_hand_over:
        return []
    reason = Reason("kv_pressure", f"{unit.view.name}: KV cache {kv_usage(unit) or 0:.0%} used and growing")
    room = _cpu_room(snapshot, policy)
    chosen: list[Move] = []
    for entry in _victims(unit, snapshot, policy):
        if excess <= 0 or not room:
            break
        target = next((cpu for cpu in room if may_go_to(entry, cpu, snapshot, policy.models)), None)
        if target is None:
            continue
        why = preempted_reason(unit, target) if preempted(entry, unit, snapshot.at) else reason
        chosen.append(Move(entry.info.request_id, target.view.name, why))
        excess -= _tokens(entry)
        room.remove(target)
    return chosen


def _excess_tokens(unit: UnitSnapshot, snapshot: Snapshot, policy: Policy) -> float:
    """KV tokens too many: beyond the limit now, or within LOOK_AHEAD at the present speed. A queue at the unit while
    the cache is nearly full means that it has preempted already: then one more request leaves. What leaves or has left
    counts as gone, until figures that are younger than its move say what is so."""
    total = unit.load.kv_total if unit.load is not None else None
    usage = kv_usage(unit)
    if unit.load is None or not total or usage is None:
        return 0.0
    going = (entry for entry in snapshot.in_flight if _leaves(entry, unit))
    leaving = sum(_tokens(entry) for entry in going)
    expected = usage * total + _growth(unit) - leaving
    if expected > policy.pd.offload_above * total:
        return expected - (policy.pd.offload_above - RELIEF) * total
    starved = bool(unit.load.waiting) and usage > policy.pd.return_below and not leaving
    return 1.0 if starved else 0.0


def _leaves(entry: InFlight, unit: UnitSnapshot) -> bool:
    return entry.unseen_by(unit) or (entry.moving and entry.unit == unit.view.name)


def _growth(unit: UnitSnapshot) -> float:
    load = unit.load
    if load is None or not load.step_seconds or not load.running:
        return 0.0
    return min(load.running * LOOK_AHEAD / load.step_seconds, MAX_GROWTH * (load.kv_total or 0))


def _victims(unit: UnitSnapshot, snapshot: Snapshot, policy: Policy) -> list[InFlight]:
    """Preempted ones first: they stand still, and their KV is saved already. Then the largest KV: the fewest moves for
    the room needed. Nearly finished requests are left to finish."""
    here = (
        entry
        for entry in snapshot.in_flight
        if entry.unit == unit.view.name and wanted(entry, snapshot, policy) and _left(entry) > WORTH
    )
    return sorted(here, key=lambda entry: (preempted(entry, unit, snapshot.at), _tokens(entry)), reverse=True)


def preempted_reason(unit: UnitSnapshot, target: UnitSnapshot) -> Reason:
    """Why a request that its unit has preempted moves."""
    return Reason("preempted", f"{unit.view.name} preempted it; {target.view.name} has room for its saved KV")


def _left(entry: InFlight) -> float:
    return float("inf") if entry.info.max_tokens is None else entry.info.max_tokens - entry.output_tokens


def _tokens(entry: InFlight) -> int:
    return entry.prompt_tokens + entry.output_tokens


def _cpu_room(snapshot: Snapshot, policy: Policy) -> list[UnitSnapshot]:
    """CPU units that can take a request over, each as often as it has room; requests on their way count."""
    bounds = cpu_bounds(policy)
    room: list[UnitSnapshot] = []
    for unit in snapshot.ready(Role.CPU):
        coming = sum(entry.moving and entry.target == unit.view.name for entry in snapshot.in_flight)
        usage = kv_usage(unit)
        if unit.view.can_hand_over and (usage is None or usage < bounds.kv_usage):
            room += [unit] * max(0, bounds.max_num_seqs - requests(unit) - coming)
    return room


def _returns(snapshot: Snapshot, policy: Policy) -> list[Move]:
    """At most one at a time, the one with the most left: its place on the accelerator pays longest."""
    recent = (entry.last_move for entry in snapshot.in_flight if entry.last_move is not None)
    if any(entry.moving for entry in snapshot.in_flight) or any(snapshot.at - at < RETURN_GAP for at in recent):
        return []
    cpus = {unit.view.name for unit in snapshot.units if unit.view.role is Role.CPU}
    residents = [
        entry
        for entry in snapshot.in_flight
        if entry.unit in cpus and wanted(entry, snapshot, policy) and _late(entry, snapshot, policy)
    ]
    for entry in sorted(residents, key=_left, reverse=True):
        unit = _accelerator_with_room(entry, snapshot, policy)
        if unit is not None and _left(entry) > WORTH:
            reason = Reason("room_again", f"{unit.view.name} has room and {entry.unit} is slower than asked for")
            return [Move(entry.info.request_id, unit.view.name, reason)]
    return []


def _accelerator_with_room(entry: InFlight, snapshot: Snapshot, policy: Policy) -> UnitSnapshot | None:
    for unit in snapshot.ready(Role.ACCELERATOR):
        if not may_go_to(entry, unit, snapshot, policy.models):
            continue
        usage = kv_usage(unit, _tokens(entry) + int(_growth(unit)))
        idle = unit.load is not None and not unit.load.waiting
        seats = requests(unit) < accelerator_bounds(policy, unit).max_num_seqs
        if usage is not None and usage < policy.pd.return_below and idle and seats and unit.view.can_hand_over:
            return unit
    return None


def _late(entry: InFlight, snapshot: Snapshot, policy: Policy) -> bool:
    """Whether its mean time per token exceeds its target; without a target the faster side is always wanted."""
    tier = policy.scheduler.slo.get(entry.info.tier.value)
    target = entry.info.slo_tpot or (tier.tpot if tier is not None else None)
    if target is None or entry.first_token is None or entry.output_tokens < 2:
        return True
    return (snapshot.at - entry.first_token) / (entry.output_tokens - 1) > target * policy.scheduler.safety
