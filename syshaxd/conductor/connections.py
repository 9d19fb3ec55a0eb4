"""Connections of clients: how many there may be, how long one may say nothing, and what is told of broken HTTP.

Each request in flight needs a second descriptor, to its unit; so clients get less than half of what the process may
have, and units, probes and the control socket the rest. Where that is used up, the connection that has said nothing for
longest makes room for a new one.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from syshaxd.errors import RequestError
from syshaxd.log import Log

from .answers import error_response

RESERVED = 128  # descriptors for units, probes, logs and the control socket
FIRST_REQUEST = 20.0  # seconds in which the header of a connection's first request must have come
KEEP_ALIVE = 75.0  # seconds between two requests of one connection
SWEEP = 1.0  # seconds between two looks for connections that say nothing


def raise_soft_limit() -> int:
    """As many descriptors as the system lets the process have; returns how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


class Connections:
    """All connections of the front, by the time at which each must have sent a request. One owner (Conductor)."""

    def __init__(self, descriptors: int) -> None:
        self.most = max(16, (descriptors - RESERVED) // 2)
        self._silent: dict[Connection, float] = {}  # until when each may be; oldest first
        self._busy: set[Connection] = set()
        self._log = Log("conductor")

    def __len__(self) -> int:
        return len(self._silent) + len(self._busy)

    def protocol(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> Connection:
        """For a connection that was accepted just now."""
        return Connection(self, server, loop=loop, keepalive_timeout=KEEP_ALIVE, access_log=None, auto_decompress=False)

    def opened(self, connection: Connection, now: float) -> None:
        """It is there; where there are too many, the one that has said nothing for longest goes, or itself."""
        if len(self) >= self.most:
            self._log.warning("too many connections", most=self.most)
            oldest = next(iter(self._silent), connection)
            self._silent.pop(oldest, None)
            oldest.abort()
            if oldest is connection:
                return
        self._silent[connection] = now + FIRST_REQUEST

    def closed(self, connection: Connection) -> None:
        """It is gone."""
        self._silent.pop(connection, None)
        self._busy.discard(connection)

    @contextmanager
    def answering(self, request: web.BaseRequest) -> Iterator[None]:
        """While its request is answered a connection may be silent for as long as that takes."""
        connection = request.protocol
        if isinstance(connection, Connection) and self._silent.pop(connection, None) is not None:
            self._busy.add(connection)
        try:
            yield
        finally:
            if isinstance(connection, Connection) and connection in self._busy:
                self._busy.discard(connection)
                self._silent[connection] = asyncio.get_running_loop().time() + KEEP_ALIVE

    async def sweep(self) -> None:
        """Closes those that were silent for too long, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP)
            now = loop.time()
            for connection in [silent for silent, until in self._silent.items() if until < now]:
                self.closed(connection)
                connection.abort()


class Connection(web.RequestHandler):
    """One connection: known to Connections, and silent about what it was sent where that is no HTTP."""

    def __init__(self, connections: Connections, server: web.Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepted."""
        super().connection_made(transport)
        self._connections.opened(self, asyncio.get_running_loop().time())

    def connection_lost(self, exc: BaseException | None) -> None:
        """Gone."""
        self._connections.closed(self)
        super().connection_lost(exc)

    def abort(self) -> None:
        """Closes it at once."""
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The OpenAI form, and a line in the log, without a byte of what came: it may hold a key or a prompt."""
        kind = type(exc).__name__ if exc is not None else "unknown"
        Log("conductor").warning("a connection sent no proper HTTP", status=status, kind=kind)
        if status >= 500:
            failure = RequestError(500, "internal_error", "internal error; the log has it")
        else:
            failure = RequestError(status, "malformed_http", f"the request is no proper HTTP/1.1 ({kind})")
        response = error_response(failure, {})
        response.force_close()
        return response

    def log_exception(self, *args: Any, **options: Any) -> None:
        """What aiohttp would log with bytes of the request: the kind of error is enough."""
        error = options.get("exc_info")
        kind = type(error).__name__ if isinstance(error, BaseException) else "unknown"
        Log("conductor").warning("a connection broke", kind=kind)
