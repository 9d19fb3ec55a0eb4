"""One running generation on a unit."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable
from urllib.parse import urlsplit

from syshaxd.errors import UnitError, UnitErrorKind
from syshaxd.tasks import cancelled, within

from .events import SseError, SseParser
from .failures import FAILURES, NotConnected, from_exception, status_error
from .http_answer import HttpAnswer, HttpError
from .unit_connection import UnitConnection, connect

MAX_ERROR = 1024 * 1024  # bytes of an error's body


@dataclass(frozen=True)
class Deadlines:
    """Seconds a generation may take to get to its first token, and from one token to the next."""

    first_token: float = 300.0
    stall: float = 30.0
    connect: float = 5.0


@dataclass(frozen=True)
class Call:
    """What is sent: to `url`, with these headers and this body."""

    unit: str
    url: str
    headers: Mapping[str, str]
    body: bytes


class UnitStream:
    """`async with client.stream(...) as stream: async for payloads in stream: ...`

    Gives the `data` payloads of one read at a time, in order, without `[DONE]`. Ends after `[DONE]`; all else that
    ends it is a UnitError: a reset, silence past the deadline, bytes that are no event stream, or `abandon`. Its reader
    sets `finished` once an event said so: then the connection's end is an end too. Leaving the context closes it.
    """

    def __init__(self, call: Call, deadlines: Deadlines) -> None:
        self.finished = False
        self._call = call
        self._deadlines = deadlines
        self._loop = asyncio.get_running_loop()
        self._connection: UnitConnection | None = None
        self._answer, self._parser = HttpAnswer(), SseParser()
        self._first = b""  # of the body, come with the headers
        self._failure: UnitError | None = None
        self._done = False
        self._given_up: asyncio.Future[UnitError] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_since: float | None = None
        self._limit = deadlines.first_token

    async def __aenter__(self) -> "UnitStream":
        self._waiting_since = self._loop.time()
        self._timer = self._loop.call_later(self._limit, self._check)
        opening = asyncio.ensure_future(self._open())
        try:
            either: set[asyncio.Future[Any]] = {opening, self._given_up}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                raise self._given_up.result()
            opening.result()
        except BaseException as err:
            await cancelled(opening)
            self._close()
            if isinstance(err, (*FAILURES, HttpError)):
                raise from_exception(err, self._call.unit, "sending the request") from err
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __aiter__(self) -> "UnitStream":
        return self

    async def __anext__(self) -> list[bytes]:
        self._waiting_since = self._loop.time()  # for an event: bytes that are none are no sign of life
        try:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._done:
                    raise StopAsyncIteration
                payloads = self._take(await self._read())
                if payloads:
                    self._limit = self._deadlines.stall
                    return payloads
        finally:
            self._waiting_since = None

    def abandon(self, kind: UnitErrorKind, text: str) -> None:
        """Makes the pending or the next read fail with that error. Safe at any time, from any task."""
        error = UnitError(self._call.unit, kind, text)
        if not self._given_up.done():
            self._given_up.set_result(error)
        if self._connection is not None:
            self._connection.fail(error)

    async def _open(self) -> None:
        call = self._call
        url = urlsplit(call.url)
        connecting = connect(call.url, self._connected)
        try:
            self._connection = connection = await within(self._deadlines.connect, "connecting", connecting)
        except OSError as err:
            raise NotConnected(err.errno, err.strerror or str(err)) from err
        fields = {"Host": url.netloc, "Content-Length": str(len(call.body)), "Accept-Encoding": "identity"}
        named = {**fields, **call.headers, "Accept": "text/event-stream", "Connection": "close"}
        head = f"POST {url.path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in named.items())
        await connection.write(head.encode("latin-1") + b"\r\n" + call.body)
        while not self._answer.status:
            data = await connection.read()
            if not data:
                raise ConnectionResetError("closed before it answered")
            self._first = self._answer.feed(data)
        await self._expect_event_stream(connection)

    def _connected(self) -> UnitConnection:
        # Kept from its first moment, so that a call given up while it is made is closed too.
        self._connection = UnitConnection()
        return self._connection

    async def _expect_event_stream(self, connection: UnitConnection) -> None:
        answer, unit = self._answer, self._call.unit
        if answer.status == 200:
            kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "text/event-stream":
                raise UnitError(unit, UnitErrorKind.GARBAGE, f"expected text/event-stream, got {kind[:60]}")
            return
        body = self._first
        while not answer.ended and len(body) < MAX_ERROR:
            data = await connection.read()
            if not data:
                break
            body += answer.feed(data)
        raise status_error(unit, answer.status, body[:MAX_ERROR])

    async def _read(self) -> bytes:
        """Bytes of the body; b"" at its end."""
        first, self._first = self._first, b""
        if first:
            return first
        assert self._connection is not None
        try:
            while not self._answer.ended:
                data = await self._connection.read()
                if not data:
                    self._answer.end()
                    break
                body = self._answer.feed(data)
                if body:
                    return body
            return b""
        except (*FAILURES, HttpError) as err:
            raise from_exception(err, self._call.unit, "reading the stream") from err

    def _take(self, data: bytes) -> list[bytes]:
        if not data:
            self._done = True
            if not self.finished:
                text = "closed the stream before the end"
                self._failure = UnitError(self._call.unit, UnitErrorKind.RESET, text)
            return []
        payloads: list[bytes] = []
        # What came before a fault is delivered first: those tokens are real.
        try:
            self._parser.feed_into(data, payloads)
        except SseError as err:
            self._failure = UnitError(self._call.unit, UnitErrorKind.GARBAGE, str(err))
            self._failure.__cause__ = err
        if b"[DONE]" in payloads:
            del payloads[payloads.index(b"[DONE]") :]
            self._done, self._failure = True, None
        return payloads

    def _check(self) -> None:
        """One timer a stream, not one a chunk: it looks how long the present wait has lasted, and sleeps the rest."""
        left = self._limit
        if self._waiting_since is not None:
            left = self._waiting_since + self._limit - self._loop.time()
        if left > 0.001:
            self._timer = self._loop.call_later(left, self._check)
            return
        first = self._limit == self._deadlines.first_token and not self._answer.status
        kind = UnitErrorKind.TIMEOUT if first else UnitErrorKind.STALL
        self.abandon(kind, f"no token for {self._limit:g} s")

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connection is not None:
            self._connection.close()


class AnswerStream:
    """A whole answer in the form of a stream: one payload, the answer."""

    def __init__(self, unit: str, call: Callable[[], Coroutine[Any, Any, bytes]]) -> None:
        self.finished = False
        self._unit = unit
        self._call = call
        self._over = False
        self._given_up: asyncio.Future[UnitError] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> "AnswerStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

    def __aiter__(self) -> "AnswerStream":
        return self

    async def __anext__(self) -> list[bytes]:
        if self._over:
            raise StopAsyncIteration
        self._over = True
        task = asyncio.ensure_future(self._call())
        either: set[asyncio.Future[Any]] = {task, self._given_up}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self._given_up.result()
            return [task.result()]
        finally:
            if not task.done():
                await cancelled(task)

    def abandon(self, kind: UnitErrorKind, text: str) -> None:
        """Makes the answer fail with that error. Safe at any time, from any task."""
        if not self._given_up.done():
            self._given_up.set_result(UnitError(self._unit, kind, text))
