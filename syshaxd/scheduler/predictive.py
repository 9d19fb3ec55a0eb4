"""The predictive decider: admission and placement by predicted TTFT and TPOT, moves by banked time.

Pure: `decide(info, snapshot, knowledge, memory, policy)` returns the plan and the next memory; nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from syshaxd.admission import admit
from syshaxd.admission.refusals import Refusal
from syshaxd.model.plan import Plan, Prediction, Reason, Split, Whole
from syshaxd.model.request import RequestInfo, Route, Tier
from syshaxd.model.snapshot import Snapshot
from syshaxd.model.unit import Role

from .outlook import (
    Candidate,
    Knowledge,
    Limits,
    PredictivePolicy,
    Side,
    cpu_gain,
    cpu_keeps_promises,
    cpu_mean_tpot,
    has_enough,
    limits_of,
    own_prefill,
    predicted_tpot,
    predicted_ttft,
    prefill_seconds,
    reserve,
    side_of,
)

ARRIVAL_WEIGHT = 0.01
PROTECTED_SHARE = 0.02
RETRY_LEAST, RETRY_MOST = 0.1, 60.0  # seconds
ASK_EARLIER = 0.02  # seconds, and the step under way: a last answer may still be yes


@dataclass(frozen=True)
class Remembered:
    """What a decision remembers of the ones before: hysteresis and the tightest class of recent arrivals."""

    offloading: bool = False
    shares: Mapping[Tier, float] = field(default_factory=dict)  # of each tier in recent arrivals
    last_out: float = -1e9
    last_back: float = -1e9


@dataclass(frozen=True)
class Decision:
    """A plan and the memory to hand to the next decision."""

    plan: Plan
    memory: Remembered


@dataclass(frozen=True)
class Outlook:
    """One request against one accelerator unit."""

    side: Side
    limits: Limits  # the request's own
    house: Limits  # of its tier, tightened by tier protection: a client's hint must not change what others get
    ttft: float
    own: float  # the part of ttft that is the request's own prefill
    certain: float  # the part of ttft that is prefill, its own and of those before it
    tpot: float
    reserved: float
    demand: float  # the same with what waits in the daemon
    queue: float  # seconds that all who wait will wait
    waited: float  # seconds of its TTFT limit that are over already; 0 for who has no limit to his waiting
    time: float  # seconds that it may still wait before its prefill begins, so as to be in time

    @property
    def pressure(self) -> float:
        """1.0: something is at its limit. The request's own prefill is no pressure: no other unit would shorten it."""
        return max(self.demand, self.queue / self.house.ttft, self.tpot / self.house.tpot)

    @property
    def ttft_limit(self) -> float:
        """The tighter one of the request's own and its tier's, seconds: who has time waits in the daemon's queue."""
        return min(self.limits.ttft, self.house.ttft)

    @property
    def late(self) -> bool:
        """Whether prefill alone, its own and of those before it, takes it past its limit."""
        return self.waited + self.certain > self.limits.ttft

    @property
    def tpot_limit(self) -> float:
        """The tighter one of the request's own and the protected one, seconds."""
        return min(self.limits.tpot, self.house.tpot)

    @property
    def prediction(self) -> Prediction:
        """For headers and metrics."""
        return Prediction(self.ttft, self.tpot)


def remember_arrival(memory: Remembered, tier: Tier) -> Remembered:
    """Follows what share of recent arrivals each tier has."""
    shares = {known: share * (1 - ARRIVAL_WEIGHT) for known, share in memory.shares.items()}
    shares[tier] = shares.get(tier, 0.0) + ARRIVAL_WEIGHT
    return replace(memory, shares=shares)


def house_limits(tier: Tier, memory: Remembered, policy: PredictivePolicy) -> Limits:
    """The tier's limits, its TPOT no longer than that of the tightest tier with at least 2 % of recent arrivals."""
    own = policy.limits.get(tier, Limits())
    present = (known for known, share in memory.shares.items() if share >= PROTECTED_SHARE)
    return Limits(own.ttft, min([own.tpot, *(policy.limits.get(known, Limits()).tpot for known in present)]))


def decide(
    info: RequestInfo, snapshot: Snapshot, knowledge: Knowledge, memory: Remembered, policy: PredictivePolicy
) -> Decision:
    """Where a new request goes. Forced routes, and snapshots without a READY accelerator, are Scheduler's to handle."""
    limits = limits_of(info, policy)
    memory = memory if info.waited else remember_arrival(memory, info.tier)
    house = house_limits(info.tier, memory, policy)
    accelerators = snapshot.ready(Role.ACCELERATOR)
    waiting = Waiting(snapshot.queued_tokens // len(accelerators), snapshot.queued_ahead // len(accelerators))
    outlooks = [
        _outlook(side_of(unit, knowledge), info, waiting, limits, house, knowledge, policy) for unit in accelerators
    ]
    best = min(outlooks, key=lambda o: o.pressure)
    threshold = policy.offload_below if memory.offloading else policy.offload_above
    memory = replace(memory, offloading=best.pressure > threshold)
    return Decision(_place(info, best, snapshot, knowledge, memory, policy), memory)


class Waiting(NamedTuple):
    """One accelerator unit's share of the prompt tokens in the daemon's queue: all, and those that go first."""

    tokens: int
    ahead: int


def _outlook(
    side: Side,
    info: RequestInfo,
    waiting: Waiting,
    limits: Limits,
    house: Limits,
    knowledge: Knowledge,
    policy: PredictivePolicy,
) -> Outlook:
    prompt = info.prompt_tokens
    own, ttft = own_prefill(side, prompt), predicted_ttft(side, prompt, knowledge, policy, waiting.ahead)
    behind = prefill_seconds(side, waiting.tokens - waiting.ahead)
    return Outlook(
        side=side,
        limits=limits,
        house=house,
        ttft=ttft,
        own=own,
        certain=prefill_seconds(side, side.queued_tokens + waiting.ahead + prompt),
        tpot=predicted_tpot(side, prompt),
        reserved=reserve(side, prompt, knowledge.lengths, policy.growth),
        demand=reserve(side, prompt + waiting.tokens, knowledge.lengths, policy.growth),
        queue=ttft - own + behind,
        waited=info.waited if in_a_hurry(info) else 0.0,
        time=patience(info, policy) - info.waited - own,
    )


def in_a_hurry(info: RequestInfo) -> bool:
    """Whether its TTFT limit counts from its client's first attempt on; flex traffic has none unless it says so."""
    return info.tier is not Tier.FLEX or info.slo_ttft is not None


def patience(info: RequestInfo, policy: PredictivePolicy) -> float:
    """Seconds after its arrival until which a request may wait for its first token."""
    if not in_a_hurry(info):
        return policy.queue_timeout
    return min(policy.queue_timeout, policy.held_safety * limits_of(info, policy).ttft)


def _place(
    info: RequestInfo,
    seen: Outlook,
    snapshot: Snapshot,
    knowledge: Knowledge,
    memory: Remembered,
    policy: PredictivePolicy,
) -> Plan:
    allowed = _ttft_allowed(info, seen, policy)
    if seen.ttft > allowed and not _serve_late(seen, policy):
        return _not_now(info, snapshot, seen, policy, Refusal.TTFT, seen.ttft - allowed)
    if has_enough(seen.side, info.prompt_tokens, policy):
        return _not_now(info, snapshot, seen, policy, Refusal.BACKLOG, seen.ttft - seen.own)
    fits = seen.tpot <= policy.tpot_safety * seen.tpot_limit and seen.reserved <= 1.0
    if memory.offloading or not fits:
        split = _split(info, seen, snapshot, knowledge, policy)
        if split is not None:
            return split
    if fits or (seen.tpot <= policy.tpot_safety * seen.tpot_limit and seen.reserved <= 1.15):
        return Whole(seen.side.name, Route.ACCELERATOR, _fits_reason(seen), seen.prediction)
    lacks = Refusal.TPOT if seen.reserved <= 1.15 else Refusal.KV
    return _not_now(info, snapshot, seen, policy, lacks, _drain_seconds(seen))


def _fits_reason(seen: Outlook) -> Reason:
    return Reason(
        "accelerator_fits",
        f"{seen.side.name} is expected to answer in {seen.ttft:.2f} s at {seen.tpot * 1e3:.0f} ms a token",
    )


def _ttft_allowed(info: RequestInfo, seen: Outlook, policy: PredictivePolicy) -> float:
    """Seconds from now that the first token may take: its tier's share, and what is left of its own limit."""
    allowed = policy.safety * seen.ttft_limit
    if not seen.waited:
        return allowed
    return min(allowed, policy.held_safety * seen.limits.ttft - seen.waited)


def _serve_late(seen: Outlook, policy: PredictivePolicy) -> bool:
    """A prompt too long to be on time even alone is served late while nobody waits; so is one whose client has waited
    too long before, where that costs others nothing."""
    if not policy.serve_late:
        return False
    limit = seen.ttft_limit
    if seen.waited and seen.waited + seen.own > limit:
        return seen.pressure <= policy.offload_below
    alone = seen.own > 0.6 * policy.safety * limit and seen.ttft - seen.own <= 0.15 * limit
    return alone and seen.reserved <= policy.offload_above


def _split(
    info: RequestInfo, seen: Outlook, snapshot: Snapshot, knowledge: Knowledge, policy: PredictivePolicy
) -> Plan | None:
    if not policy.split or info.stays is not None or not snapshot.pd.enabled:
        return None
    remaining = knowledge.lengths.mean
    if info.max_tokens is not None:
        remaining = min(remaining, float(info.max_tokens))
    who = Candidate(info.prompt_tokens, 0, 0.0, max(1.0, remaining), seen.limits.tpot)
    for cpu in _cpus_that_help(seen, info, snapshot, knowledge, policy):
        if cpu_keeps_promises(cpu, who, snapshot, knowledge, policy):
            tpot = cpu_mean_tpot(cpu, who, knowledge)
            pressed = f"{seen.side.name} is at {seen.pressure:.0%} of its limits"
            text = f"{pressed}; {cpu.name} decodes at {tpot * 1e3:.0f} ms a token"
            k = 0 if info.first_token_stays is not None else 1
            return Split(seen.side.name, cpu.name, Reason("offload", text), k, Prediction(seen.ttft, tpot))
    return None


def _cpus_that_help(
    seen: Outlook, info: RequestInfo, snapshot: Snapshot, knowledge: Knowledge, policy: PredictivePolicy
) -> list[Side]:
    """CPU units, least loaded first, without those that can't add 3 % (flex traffic may use them all the same)."""
    per_request = info.prompt_tokens + knowledge.lengths.mean / 2
    sides = [side_of(unit, knowledge) for unit in snapshot.ready(Role.CPU) if unit.view.can_split]
    if info.tier is not Tier.FLEX:
        gains = [(side, cpu_gain(seen.side, side, per_request, seen.limits.tpot)) for side in sides]
        sides = [side for side, gain in gains if gain is None or gain >= policy.guard]
    return sorted(sides, key=lambda side: side.step(1))


def _drain_seconds(seen: Outlook) -> float:
    return max(0.5, seen.side.step() * 50)


_QUEUED_FOR = {
    Refusal.TTFT: "queue_ttft",
    Refusal.BACKLOG: "queue_backlog",
    Refusal.TPOT: "queue_tpot",
    Refusal.KV: "queue_kv",
}


def _not_now(
    info: RequestInfo, snapshot: Snapshot, seen: Outlook, policy: PredictivePolicy, lacks: Refusal, excess: float
) -> Plan:
    """`excess`: seconds after which the accelerator is expected to have room."""
    text = (
        f"predicted on {seen.side.name}: TTFT {seen.ttft:.2f} s of {seen.ttft_limit:g} s, "
        f"TPOT {seen.tpot * 1e3:.0f} ms of {seen.tpot_limit * 1e3:.0f} ms, KV {seen.reserved:.0%}"
    )
    late = in_a_hurry(info) and (seen.late or seen.time <= 0)
    hopeless = None
    if late:
        hopeless = Refusal.LATE if seen.waited else lacks
    elif _never_fits(info, seen, policy):
        hopeless = lacks
    busy = admit.Busy(
        _QUEUED_FOR[lacks],
        text,
        max(0.0, seen.time - seen.side.step() - ASK_EARLIER),
        hopeless,
        min(max(RETRY_LEAST, excess), RETRY_MOST),
    )
    return admit.wait_or_refuse(busy, snapshot.queued, policy.max_queue)


def _never_fits(info: RequestInfo, seen: Outlook, policy: PredictivePolicy) -> bool:
    """Whether not even an empty unit would keep the request's limits: it need not wait for that."""
    alone = seen.side.model.seconds(1, 0, info.prompt_tokens)
    return alone > policy.tpot_safety * seen.tpot_limit or info.prompt_tokens > seen.side.capacity


def keep_split(
    info: RequestInfo,
    cpu_name: str,
    prompt_tokens: int,
    snapshot: Snapshot,
    knowledge: Knowledge,
    policy: PredictivePolicy,
) -> bool:
    """Asked again at the first token, when the KV is there: does the CPU unit still keep every promise?"""
    unit = snapshot.unit(cpu_name)
    if unit is None or not unit.view.ready:
        return False
    who = Candidate(prompt_tokens, 1, 0.0, knowledge.lengths.remaining(1), limits_of(info, policy).tpot)
    return cpu_keeps_promises(side_of(unit, knowledge), who, snapshot, knowledge, policy)
