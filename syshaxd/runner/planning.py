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

from .client_request import RequestError, milliseconds
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
        named = services.config.served.find(info.model)
        self._model = named.name if named is not None else info.model  # an alias waits with its model

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
        limit, client = services.config.limits.max_queue, self._info.client
        room = queue.has_room(client, limit)
        plan = self._ask(replace(snapshot, queued=min(snapshot.queued, limit - 1)) if room else snapshot, turn)
        if isinstance(plan, Refuse):
            return self._settled(plan)
        if not isinstance(plan, Queue) and queue.leads(turn, self._model, client):
            return self._settled(plan)
        wait = plan if isinstance(plan, Queue) else admit.behind_others(patience)
        held = wait if room else admit.place(wait, len(queue), limit)
        if isinstance(held, Refuse):
            return self._settled(held)
        if isinstance(plan, Queue):
            services.metrics.decided("queue", plan.reason.code)
        queue.make_room(client, limit)
        began = self._loop.time()
        self._timeline.add(began, "queued", why=held.reason.text)
        try:
            return self._settled(await self._queued(turn, plan, began + patience / 2))
        finally:
            services.ledger.queued = len(queue)
            services.metrics.queued_for(self._loop.time() - began)

    async def _queued(self, turn: Turn, plan: Plan, yields_until: float) -> Plan:
        """What is decided in the end. `plan`: what was at first: it would go at once if nobody else waited, or waits
        itself; `yields_until`: the loop's time at which a tier that yields to all others does so no more."""
        services, queue, bell = self._services, self._services.queue, Bell()
        with queue.enter(turn, self._info.prompt_tokens, self._model, bell.ring, self._info.client) as place:
            services.ledger.queued = len(queue)
            while await bell.rung(last_ask(turn, plan, self._loop.time())):
                self.check_open()
                if place.sent_away:
                    return admit.pushed_out(len(queue))
                if self._loop.time() > yields_until:
                    queue.promote(place)
                plan = self._ask_again(place.turn)
                if not isinstance(plan, Queue):
                    return plan
                queue.asked_in_vain(place, services.scheduler.asked)
            plan = self._ask_again(FIRST)
            return admit.after_the_last_ask(plan) if isinstance(plan, Queue) else plan

    def check_open(self) -> None:
        """Raises RequestError once the daemon ends its streams."""
        if self._services.settings.ending:
            raise error_of(Refusal.SHUTTING_DOWN.told())

    def _ask_again(self, turn: Turn) -> Plan:
        """It holds a place already: that is no reason to refuse it."""
        snapshot, own = self._services.snapshots.snapshot(), self._info.prompt_tokens
        snapshot = replace(snapshot, queued=max(0, snapshot.queued - 1))
        return self._ask(snapshot, turn, own, self._loop.time() - self._arrived)

    def _ask(self, snapshot: Snapshot, turn: Turn, own: int = 0, waited: float = 0.0) -> Plan:
        """`own`: its prompt tokens, where it is in the queue itself; `waited`: seconds there."""
        queue, model = self._services.queue, self._model
        ahead = queue.tokens_ahead(turn, model)
        snapshot = replace(snapshot, queued_tokens=queue.tokens(model) - own, queued_ahead=ahead)
        plan = self._services.scheduler.decide(left_of(self._info, waited), snapshot, self._excluded())
        if isinstance(plan, (Queue, Refuse)):
            return plan
        others = self._services.ledger.others(self._info.request_id)
        limits = self._services.config.limits
        return admit.beyond_the_limit(others, limits.max_in_flight, limits.queue_timeout) or plan

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
