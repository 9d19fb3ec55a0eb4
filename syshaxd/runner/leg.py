"""A leg: one call to one unit, its request and what it brings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Union

from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.unitclient import AnswerStream, Deadlines, UnitStream

from .aborts import abort_later
from .bodies import body_of
from .bytes_path import BytesPath
from .client_request import ClientRequest, Event
from .parsed_path import ParsedPath
from .produced import Record
from .services import Services
from .sink import Sink
from .steps import Step

Path = Union[BytesPath, ParsedPath]


class Leg:
    """`id`: the name it has at its unit. `path`: what becomes of what the unit sends, and how its answer ended. `runs`:
    the unit has taken the request and has not ended it."""

    def __init__(
        self,
        services: Services,
        request: ClientRequest,
        step: Step,
        leg_id: str,
        record: Record,
        path: Path,
        sink: Sink,
    ) -> None:
        self.step, self.id, self.path = step, leg_id, path
        self.runs = False
        self._services, self._request, self._sink = services, request, sink
        self._call = self._open(body_of(step, request, record))

    @property
    def whole(self) -> bool:
        """Whether the unit answers at once, as the client asked, and that is what the client gets."""
        return not (self._request.info.stream or self.step.owned or self.step.prefill_only)

    def _open(self, body: Mapping[str, Any]) -> UnitStream | AnswerStream:
        client, limits, endpoint = self._services.client, self._services.config.limits, self._request.info.endpoint
        target = self._services.target(self.step.unit)
        if self.whole:
            left = self._request.arrived + limits.request_timeout - asyncio.get_running_loop().time()
            return client.call(target, endpoint, body, self.id, max(0.1, left))
        if self.step.keeps_for_nixl:
            return client.call(target, endpoint, body, self.id, limits.first_token_timeout)
        deadlines = Deadlines(limits.first_token_timeout, limits.stall_timeout, limits.connect_timeout)
        return client.stream(target, endpoint, body, self.id, deadlines)

    async def events(self) -> AsyncGenerator[list[Event], None]:
        """What each read brings for the client, until its unit or a stop string ends it. Raises UnitError. However it
        ends, a request that the unit may still hold is ended there."""
        complete, path = False, self.path
        try:
            async with self._call as call:
                self.runs = True
                async for payloads in call:
                    events, error = self._take(payloads)
                    call.finished = path.over
                    if events:
                        yield events
                    if error is not None:
                        raise error
                    if path.stopped:
                        return
            complete = True
        finally:
            self.runs = False
            if not complete and (path.finish is None or self.step.save is not None):
                abort_later(self._services, self._request.info.endpoint, self.step, self.id)

    def _take(self, payloads: list[bytes]) -> tuple[list[Event], UnitError | None]:
        """What came before a fault is delivered first: those tokens are real. Counted once a read, not once a token."""
        path, error, before = self.path, None, self.path.arrivals
        events: list[Event] = []
        try:
            for payload in payloads:
                event = path.take(payload)
                if event is not None:
                    events.append(event)
                if path.stopped:
                    break
        except UnitError as err:
            error = err
        if path.arrivals > before:
            self._sink.tokens(path.output_tokens, path.arrivals - before)
        return events, error

    def abandon(self, kind: UnitErrorKind, text: str) -> None:
        """Ends it with that failure, at its next event at the latest."""
        self._call.abandon(kind, text)
