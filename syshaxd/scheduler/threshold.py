"""The threshold decider: accelerator first, then split, then CPU, then wait.

The original rule with its faults repaired: "busy" queues or refuses and never becomes a split; waiting requests count
always, not only without a sequence limit; a missing signal is unknown, not 0; only READY units are asked.
"""

from __future__ import annotations

from syshaxd.admission import admit
from syshaxd.model.plan import Plan, Reason, Split, Whole
from syshaxd.model.request import RequestInfo, Route
from syshaxd.model.snapshot import Snapshot, UnitSnapshot
from syshaxd.model.unit import Role

from .candidates import Failed, accelerator_bounds, candidates, cpu_bounds, full, kv_usage
from .policy import Policy

Units = tuple[UnitSnapshot, ...]


def decide(info: RequestInfo, snapshot: Snapshot, policy: Policy, failed: frozenset[Failed] = frozenset()) -> Plan:
    """A plan for a request that has no token yet."""
    accelerators = candidates(info, snapshot, policy, failed, Role.ACCELERATOR)
    cpus = candidates(info, snapshot, policy, failed, Role.CPU)
    if not accelerators and not cpus:
        return admit.nobody(bool(failed), policy.limits.queue_timeout)
    if info.route is not None and not failed:  # better another route than no answer
        return _forced(info, info.route, snapshot, policy, accelerators, cpus)
    if not accelerators:
        return _cpu_only(info, snapshot, policy, cpus[0])
    return _accelerator_first(info, snapshot, policy, accelerators[0], cpus[0] if cpus else None)


def _forced(
    info: RequestInfo, route: Route, snapshot: Snapshot, policy: Policy, accelerators: Units, cpus: Units
) -> Plan:
    asked = Reason("asked_for", f"the client asked for route {route.value}")
    if route is Route.SPLIT:
        obstacle = split_obstacle(info, snapshot, policy, accelerators, cpus)
        if obstacle is not None:
            return admit.no_split(obstacle, info.stays is not None)
        return _split(info, accelerators[0], cpus[0], asked)
    side = accelerators if route is Route.ACCELERATOR else cpus
    if not side:
        return admit.route_not_ready(route)
    return Whole(side[0].view.name, route, asked)


def _cpu_only(info: RequestInfo, snapshot: Snapshot, policy: Policy, cpu: UnitSnapshot) -> Plan:
    busy = full(cpu, cpu_bounds(policy), info.prompt_tokens)
    if busy is None:
        return Whole(cpu.view.name, Route.CPU, Reason("accelerator_not_ready", "no accelerator unit is ready"))
    return _wait(snapshot, policy, f"no accelerator unit is ready; {cpu.view.name}: {busy}")


def _accelerator_first(
    info: RequestInfo, snapshot: Snapshot, policy: Policy, accelerator: UnitSnapshot, cpu: UnitSnapshot | None
) -> Plan:
    name = accelerator.view.name
    busy = full(accelerator, accelerator_bounds(policy, accelerator), info.prompt_tokens)
    if busy is None:
        return Whole(name, Route.ACCELERATOR, Reason("accelerator_free", f"{name} has room"))
    if cpu is None:
        return _wait(snapshot, policy, f"{name}: {busy}; no CPU unit is ready")
    cpu_busy = full(cpu, cpu_bounds(policy), info.prompt_tokens)
    if cpu_busy is not None:
        return _wait(snapshot, policy, f"{name}: {busy}; {cpu.view.name}: {cpu_busy}")
    reason = Reason("accelerator_full", f"{name}: {busy}")
    if split_obstacle(info, snapshot, policy, (accelerator,), (cpu,)) is None and _prefill_fits(info, accelerator):
        return _split(info, accelerator, cpu, reason)
    return Whole(cpu.view.name, Route.CPU, reason)


def _prefill_fits(info: RequestInfo, accelerator: UnitSnapshot) -> bool:
    """A prefill that has no room in the KV cache would preempt a running request."""
    usage = kv_usage(accelerator, info.prompt_tokens)
    return usage is None or usage <= 0.98


def _wait(snapshot: Snapshot, policy: Policy, text: str) -> Plan:
    busy = admit.Busy("busy", text, policy.limits.queue_timeout)
    return admit.wait_or_refuse(busy, snapshot.queued, policy.limits.max_queue)


def _split(info: RequestInfo, accelerator: UnitSnapshot, cpu: UnitSnapshot, reason: Reason) -> Split:
    return Split(accelerator.view.name, cpu.view.name, reason, k=0 if info.first_token_stays else 1)


def split_obstacle(
    info: RequestInfo, snapshot: Snapshot, policy: Policy, accelerators: Units, cpus: Units
) -> str | None:
    """Why prefill and decode can't be on two units; None: they can."""
    if not accelerators or not cpus:
        return "it needs a ready accelerator unit and a ready CPU unit"
    if info.stays is not None:
        return info.stays
    if not policy.pd.enabled:
        return "pd.enabled is off"
    if not snapshot.pd.enabled:
        return snapshot.pd.reason
    for unit in (accelerators[0], cpus[0]):
        if not unit.view.can_split:
            return f"{unit.view.name} cannot hand over its KV cache"
    return None
