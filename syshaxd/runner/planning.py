"""From a request to its first step, and to the next one after a failure: asks the Scheduler, waits where it says so."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Dict, FrozenSet, Optional

from syshaxd.model.plan import Plan, Queue, Refuse, Split, Whole
from syshaxd.model.request import RequestInfo, left_of
from syshaxd.scheduler import Failed

from .request import RequestError, milliseconds
from .room import Turn, turn_of
from .services import Services
from .timeline import Timeline

PROBATION = 1.0  # seconds; a unit that is READY still has passed its supervisor's probe by then
RESCUE_POLL = 0.05  # seconds between two looks for a unit that a stream could go on with


class Planner:
    """Of one request. Units on which it has failed are left alone for PROBATION."""

    def __init__(self, services: Services, info: RequestInfo, timeline: Timeline) -> None:
        self._services = services
        self._info = info
        self._timeline = timeline
        self._loop = asyncio.get_running_loop()
        self._arrived = self._loop.time()
        self._failed: Dict[Failed, float] = {}

    def note_failure(self, unit: str, epoch: int) -> None:
        """The request failed on that start of a unit."""
        self._failed[unit, epoch] = self._loop.time()

    def has_failed(self, unit: str, epoch: int) -> bool:
        """Whether it ever failed there: no reason to move there by choice."""
        return (unit, epoch) in self._failed

    def _excluded(self) -> FrozenSet[Failed]:
        now = self._loop.time()
        return frozenset(failed for failed, at in self._failed.items() if now - at < PROBATION)

    async def first(self) -> Plan:
        """Whole or Split; raises RequestError for Refuse, and when the queue is full or the wait too long."""
        self.check_open()
        room, limits = self._services.room, self._services.config.limits
        turn = turn_of(self._info, self._loop.time(), limits.queue_timeout)
        why = "others wait already"
        if room.leads(turn):
            plan = self._decide()
            if not isinstance(plan, Queue):
                return plan
            why = plan.reason.text
        if len(room) >= limits.max_queue:
            raise RequestError(429, "queue_full", f"{len(room)} requests queue already; try again later", 1.0)
        return await self._queued(turn, why)

    async def _queued(self, turn: Turn, why: str) -> Plan:
        began = self._loop.time()
        self._timeline.add(began, "queued", why=why)
        services = self._services
        with services.room.enter(turn) as place:
            services.ledger.queued = len(services.room)
            try:
                while await services.room.wait(place, turn.deadline):
                    self.check_open()
                    plan = self._decide(queued=True)
                    if not isinstance(plan, Queue):
                        return plan
                    why = plan.reason.text
                raise RequestError(429, "queue_timeout", f"no room in time: {why}", 2.0)
            finally:
                services.ledger.queued = len(services.room) - 1
                services.metrics.queued_for(self._loop.time() - began)

    def check_open(self) -> None:
        """Raises RequestError once the daemon ends its streams."""
        if self._services.settings.ending:
            raise RequestError(503, "shutting_down", "the daemon is stopping", 1.0)

    def _decide(self, queued: bool = False) -> Plan:
        """`queued`: it holds a place already; that is no reason to refuse it, and to wait on is no new decision."""
        snapshot = self._services.snapshots.snapshot()
        if queued:
            snapshot = replace(snapshot, queued=max(0, snapshot.queued - 1))
        info = left_of(self._info, self._loop.time() - self._arrived) if queued else self._info
        plan = self._services.scheduler.decide(info, snapshot, self._excluded())
        if not (queued and isinstance(plan, Queue)):
            self._services.metrics.decided(type(plan).__name__.lower(), plan.reason.code)
        if isinstance(plan, Refuse):
            self._timeline.add(self._loop.time(), "refused", reason=plan.reason.code, why=plan.reason.text)
            raise RequestError(plan.status, plan.reason.code, plan.reason.text, plan.retry_after)
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

    def _try_rescue(self) -> Optional[Whole]:
        snapshot = self._services.snapshots.snapshot()
        return self._services.scheduler.rescue(self._info, snapshot, self._excluded())
