"""Units that may be asked, and how full they are."""

from __future__ import annotations

from typing import NamedTuple

from syshaxd.model.request import RequestInfo
from syshaxd.model.snapshot import InFlight, Snapshot, UnitSnapshot
from syshaxd.model.unit import Role

from .able import able
from .outlook import traits_of
from .policy import Policy

STANDSTILL = 0.3  # seconds without a token, where others wait, that mean a preemption
Failed = tuple[str, int]  # name and epoch: a unit that was started again deserves another try


def candidates(
    info: RequestInfo, snapshot: Snapshot, policy: Policy, failed: frozenset[Failed], role: Role
) -> tuple[UnitSnapshot, ...]:
    """READY units of a role that can serve the request and have not failed it, least loaded first."""
    usable = (
        unit
        for unit in able(info, snapshot, policy.models)
        if unit.view.ready and unit.view.role is role and (unit.view.name, unit.view.epoch) not in failed
    )
    return tuple(sorted(usable, key=_load_order))


def _load_order(unit: UnitSnapshot) -> tuple[float, int]:
    return (kv_usage(unit) or 0.0, requests(unit))


def may_move(entry: InFlight) -> bool:
    """Whether it runs, stands at no other move, and no rule keeps it where it is: the Runner would refuse it."""
    stays = entry.stays or entry.info.stays or entry.info.first_token_stays
    return stays is None and entry.first_token is not None and not entry.moving


def preempted(entry: InFlight, unit: UnitSnapshot | None, at: float) -> bool:
    """Whether its unit has taken its KV blocks away: requests wait there, and it gets no token any more."""
    load = unit.load if unit is not None else None
    if load is None or not load.waiting or entry.last_token is None:
        return False
    return at - entry.last_token > max(STANDSTILL, 10 * (load.step_seconds or 0.0))


def requests(unit: UnitSnapshot) -> int:
    """Requests on the unit: its own count may be old, the daemon's lacks what others sent."""
    load = unit.load
    theirs = 0 if load is None else (load.running or 0) + (load.waiting or 0)
    return max(theirs, unit.in_flight)


def kv_used(unit: UnitSnapshot) -> int | None:
    """KV tokens held, the larger of the unit's own figure and the daemon's exact count; None: unknown."""
    if unit.load is None or unit.load.kv_total is None:
        return None
    return max(unit.load.kv_used or 0, unit.in_flight_tokens)


def kv_usage(unit: UnitSnapshot, extra: int = 0) -> float | None:
    """Share 0..1 of the KV cache in use when `extra` tokens are added; None: unknown."""
    used = kv_used(unit)
    total = unit.load.kv_total if unit.load is not None else None
    if used is not None and total:
        return (used + extra) / total
    return unit.load.kv_usage if unit.load is not None else None


class Bounds(NamedTuple):
    """When a side counts as full."""

    max_num_seqs: int
    kv_usage: float
    waiting: int


def full(unit: UnitSnapshot, bounds: Bounds, prompt_tokens: int) -> str | None:
    """Why the unit should not get a request of that many prompt tokens now; None: it may."""
    count = requests(unit)
    if count >= bounds.max_num_seqs:
        return f"{count} requests (limit {bounds.max_num_seqs})"
    usage = kv_usage(unit, prompt_tokens)
    if usage is not None and usage >= bounds.kv_usage and count:
        return f"KV cache would be {min(usage, 9.99):.0%} used (limit {bounds.kv_usage:.0%})"
    waiting = unit.load.waiting if unit.load is not None else None
    if waiting is not None and waiting >= bounds.waiting:
        return f"{waiting} requests waiting (limit {bounds.waiting})"
    return None


def accelerator_bounds(policy: Policy, unit: UnitSnapshot) -> Bounds:
    """Of an accelerator unit: what the operator set, else what the unit says of itself, else the default."""
    limits = policy.scheduler.threshold
    return Bounds(limits.max_num_seqs or traits_of(unit.view, unit.load).max_num_seqs, limits.kv_usage, limits.waiting)


def cpu_bounds(policy: Policy) -> Bounds:
    """Of the CPU side."""
    limits = policy.scheduler.threshold
    return Bounds(limits.cpu_max_num_seqs, limits.cpu_kv_usage, limits.waiting)
