"""Discrete-event simulation of one accelerator unit and one CPU unit under a decider.

Each unit is a loop of steps as vLLM runs them: chunked prefill, first come first served, a pool of KV tokens,
preemption of the newest, which is computed again unless it moves with its KV. A split prefills on the accelerator; its
KV crosses one link to the CPU. Clients retry a 429 as the OpenAI SDKs do: twice, after `Retry-After`; the daemon's own
queue is asked as its Runner asks it.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Callable, Protocol

from syshaxd.admission.queue import ASKED, FIRST, Turn, last_ask, turn_of
from syshaxd.model.plan import Move, Plan, Queue, Refuse, Split
from syshaxd.model.request import Endpoint, RequestInfo, Tier
from syshaxd.scheduler.outlook import Limits
from syshaxd.scheduler.steptime import StepSample

from .law import Host, Law
from .workload import Arrival

STEP_NOISE = 0.05
SDK_RETRIES = 2
CYCLE = 0.05  # seconds between two looks of the daemon at what runs
QUEUE_TIMEOUT_RETRY = 2.0  # seconds, as the daemon's answer says


@dataclass
class Request:
    """One request in the simulated world."""

    number: int
    arrival: Arrival
    info: RequestInfo
    attempts: int = 0
    generated: int = 0
    first_token: float | None = None
    end: float | None = None
    unit: str = ""
    cpu_bound: bool = False  # planned as a split
    moving: bool = False
    moves: int = 0
    last_move: float | None = None
    joined_step: int = 0
    joined_generated: int = 0
    ends_at_step: int = 0
    prefill_left: int = 0
    need: int = 0
    preemptions: int = 0
    preempted_at: float | None = None  # while it waits for its KV
    refused: bool = False
    turn: Turn | None = None  # while it waits in the daemon


class Decider(Protocol):
    """A policy under test."""

    def arrive(self, world: "World", request: Request) -> Plan:
        """Where a new request goes."""

    def patience(self, world: "World", request: Request) -> float:
        """Seconds after its arrival until which it may wait in the daemon."""

    def keep_split(self, world: "World", request: Request) -> bool:
        """Whether a split is carried out, asked at the first token."""

    def moves(self, world: "World") -> Sequence[Move]:
        """Running requests that change sides now."""

    def step(self, world: "World", unit: "SimulatedUnit", sample: StepSample) -> None:
        """A step was observed."""

    def finished(self, world: "World", request: Request) -> None:
        """A request has ended."""


class SimulatedUnit:
    """State of one simulated unit."""

    def __init__(self, law: Law) -> None:
        self.law = law
        self.waiting: deque[Request] = deque()
        self.waiting_tokens = 0
        self.prefilling: list[Request] = []
        self.running: dict[int, Request] = {}
        self.ending: list[tuple[int, int]] = []
        self.step_number = 0
        self.kv = 0  # tokens allocated
        self.kv_running = 0  # tokens of decoding requests
        self.busy = False
        self.arriving = 0
        self.arriving_tokens = 0
        self.tokens = 0

    def held(self, request: Request) -> int:
        """KV tokens of a decoding request."""
        return request.arrival.prompt + self.generated(request)

    def generated(self, request: Request) -> int:
        """Output tokens so far of a decoding request."""
        return request.joined_generated + self.step_number - request.joined_step

    def residents(self) -> int:
        """Requests that hold a slot."""
        return len(self.running) + len(self.prefilling)

    def join(self, request: Request) -> None:
        """Begins to decode; its KV is already counted in `kv`."""
        request.unit = self.law.name
        request.joined_step, request.joined_generated = self.step_number, request.generated
        request.ends_at_step = self.step_number + request.arrival.output - request.generated
        self.running[request.number] = request
        self.kv_running += request.arrival.prompt + request.generated
        heapq.heappush(self.ending, (request.ends_at_step, request.number))

    def leave(self, request: Request) -> int:
        """Stops decoding; returns the KV tokens it holds (still counted in `kv`)."""
        request.generated = self.generated(request)
        held = request.arrival.prompt + request.generated
        del self.running[request.number]
        self.kv_running -= held
        return held


@dataclass
class World:
    """The simulated host; `run()` plays all requests to their end."""

    host: Host
    decider: Decider
    seed: int = 0
    slow_cpu_after: float | None = None  # seconds after which the CPU takes twice as long (noisy neighbour)
    now: float = 0.0
    requests: list[Request] = field(default_factory=list)
    count: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.accelerator, self.cpu = SimulatedUnit(self.host.accelerator), SimulatedUnit(self.host.cpu)
        self.held_back: list[tuple[Turn, int, Request]] = []
        self._noise = random.Random(self.seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._link_free = 0.0
        self._last_moves = -1.0
        self._asking = False

    def unit(self, name: str) -> SimulatedUnit:
        """By name."""
        return self.accelerator if name == self.accelerator.law.name else self.cpu

    def run(self, arrivals: Sequence[Arrival], clients: int | None = None, think: float = 1.0) -> None:
        """Open loop: requests come at their times. Closed loop: `clients` send `think` seconds after an answer."""
        for number, arrival in enumerate(arrivals):
            info = RequestInfo(str(number), Endpoint.COMPLETIONS, "m", True, arrival.prompt, None, tier=arrival.tier)
            if arrival.tier is Tier.FLEX:  # whom the daemon would let wait: these clients say how long
                info = replace(info, slo_ttft=Limits().ttft)
            self.requests.append(Request(number, arrival, info))
        self._next_client = iter(self.requests) if clients else iter(())
        self._think = think
        if clients:
            for _ in range(clients):
                self._client_sends(self._noise.expovariate(1.0 / think))
        else:
            for request in self.requests:
                self._at(request.arrival.at, lambda r=request: self._arrive(r))  # type: ignore[misc]
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self._check_empty()

    def _client_sends(self, after: float) -> None:
        request = next(self._next_client, None)
        if request is None:
            return
        at = self.now + after
        request.arrival = Arrival(at, request.arrival.prompt, request.arrival.output, request.arrival.tier)
        self._at(at, lambda: self._arrive(request))

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    # ---- arrivals ----
    def _arrive(self, request: Request) -> None:
        request.turn = turn_of(request.info, request.arrival.at + self.decider.patience(self, request))
        plan = self.decider.arrive(self, request)
        leads = not self.held_back or request.turn < self.held_back[0][0]
        if isinstance(plan, Queue) or not (leads or isinstance(plan, Refuse)):
            self._hold(request, plan)
        else:
            self._settle(request, plan)

    def _settle(self, request: Request, plan: Plan) -> None:
        request.turn = None
        if isinstance(plan, Refuse):
            self._refuse(request, plan.retry_after or 0.0)
        elif isinstance(plan, Queue):
            self._refuse(request, QUEUE_TIMEOUT_RETRY)
        else:
            request.cpu_bound = isinstance(plan, Split)
            name = plan.prefill if isinstance(plan, Split) else plan.unit
            self._submit(self.unit(name), request)

    def _refuse(self, request: Request, retry_after: float) -> None:
        self.count["429"] += 1
        if request.attempts < SDK_RETRIES:
            request.attempts += 1
            self._at(self.now + retry_after * self._noise.uniform(1.0, 1.25), lambda: self._arrive(request))
        else:
            request.refused, request.end = True, self.now
            self._client_sends(self._think)

    def _hold(self, request: Request, plan: Plan) -> None:
        assert request.turn is not None
        self.count["held"] += 1
        bisect.insort(self.held_back, (request.turn, request.number, request))
        self._watch(request, plan)
        if not self._asking:
            self._asking = True
            self._at(self.now + CYCLE, self._ask_queue)

    def _watch(self, request: Request, plan: Plan) -> None:
        """Asks a last time when it has waited long enough."""
        turn = request.turn
        assert turn is not None
        until = max(self.now, last_ask(turn, plan, self.now))
        self._at(until, lambda: self._last_ask(request, turn, until))

    def _last_ask(self, request: Request, turn: Turn, until: float) -> None:
        if request.turn is turn:
            request.turn = FIRST
            plan = self.decider.arrive(self, request)
            self._leave_queue(request)
            self._settle(request, plan)

    def _leave_queue(self, request: Request) -> None:
        self.held_back = [entry for entry in self.held_back if entry[2] is not request]

    def _ask_queue(self) -> None:
        """The daemon's cycle."""
        self._asking = False
        self._release()
        if self.held_back and not self._asking:
            self._asking = True
            self._at(self.now + CYCLE, self._ask_queue)

    def _release(self) -> None:
        """Something changed: those who wait ask in their order, a few of them in vain."""
        in_vain = 0
        for _, _, request in tuple(self.held_back):
            if in_vain >= ASKED:
                return
            plan = self.decider.arrive(self, request)
            if isinstance(plan, Queue):
                in_vain += 1
            else:
                self._leave_queue(request)
                self._settle(request, plan)

    def _submit(self, unit: SimulatedUnit, request: Request) -> None:
        request.unit, request.need = unit.law.name, request.arrival.prompt + request.generated
        unit.waiting.append(request)
        unit.waiting_tokens += request.need
        self._kick(unit)

    # ---- steps ----
    def _kick(self, unit: SimulatedUnit) -> None:
        if not unit.busy and (unit.waiting or unit.prefilling or unit.running):
            self._start(unit)

    def _admit(self, unit: SimulatedUnit) -> None:
        while unit.waiting and unit.residents() < unit.law.max_num_seqs:
            request = unit.waiting[0]
            if unit.kv + request.need > 0.99 * unit.law.capacity and unit.kv > 0:
                return
            unit.waiting.popleft()
            unit.waiting_tokens -= request.need
            unit.kv += request.need
            request.prefill_left = request.need
            unit.prefilling.append(request)

    def _start(self, unit: SimulatedUnit) -> None:
        self._admit(unit)
        decoding = len(unit.running)
        budget, prefill = max(0, unit.law.prefill_chunk - decoding), 0
        done: list[Request] = []
        for request in unit.prefilling:
            part = min(request.prefill_left, budget)
            request.prefill_left -= part
            budget, prefill = budget - part, prefill + part
            if request.prefill_left == 0:
                done.append(request)
            if budget <= 0:
                break
        unit.busy = bool(decoding or prefill)
        if unit.busy:
            sample = StepSample(decoding, prefill, unit.kv_running, self._duration(unit, decoding, prefill))
            self._at(self.now + sample.seconds, lambda: self._end(unit, done, sample))

    def _duration(self, unit: SimulatedUnit, decoding: int, prefill: int) -> float:
        slowed = unit is self.cpu and self.slow_cpu_after is not None and self.now > self.slow_cpu_after
        noise = math.exp(self._noise.gauss(0, STEP_NOISE))
        return unit.law.seconds(decoding, prefill, unit.kv_running) * noise * (2.0 if slowed else 1.0)

    def _end(self, unit: SimulatedUnit, done: list[Request], sample: StepSample) -> None:
        unit.step_number += 1
        unit.kv += len(unit.running)
        unit.kv_running += len(unit.running)
        unit.tokens += len(unit.running) + len(done)
        self._finish_ended(unit)
        for request in done:
            self._prefilled(unit, request)
        self.decider.step(self, unit, sample)
        self._relieve(unit)
        self._consider_moves()
        unit.busy = False
        self._kick(unit)

    def _finish_ended(self, unit: SimulatedUnit) -> None:
        while unit.ending and unit.ending[0][0] <= unit.step_number:
            step, number = heapq.heappop(unit.ending)
            request = unit.running.get(number)
            if request is not None and request.ends_at_step == step:
                unit.kv -= unit.leave(request)
                self._finish(request)

    def _prefilled(self, unit: SimulatedUnit, request: Request) -> None:
        unit.prefilling.remove(request)
        request.generated += 1
        unit.kv += 1
        request.preempted_at = None
        if request.first_token is None:
            request.first_token = self.now
        if request.generated >= request.arrival.output:
            unit.kv -= request.arrival.prompt + request.generated
            self._finish(request)
        elif unit is self.accelerator and request.cpu_bound and self.decider.keep_split(self, request):
            self.count["split"] += 1
            self._transfer(unit, self.cpu, request, request.arrival.prompt + request.generated, hold=True)
        else:
            request.cpu_bound = False
            unit.join(request)
        self._release()

    def _finish(self, request: Request) -> None:
        request.end, request.unit = self.now, ""
        self.decider.finished(self, request)
        self._release()
        self._client_sends(self._think)

    def _relieve(self, unit: SimulatedUnit) -> None:
        while unit.kv > unit.law.capacity and unit.running:
            request = next(reversed(unit.running.values()))
            unit.kv -= unit.leave(request)
            request.preemptions += 1
            request.preempted_at = self.now
            self.count["preempted"] += 1
            request.need = request.arrival.prompt + request.generated
            unit.waiting.appendleft(request)
            unit.waiting_tokens += request.need

    # ---- moves ----
    def _consider_moves(self) -> None:
        if self.now - self._last_moves < CYCLE:
            return
        self._last_moves = self.now
        for move in self.decider.moves(self):
            self._move(self.requests[int(move.request_id)], self.unit(move.target))

    def _move(self, request: Request, target: SimulatedUnit) -> None:
        source = self.unit(request.unit)
        if source is target or not (request.number in source.running or request in source.waiting):
            return
        held = self._taken_from(source, request)
        request.moves, request.last_move = request.moves + 1, self.now
        self.count["moved_to_" + target.law.name] += 1
        # Chunks are written as the request runs, so that the source gives its blocks back at once.
        self._transfer(source, target, request, held, hold=False)

    def _taken_from(self, source: SimulatedUnit, request: Request) -> int:
        """KV tokens that come along; a preempted one has them in its ticket."""
        if request.number in source.running:
            return source.leave(request)
        source.waiting.remove(request)
        source.waiting_tokens -= request.need
        source.kv += request.need  # which the transfer takes away again
        request.preempted_at = None
        return request.need

    def _transfer(
        self, source: SimulatedUnit, target: SimulatedUnit, request: Request, tokens: int, hold: bool
    ) -> None:
        if not hold:
            source.kv -= tokens
        begin = max(self.now, self._link_free)
        self._link_free = begin + tokens * self.host.model.kv_bytes / self.host.link
        target.arriving, target.arriving_tokens = target.arriving + 1, target.arriving_tokens + tokens
        request.moving, request.unit = True, target.law.name
        self._at(self._link_free + self.host.handoff, lambda: self._arrived(source, target, request, tokens, hold))

    def _arrived(self, source: SimulatedUnit, target: SimulatedUnit, request: Request, tokens: int, hold: bool) -> None:
        if hold:
            source.kv -= tokens
        target.arriving, target.arriving_tokens = target.arriving - 1, target.arriving_tokens - tokens
        target.kv += tokens
        request.moving = False
        target.join(request)
        self._kick(target)
        self._kick(source)

    def _check_empty(self) -> None:
        for unit in (self.accelerator, self.cpu):
            left = (unit.kv, unit.kv_running, len(unit.running), len(unit.waiting), unit.arriving, unit.waiting_tokens)
            if any(left):
                raise AssertionError(f"{unit.law.name} is not empty after the last event: {left}")
