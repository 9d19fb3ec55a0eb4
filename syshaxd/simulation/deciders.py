"""Policies under test: the product's own decider, and the baselines it is held against."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from time import perf_counter
from typing import Callable

from syshaxd.model.plan import Move, Plan, Reason, Refuse, Split, Whole
from syshaxd.model.request import Endpoint, RequestInfo, Route, left_of
from syshaxd.model.snapshot import InFlight, Snapshot, UnitLoad, UnitSnapshot
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.scheduler.learning import PREFILL_MEMORY
from syshaxd.scheduler.lengths import LengthLog
from syshaxd.scheduler.moving import choose_moves
from syshaxd.scheduler.outlook import Handoff, Knowledge, Limits, PredictivePolicy
from syshaxd.scheduler.predictive import Remembered, decide, keep_split, patience
from syshaxd.scheduler.steptime import StepFit, StepSample

from .law import Host
from .world import Decider, Request, SimulatedUnit, World

ACCELERATOR, CPU = "accelerator", "cpu"
VIEWS = {
    name: UnitView(name, role, "simulated", BackendKind.EXTERNAL, UnitState.READY, "", pool_file=name)
    for name, role in ((ACCELERATOR, Role.ACCELERATOR), (CPU, Role.CPU))
}


def snapshot_of(world: World, only: str | None = None, asking: Request | None = None) -> Snapshot:
    """The world as SystemMonitor would show it; `only`: list the requests of that unit alone (enough for arrivals);
    `asking`: whom the decision is about."""
    units = tuple(_unit_snapshot(world, unit) for unit in (world.accelerator, world.cpu))
    entries = tuple(
        entry
        for unit in (world.accelerator, world.cpu)
        if only is None or unit.law.name == only
        for entry in _entries(unit, world.now)
    )
    others = [(turn, request.arrival.prompt) for turn, _, request in world.held_back if request is not asking]
    mine = asking.turn if asking is not None else None
    return Snapshot(
        world.now,
        units,
        entries,
        queued=len(others),
        queued_tokens=sum(prompt for _, prompt in others),
        queued_ahead=sum(prompt for turn, prompt in others if mine is not None and turn < mine),
    )


def _unit_snapshot(world: World, unit: SimulatedUnit) -> UnitSnapshot:
    law = unit.law
    coming = [request for request in (*unit.waiting, *unit.prefilling) if request.first_token is None]
    again = [request for request in (*unit.waiting, *unit.prefilling) if request.first_token is not None]
    prompts = sum(request.need for request in coming)  # whole: all the daemon knows
    load = UnitLoad(
        world.now,
        "page",
        waiting=len(unit.waiting),
        kv_total=law.capacity,
        max_num_seqs=law.max_num_seqs,
        max_step_tokens=law.prefill_chunk,
    )
    return UnitSnapshot(
        VIEWS[law.name],
        load,
        in_flight=len(unit.running) + len(coming) + len(again),
        in_flight_tokens=unit.kv_running + prompts + sum(request.need for request in again),
        queued=len(coming),
        queued_prompt_tokens=prompts,
        arriving=unit.arriving,
        arriving_tokens=unit.arriving_tokens,
    )


def _entries(unit: SimulatedUnit, now: float) -> Iterator[InFlight]:
    for request in unit.running.values():
        yield _entry(unit, request, unit.generated(request), now)
    for request in unit.waiting:
        if request.preempted_at is not None:
            yield _entry(unit, request, request.generated, request.preempted_at)


def _entry(unit: SimulatedUnit, request: Request, generated: int, last_token: float) -> InFlight:
    return InFlight(
        request.info,
        unit.law.name,
        request.arrival.at,
        request.first_token,
        request.arrival.prompt,
        generated,
        request.moves,
        request.last_move,
        request.moving,
        last_token,
    )


def _info(world: World, request: Request) -> RequestInfo:
    """As the Runner asks: with the time since the client's first attempt, which it knows of a retry too."""
    return left_of(request.info, max(0.0, world.now - request.arrival.at))


class AcceleratorOnly:
    """Everything on the accelerator, no admission control. Base of the other baselines."""

    def arrive(self, world: World, request: Request) -> Plan:
        """The accelerator."""
        return Whole(ACCELERATOR, Route.ACCELERATOR, Reason("always", "the only route"))

    def patience(self, world: World, request: Request) -> float:
        """None: nobody is held."""
        return 0.0

    def keep_split(self, world: World, request: Request) -> bool:
        """As planned."""
        return True

    def moves(self, world: World) -> Sequence[Move]:
        """None."""
        return ()

    def step(self, world: World, unit: SimulatedUnit, sample: StepSample) -> None:
        """Learns nothing."""

    def finished(self, world: World, request: Request) -> None:
        """Learns nothing."""


SPLIT = Split(ACCELERATOR, CPU, Reason("rule", "the rule says so"))


class RoundRobin(AcceleratorOnly):
    """Accelerator and split in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def arrive(self, world: World, request: Request) -> Plan:
        """The other one."""
        self._turn += 1
        return SPLIT if self._turn % 2 else super().arrive(world, request)


class FixedThreshold(AcceleratorOnly):
    """The original rule with fresh metrics: accelerator unless it is full or somebody waits, else split, else refuse.

    `cpu_tokens_per_s`: the original's "CPU is slow" signal, the unit's throughput over 5 s."""

    def __init__(
        self, kv: float = 0.9, max_num_seqs: int = 256, cpu_max: int = 256, cpu_tokens_per_s: float = 10.0
    ) -> None:
        self._kv, self._max_num_seqs, self._cpu_max, self._floor = kv, max_num_seqs, cpu_max, cpu_tokens_per_s
        self._window: deque[tuple[float, int]] = deque()
        self._rate, self._rate_at = 0.0, 0.0

    def arrive(self, world: World, request: Request) -> Plan:
        """By the thresholds."""
        unit, cpu = world.accelerator, world.cpu
        full = unit.residents() >= self._max_num_seqs or unit.kv > self._kv * unit.law.capacity
        if not full and not (unit.residents() and unit.waiting):
            return super().arrive(world, request)
        on_cpu = cpu.residents() + cpu.arriving
        if on_cpu >= self._cpu_max or (on_cpu and self._cpu_rate(world) < self._floor):
            return Refuse(Reason("busy", "both sides are busy"), 429, 1.0)
        return SPLIT

    def step(self, world: World, unit: SimulatedUnit, sample: StepSample) -> None:
        """Keeps the CPU's throughput."""
        if unit is world.cpu:
            self._window.append((world.now, sample.decoding))

    def _cpu_rate(self, world: World) -> float:
        if world.now - self._rate_at >= 5.0:
            while self._window and self._window[0][0] < world.now - 5.0:
                self._window.popleft()
            self._rate, self._rate_at = sum(tokens for _, tokens in self._window) / 5.0, world.now
        return self._rate


class Predictive(AcceleratorOnly):
    """The product: calls the very functions the daemon calls."""

    def __init__(self, host: Host, policy: PredictivePolicy = PredictivePolicy(), calibration: float = 1.0) -> None:
        self._policy, self._memory = policy, Remembered()
        self._fits = {ACCELERATOR: StepFit(), CPU: StepFit()}
        self._lengths, self._rate, self._rate_at, self._steps = LengthLog(), 0.0, 0.0, 0
        handoff = Handoff(host.handoff, host.model.kv_bytes / host.link)
        self._knowledge = Knowledge(handoff=handoff)
        self.predictions: dict[int, tuple[float, float, float | None]] = {}  # seconds: when, TTFT from then on, TPOT
        for law in (host.accelerator, host.cpu):
            self._fits[law.name].seed(
                self._profile(law.seconds, law.prefill_chunk, law is host.accelerator, calibration)
            )

    @staticmethod
    def _profile(
        seconds: Callable[[int, int, int], float], chunk: int, prefills: bool, calibration: float
    ) -> list[StepSample]:
        return [
            StepSample(batch, part, batch * context, calibration * seconds(batch, part, batch * context))
            for batch in (1, 2, 4, 8, 16, 32)
            for context in (500, 1000, 2000)
            for part in ((0, chunk // 4, chunk) if prefills else (0,))
        ]

    def _learned(self, now: float) -> Knowledge:
        return replace(
            self._knowledge,
            models={name: fit.model for name, fit in self._fits.items()},
            lengths=self._lengths.lengths,
            prefill_rate={ACCELERATOR: self._faded(now)},
        )

    def _faded(self, now: float) -> float:
        return self._rate * math.exp((self._rate_at - now) / PREFILL_MEMORY)

    def arrive(self, world: World, request: Request) -> Plan:
        """The daemon's decision."""
        snapshot = snapshot_of(world, CPU, request)
        decision = decide(_info(world, request), snapshot, self._learned(world.now), self._memory, self._policy)
        self._memory = decision.memory
        plan = decision.plan
        if isinstance(plan, (Whole, Split)) and plan.prediction.ttft is not None and plan.prediction.tpot is not None:
            self.predictions[request.number] = (world.now, plan.prediction.ttft, plan.prediction.tpot)
        return plan

    def patience(self, world: World, request: Request) -> float:
        """The daemon's answer."""
        return patience(request.info, self._policy)

    def model_seconds(self, unit: SimulatedUnit, decoding: int, prefill: int, kv: int) -> float:
        """What the learned model says of a step (benchmark)."""
        return self._fits[unit.law.name].model.seconds(decoding, prefill, kv)

    def time_of_decision(self, snapshot: Snapshot, prompt: int, rounds: int) -> float:
        """Median microseconds of one decision on that snapshot (benchmark)."""
        knowledge, info = self._learned(0.0), RequestInfo("r", Endpoint.CHAT, "m", True, prompt, None)
        spent = []
        for _ in range(rounds):
            begin = perf_counter()
            decide(info, snapshot, knowledge, self._memory, self._policy)
            spent.append((perf_counter() - begin) * 1e6)
        return median(spent)

    def keep_split(self, world: World, request: Request) -> bool:
        """Asked again at the first token; a request that stays has no prediction of its TPOT any more."""
        snapshot, knowledge = snapshot_of(world, CPU), self._learned(world.now)
        kept = keep_split(request.info, CPU, request.arrival.prompt, snapshot, knowledge, self._policy)
        if not kept and request.number in self.predictions:
            self.predictions[request.number] = (*self.predictions[request.number][:2], None)
        return kept

    def moves(self, world: World) -> Sequence[Move]:
        """The daemon's victims and returns."""
        unit = world.accelerator
        pressed = unit.kv + unit.waiting_tokens > self._policy.move_out_at * unit.law.capacity
        if not pressed and not world.cpu.running:
            return ()
        # Without pressure only the CPU's residents can move.
        snapshot = snapshot_of(world, None if pressed else CPU)
        chosen = choose_moves(snapshot, self._learned(world.now), self._memory, self._policy)
        self._memory = chosen.memory
        return chosen.moves

    def step(self, world: World, unit: SimulatedUnit, sample: StepSample) -> None:
        """Feeds the fits."""
        self._steps += 1
        if sample.prefill_tokens or self._steps % 3 == 0:
            self._fits[unit.law.name].add(sample)
        if unit is world.accelerator and sample.prefill_tokens:
            rate = self._faded(world.now) + sample.prefill_tokens / PREFILL_MEMORY
            self._rate, self._rate_at = rate, world.now

    def finished(self, world: World, request: Request) -> None:
        """Feeds the length statistics."""
        self._lengths.add(request.arrival.output)


@dataclass(frozen=True)
class Contestant:
    """A policy by name, made anew for every run."""

    name: str
    make: Callable[[Host], Decider]


def _fixed(kv: float, cpu_max: int, host: Host) -> Decider:
    return FixedThreshold(kv, cpu_max=cpu_max)


def contestants() -> list[Contestant]:
    """Baselines, the eight fixed thresholds, and the product."""
    fixed = [
        Contestant(f"threshold cpu<={cap} kv<={kv:.0%}", partial(_fixed, kv, cap))
        for cap in (4, 8, 16, 32)
        for kv in (0.75, 0.90)
    ]
    return [
        Contestant("accelerator only", lambda host: AcceleratorOnly()),
        Contestant("round robin", lambda host: RoundRobin()),
        Contestant("original threshold", lambda host: FixedThreshold()),
        *fixed,
        Contestant("admission without CPU", lambda host: Predictive(host, PredictivePolicy(split=False, moves=False))),
        Contestant("predictive", lambda host: Predictive(host)),
    ]


DEFAULT_LIMITS: Mapping[str, Limits] = {tier.value: limits for tier, limits in PredictivePolicy().limits.items()}
