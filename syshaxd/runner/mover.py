"""Orders to a unit to end a request: to hand it over, or because nobody wants it any more."""

from __future__ import annotations

import asyncio
from typing import Optional, Sequence, Union

from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.model.plan import Move
from syshaxd.model.request import Endpoint
from syshaxd.model.unit import Role
from syshaxd.unitclient import AnswerStream, PendingCall, UnitStream

from .accounts import Accounts
from .ledger import Entry
from .services import Services
from .steps import Step, response_ids

Leg = Union[UnitStream, AnswerStream, PendingCall]
ABORT_TIMEOUT = 2.0  # seconds for an abort that nobody waits for
PUBLISH_GUARD = 0.05  # seconds between closing a connection and aborting: a closed request publishes no ticket


class Mover:
    """The move under way of one request, if any."""

    def __init__(self, services: Services, entry: Entry, accounts: Accounts, endpoint: Endpoint) -> None:
        self._services = services
        self._entry = entry
        self._accounts = accounts
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._timer: Optional[asyncio.TimerHandle] = None
        self.move: Optional[Move] = None

    def begin(self, move: Move, step: Step, leg: Leg, leg_id: str) -> None:
        """Aborts the leg by id; its stream then delivers what is made and finishes with "abort"."""
        self.move = move
        self._entry.moving, self._entry.target = True, move.target
        self._services.tasks.start(f"move.{leg_id}", self._order(move, step, leg, leg_id))

    def over(self, result: str) -> None:
        """The move is decided; `result` "" when it goes on with a new leg."""
        move, self.move = self.move, None
        self._entry.moving, self._entry.target = False, ""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if move is not None and result:
            now = self._loop.time()
            self._entry.last_move = now  # not again at once
            self._accounts.handoff_ended(self.kind(move), result, now)

    def kind(self, move: Move) -> str:
        """offload, return or drain, for metrics."""
        if move.reason.code == "drain":
            return "drain"
        target = self._services.view(move.target)
        return "return" if target is not None and target.role is Role.ACCELERATOR else "offload"

    async def _order(self, move: Move, step: Step, leg: Leg, leg_id: str) -> None:
        deadline = self._services.config.pd.move_deadline
        ids = response_ids(self._endpoint, leg_id)
        try:
            await self._services.client.abort(self._services.target(step.unit), ids, deadline)
        except UnitError as err:
            if self.move is move:
                self.over("abort_refused")
                self._services.log.warning("a move was given up", request_id=leg_id, error=str(err))
            return
        if self.move is move:
            self._timer = self._loop.call_later(deadline, self._overdue, leg)

    def _overdue(self, leg: Leg) -> None:
        if self.move is not None:
            leg.abandon(UnitErrorKind.TIMEOUT, "did not end the request after an abort by id")


def abort_later(services: Services, endpoint: Endpoint, step: Step, leg_id: str) -> None:
    """Ends a request whose connection was closed: units notice that late, if at all. Its ticket ends with it."""
    if step.unit.abilities.aborts:
        services.tasks.start(f"abort.{leg_id}", _abort(services, step, leg_id, response_ids(endpoint, leg_id)))


def discard_later(services: Services, step: Step) -> None:
    """Gives a published ticket up. Where a unit takes no such order, the lease ends the ticket."""
    if step.unit.abilities.discards_tickets and step.save is not None:
        services.tasks.start(f"discard.{step.save.id}", _abort(services, step, step.save.id, ()))


async def _abort(services: Services, step: Step, leg_id: str, ids: Sequence[str]) -> None:
    tickets = (step.save.id,) if step.save is not None and step.unit.abilities.discards_tickets else ()
    try:
        if ids:
            await asyncio.sleep(PUBLISH_GUARD)
        await services.client.abort(services.target(step.unit), ids, ABORT_TIMEOUT, tickets)
    except UnitError as err:
        services.log.debug("an abort did not reach its unit", request_id=leg_id, error=str(err))
