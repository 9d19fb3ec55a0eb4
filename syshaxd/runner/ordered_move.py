"""A move that the daemon has ordered: the unit is told to end the request, so that another one can go on."""

from __future__ import annotations

import asyncio

from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.model.plan import Move
from syshaxd.model.request import Endpoint
from syshaxd.model.unit import Role

from .bodies import response_ids
from .leg import Leg
from .services import Services
from .sink import Sink


class OrderedMove:
    """Of one request, which has one under way at most."""

    def __init__(self, services: Services, sink: Sink, endpoint: Endpoint) -> None:
        self._services = services
        self._sink = sink
        self._endpoint = endpoint
        self._timer: asyncio.TimerHandle | None = None
        self.move: Move | None = None

    def begin(self, move: Move, leg: Leg) -> None:
        """Aborts the leg by id; its stream then delivers what is made and finishes with "abort"."""
        self.move = move
        self._sink.moving(move)
        self._services.tasks.start(f"move.{leg.id}", self._order(move, leg))

    def over(self, result: str) -> None:
        """The move is decided; `result` "" when it goes on with a new leg."""
        move, self.move = self.move, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if move is not None:
            self._sink.move_over(self.kind(move), result)

    def kind(self, move: Move) -> str:
        """offload, return or drain, for metrics."""
        if move.reason.code == "drain":
            return "drain"
        target = self._services.view(move.target)
        return "return" if target is not None and target.role is Role.ACCELERATOR else "offload"

    async def _order(self, move: Move, leg: Leg) -> None:
        deadline = self._services.config.pd.move_deadline
        ids = response_ids(self._endpoint, leg.id)
        try:
            await self._services.client.abort(self._services.target(leg.step.unit), ids, deadline)
        except UnitError as err:
            if self.move is move:
                self.over("abort_refused")
                self._services.log.warning("a move was given up", request_id=leg.id, error=str(err))
            return
        if self.move is move:
            self._timer = asyncio.get_running_loop().call_later(deadline, self._overdue, leg)

    def _overdue(self, leg: Leg) -> None:
        if self.move is not None:
            leg.abandon(UnitErrorKind.TIMEOUT, "did not end the request after an abort by id")
