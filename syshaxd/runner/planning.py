"""From a request to its first step, and to the next one after a failure: asks the Scheduler, waits where it says so."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from syshaxd.admission import admit
from syshaxd.admission.queue import FIRST, Turn, last_ask, turn_of
from syshaxd.admission.refusals import Refusal, error_of
from syshaxd.model.plan import Plan, Queue, Refuse, Split, Whole
from syshaxd.model.request import RequestInfo, left_of
from syshaxd.model.snapshot import Snapshot
from syshaxd.scheduler import Failed

from .request import RequestError, milliseconds
from .services import Services
from .timeline import Timeline

PROBATION = 1.0  # seconds; a unit that is READY still has passed its supervisor's probe by then
RESCUE_POLL = 0.05  # seconds between two looks for a unit that a stream could go on with


class Bell:
    """Rung by the queue when its request may ask."""

    def __init__(self) -> None:
        self._rung: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()

    def ring(self) -> None:
        """It may ask."""
        if not self._rung.done():
            self._rung.set_result(None)

    async def rung(self, until: float) -> bool:
        """Waits for the next ring; False once the loop's time is past `until`."""
        loop = asyncio.get_running_loop()
        await asyncio.wait({self._rung}, timeout=max(0.0, until - loop.time()))
        if not self._rung.done():
            return False
        self._rung = loop.create_future()
        return True


class Planner:
    """Of one request. Units on which it has failed are left alone for PROBATION."""

    def __init__(self, services: Services, info: RequestInfo, timeline: Timeline) -> None:
        self._services = services
        self._info = info
        self._timeline = timeline
        self._loop = asyncio.get_running_loop()
        self._arrived = self._loop.time()
        self._failed: dict[Failed, float] = {}

    def note_failure(self, unit: str, epoch: int) -> None:
        """The request failed on that start of a unit."""
        self._failed[unit, epoch] = self._loop.time()

    def has_failed(self, unit: str, epoch: int) -> bool:
        """Whether it ever failed there: no reason to move there by choice."""
        return (unit, epoch) in self._failed

    def _excluded(self) -> frozenset[Failed]:
        now = self._loop.time()
        return frozenset(failed for failed, at in self._failed.items() if now - at < PROBATION)

    async def first(self) -> Plan:
        """Whole or Split; raises RequestError for Refuse, and when the queue is full or the wait too long."""
        self.check_open()
        services, queue = self._services, self._services.queue
        snapshot = services.snapshots.snapshot()
        if not services.scheduler.hurried(self._info, snapshot):
            self._info = replace(self._info, waited=0.0)  # it may wait again at each attempt
        patience = services.scheduler.patience(self._info, snapshot) - self._info.waited
        turn = turn_of(self._info, self._loop.time() + patience)
        plan = self._ask(snapshot, self._info, turn)
        if isinstance(plan, Refuse):
            return self._settled(plan)
        if not isinstance(plan, Queue) and queue.leads(turn, self._info.model):
            return self._settled(plan)
        wait = plan if isinstance(plan, Queue) else admit.behind_others(patience)
        held = admit.place(wait, len(queue), services.config.limits.max_queue)
        if isinstance(held, Refuse):
            return self._settled(held)
        if isinstance(plan, Queue):
            services.metrics.decided("queue", plan.reason.code)
        return await self._queued(turn, plan, held)

    async def _queued(self, turn: Turn, plan: Plan, held: Queue) -> Plan:
        """`plan`: what was decided at first: it would go at once if nobody else waited, or waits itself."""
        began, services, bell = self._loop.time(), self._services, Bell()
        self._timeline.add(began, "queued", why=held.reason.text)
        with services.queue.enter(turn, self._info.prompt_tokens, self._info.model, bell.ring) as place:
            services.ledger.queued = len(services.queue)
            try:
                while await bell.rung(last_ask(turn, plan, self._loop.time())):
                    self.check_open()
                    plan = self._ask_again(turn)
                    if not isinstance(plan, Queue):
                        return self._settled(plan)
                    services.queue.asked_in_vain(place, services.scheduler.asked)
                plan = self._ask_again(FIRST)
                return self._settled(admit.after_the_last_ask(plan) if isinstance(plan, Queue) else plan)
            finally:
                services.ledger.queued = len(services.queue) - 1
                services.metrics.queued_for(self._loop.time() - began)

    def check_open(self) -> None:
        """Raises RequestError once the daemon ends its streams."""
        if self._services.settings.ending:
            raise error_of(Refusal.SHUTTING_DOWN.told())

    def _ask_again(self, turn: Turn) -> Plan:
        """It holds a place already: that is no reason to refuse it."""
        snapshot, own = self._services.snapshots.snapshot(), self._info.prompt_tokens
        snapshot = replace(snapshot, queued=max(0, snapshot.queued - 1))
        return self._ask(snapshot, left_of(self._info, self._loop.time() - self._arrived), turn, own)

    def _ask(self, snapshot: Snapshot, info: RequestInfo, turn: Turn, own: int = 0) -> Plan:
        """`own`: its prompt tokens, where it is in the queue itself."""
        queue, model = self._services.queue, self._info.model
        ahead = queue.tokens_ahead(turn, model)
        snapshot = replace(snapshot, queued_tokens=queue.tokens(model) - own, queued_ahead=ahead)
        return self._services.scheduler.decide(info, snapshot, self._excluded())

    def _settled(self, plan: Plan) -> Plan:
        """Counts and tells a decision that is final; raises RequestError for a refusal."""
        self._services.metrics.decided(type(plan).__name__.lower(), plan.reason.code)
        if isinstance(plan, Refuse):
            self._timeline.add(self._loop.time(), "refused", reason=plan.reason.code, why=plan.reason.text)
            raise error_of(plan)
        if isinstance(plan, (Whole, Split)):
            place = plan.unit if isinstance(plan, Whole) else f"{plan.prefill}>{plan.decode}"
            expected = {f"{name}_ms": value for name, value in milliseconds(plan.prediction).items()}
            now, reason = self._loop.time(), plan.reason
            self._timeline.add(now, "decided", to=place, reason=reason.code, why=reason.text, **expected)
        return plan

    async def rescue(self) -> Whole:
        """Where a stream goes on; waits for a unit up to the queue's timeout, for a restart may bring one back."""
        until = self._loop.time() + self._services.config.limits.queue_timeout
        while True:
            self.check_open()
            last = self._loop.time() >= until  # before the look: a starved process looks once more
            plan = self._try_rescue()
            if plan is not None:
                return plan
            if last:
                raise RequestError(502, "unit_lost", "the unit failed and no other unit became ready in time")
            await asyncio.sleep(RESCUE_POLL)

    def _try_rescue(self) -> Whole | None:
        snapshot = self._services.snapshots.snapshot()
        return self._services.scheduler.rescue(self._info, snapshot, self._excluded())
