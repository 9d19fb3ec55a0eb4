"""Which running requests change sides: victims under KV pressure, returns when there is room again. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from syshaxd.model.plan import Move, Reason
from syshaxd.model.snapshot import InFlight, Snapshot
from syshaxd.model.unit import Role

from .able import may_go_to
from .candidates import may_move, preempted
from .outlook import (
    Candidate,
    Knowledge,
    PredictivePolicy,
    Side,
    candidate,
    cpu_keeps_promises,
    reserve,
    side_of,
)
from .predictive import Remembered
from .pressure import preempted_reason

WORTH_MOVING = 16  # expected further tokens


@dataclass(frozen=True)
class Moves:
    """Moves to start now, and the memory to hand to the next call."""

    moves: tuple[Move, ...]
    memory: Remembered


def choose_moves(snapshot: Snapshot, knowledge: Knowledge, memory: Remembered, policy: PredictivePolicy) -> Moves:
    """At most one move out and one back a call; the pauses of the policy bound their rate."""
    if not (policy.moves and snapshot.pd.enabled):
        return Moves((), memory)
    ready = snapshot.ready(Role.ACCELERATOR)
    accelerators = [side_of(unit, knowledge) for unit in ready if unit.view.can_hand_over]
    cpus = [side_of(unit, knowledge) for unit in snapshot.ready(Role.CPU) if unit.view.can_hand_over]
    out = _move_out(accelerators, cpus, snapshot, knowledge, memory, policy)
    if out is not None:
        return Moves((out,), replace(memory, last_out=snapshot.at))
    back = _move_back(accelerators, cpus, snapshot, knowledge, memory, policy)
    if back is not None:
        return Moves((back,), replace(memory, last_back=snapshot.at))
    return Moves((), memory)


def _movable(snapshot: Snapshot, unit: str, policy: PredictivePolicy) -> Iterator[InFlight]:
    for entry in snapshot.in_flight:
        settled = entry.last_move is None or snapshot.at - entry.last_move >= policy.stay_after_move
        free = may_move(entry) and entry.info.route is None
        if entry.unit == unit and free and settled and entry.moves < policy.max_moves:
            yield entry


def _move_out(
    accelerators: list[Side],
    cpus: list[Side],
    snapshot: Snapshot,
    knowledge: Knowledge,
    memory: Remembered,
    policy: PredictivePolicy,
) -> Move | None:
    if snapshot.at - memory.last_out < policy.move_out_pause:
        return None
    for side in accelerators:
        fill = (side.held + side.queued_tokens) / side.capacity
        if fill <= policy.move_out_at:
            continue
        for cpu in sorted((c for c in cpus if c.unit.arriving < 2), key=lambda c: c.step(1)):
            victim = _victim(side, cpu, snapshot, knowledge, policy)
            if victim is not None:
                text = f"KV of {side.name} is {fill:.0%} full; {cpu.name} keeps the request's promise"
                stands = preempted(victim, side.unit, snapshot.at)
                reason = preempted_reason(side.unit, cpu.unit) if stands else Reason("kv_pressure", text)
                return Move(victim.info.request_id, cpu.name, reason)
    return None


def _victim(
    side: Side, cpu: Side, snapshot: Snapshot, knowledge: Knowledge, policy: PredictivePolicy
) -> InFlight | None:
    """One that was preempted, or else the largest KV, whose banked time lets the CPU unit finish it in time."""
    seen: list[tuple[Candidate, InFlight]] = [
        (candidate(entry, snapshot.at, knowledge.lengths, policy), entry)
        for entry in _movable(snapshot, side.name, policy)
    ]
    stands = {entry.info.request_id for _, entry in seen if preempted(entry, side.unit, snapshot.at)}
    for who, entry in sorted(seen, key=lambda pair: (pair[1].info.request_id not in stands, -pair[0].context)):
        fits = may_go_to(entry, cpu.unit, snapshot, policy.models)
        if fits and who.remaining > WORTH_MOVING and cpu_keeps_promises(cpu, who, snapshot, knowledge, policy):
            return entry
    return None


def _move_back(
    accelerators: list[Side],
    cpus: list[Side],
    snapshot: Snapshot,
    knowledge: Knowledge,
    memory: Remembered,
    policy: PredictivePolicy,
) -> Move | None:
    if snapshot.at - memory.last_back < policy.move_back_pause:
        return None
    for side in accelerators:
        if not _has_room(side, knowledge, policy):
            continue
        worst = _latest(cpus, side, snapshot, knowledge, policy)
        if worst is not None:
            text = f"{worst.unit} would miss the request's target and {side.name} has room again"
            return Move(worst.info.request_id, side.name, Reason("return", text))
    return None


def _has_room(side: Side, knowledge: Knowledge, policy: PredictivePolicy) -> bool:
    free_slots = side.traits.max_num_seqs - side.decoding - side.queued
    low = reserve(side, 0.0, knowledge.lengths, policy.growth) < policy.move_back_at
    return low and not side.queued and free_slots > 2 and side.unit.arriving == 0


def _latest(
    cpus: list[Side], side: Side, snapshot: Snapshot, knowledge: Knowledge, policy: PredictivePolicy
) -> InFlight | None:
    """The CPU resident whose projected mean TPOT is furthest over its limit, if the accelerator can take it."""
    worst, worst_ratio = None, policy.safety
    for cpu in cpus:
        step = cpu.step()
        for entry in _movable(snapshot, cpu.name, policy):
            who = candidate(entry, snapshot.at, knowledge.lengths, policy)
            if who.remaining <= WORTH_MOVING or not may_go_to(entry, side.unit, snapshot, policy.models):
                continue
            mean = (who.elapsed + who.remaining * step) / (who.generated + who.remaining)
            fits = reserve(side, who.context, knowledge.lengths, policy.growth) < policy.move_back_at
            if fits and mean / who.tpot > worst_ratio:
                worst, worst_ratio = entry, mean / who.tpot
    return worst
