"""Orders to a unit to end a request or to free a ticket that nobody wants any more; nobody waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from syshaxd.errors import UnitError
from syshaxd.model.request import Endpoint

from .bodies import response_ids
from .services import Services
from .steps import Step

ABORT_TIMEOUT = 2.0  # seconds
PUBLISH_GUARD = 0.05  # seconds between closing a connection and aborting: a closed request publishes no ticket


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
