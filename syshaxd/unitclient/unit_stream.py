"""One running generation on a unit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable

import aiohttp

from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.tasks import cancelled

from .events import Chunk, SseError, SseParser, parse_chunk
from .failures import FAILURES, from_exception

Opener = Callable[[], Awaitable[aiohttp.ClientResponse]]


@dataclass(frozen=True)
class Deadlines:
    """Seconds a generation may take to get to its first token, and from one token to the next."""

    first_token: float = 300.0
    stall: float = 30.0


class UnitStream:
    """`async with client.stream(...) as stream: async for chunk in stream: ...`

    Ends after `[DONE]`. Everything else that ends it is a UnitError: a reset, silence past the deadline, an error
    event, garbage, or `abandon`. Leaving the context closes the connection.
    """

    def __init__(self, unit: str, opener: Opener, deadlines: Deadlines) -> None:
        self._unit = unit
        self._opener = opener
        self._deadlines = deadlines
        self._loop = asyncio.get_running_loop()
        self._response: aiohttp.ClientResponse | None = None
        self._parser = SseParser()
        self._ready: deque[Chunk] = deque()
        self._failure: UnitError | None = None
        self._done = False
        self._finished = False
        self._given_up: "asyncio.Future[UnitError]" = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_since: float | None = None
        self._limit = deadlines.first_token

    async def __aenter__(self) -> "UnitStream":
        self._arm(self._limit)
        self._waiting_since = self._loop.time()
        opening = asyncio.ensure_future(self._opener())
        try:
            either: set[asyncio.Future[Any]] = {opening, self._given_up}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                raise self._given_up.result()
            self._response = opening.result()
        except FAILURES as err:
            self._stop_timer()
            raise from_exception(err, self._unit, "sending the request") from err
        except BaseException:
            self._stop_timer()
            await _discard(opening)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_timer()
        if self._response is not None:
            self._response.close()

    def __aiter__(self) -> "UnitStream":
        return self

    async def __anext__(self) -> Chunk:
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            if self._done:
                raise StopAsyncIteration
            await self._read()
        return self._ready.popleft()

    def abandon(self, kind: UnitErrorKind, text: str) -> None:
        """Makes the pending or the next read fail with that error. Safe at any time, from any task."""
        error = UnitError(self._unit, kind, text)
        if not self._given_up.done():
            self._given_up.set_result(error)
        if self._response is not None:
            self._response.content.set_exception(error)

    async def _read(self) -> None:
        assert self._response is not None
        self._waiting_since = self._loop.time()
        try:
            data = await self._response.content.readany()
        except FAILURES as err:
            raise from_exception(err, self._unit, "reading the stream") from err
        finally:
            self._waiting_since = None
        self._limit = self._deadlines.stall
        if data:
            self._take(data)
        else:
            self._end()

    def _take(self, data: bytes) -> None:
        # What came before a fault is delivered first: those tokens are real.
        try:
            for payload in self._parser.feed(data):
                if payload == b"[DONE]":
                    self._done = True
                    return
                chunk = parse_chunk(payload, self._unit)
                self._finished = self._finished or chunk.finish_reason is not None
                self._ready.append(chunk)
        except SseError as err:
            self._failure = UnitError(self._unit, UnitErrorKind.GARBAGE, str(err))
            self._failure.__cause__ = err
        except UnitError as err:
            self._failure = err

    def _end(self) -> None:
        self._done = True
        if not self._finished:
            self._failure = UnitError(self._unit, UnitErrorKind.RESET, "closed the stream before the end")

    def _arm(self, delay: float) -> None:
        self._timer = self._loop.call_later(delay, self._check)

    def _check(self) -> None:
        """One timer a stream, not one a chunk: it looks how long the present wait has lasted, and sleeps the rest."""
        if self._waiting_since is None:
            self._arm(self._limit)
            return
        left = self._waiting_since + self._limit - self._loop.time()
        if left > 0.001:
            self._arm(left)
            return
        first = self._limit == self._deadlines.first_token and self._response is None
        kind = UnitErrorKind.TIMEOUT if first else UnitErrorKind.STALL
        self.abandon(kind, f"no token for {self._limit:g} s")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class AnswerStream:
    """A whole answer in the form of a stream: one chunk, its payload the answer. `parsed`: its parts are wanted too."""

    def __init__(self, unit: str, call: Callable[[], Coroutine[Any, Any, bytes]], parsed: bool) -> None:
        self._unit = unit
        self._call = call
        self._parsed = parsed
        self._over = False
        self._given_up: "asyncio.Future[UnitError]" = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> "AnswerStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    def __aiter__(self) -> "AnswerStream":
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
        self._over = True
        task = asyncio.ensure_future(self._call())
        either: set[asyncio.Future[Any]] = {task, self._given_up}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self._given_up.result()
            answer = task.result()
        finally:
            if not task.done():
                await cancelled(task)
        return parse_chunk(answer, self._unit) if self._parsed else Chunk(answer)

    def abandon(self, kind: UnitErrorKind, text: str) -> None:
        """Makes the answer fail with that error. Safe at any time, from any task."""
        if not self._given_up.done():
            self._given_up.set_result(UnitError(self._unit, kind, text))


async def _discard(opening: "asyncio.Future[aiohttp.ClientResponse]") -> None:
    """Cancels a request that nobody waits for; a response that came all the same is closed."""
    opening.cancel()
    try:
        (await opening).close()
    except (*FAILURES, UnitError, asyncio.CancelledError):
        return
