"""A connection to a unit for one call: bytes out, bytes in, as they come."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

PIECE = 256 * 1024  # bytes written in one go; a large body at once would hold up the loop
HIGH, LOW = 256 * 1024, 64 * 1024  # bytes read ahead of a client that is slow


class UnitConnection(asyncio.Protocol):
    """Made by `connect`; `close` it always."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._paused = False
        self._over = False
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # ---- called by the transport ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > HIGH and not self._paused:
            self._paused = True
            self._opened().pause_reading()
        self._wake(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._error = self._error or exc
        self._wake(self._reader)
        self._wake(self._writer)

    def pause_writing(self) -> None:
        self._writer = self._writer or self._loop.create_future()

    def resume_writing(self) -> None:
        self._wake(self._writer)
        self._writer = None

    # ---- called by its owner ----

    async def write(self, data: bytes) -> None:
        """Returns when the kernel has taken most of it; raises OSError."""
        transport = self._opened()
        for at in range(0, len(data), PIECE):
            if self._over:
                raise self._error or ConnectionResetError("closed while the request was sent")
            transport.write(data[at : at + PIECE])
            if self._writer is not None:
                await self._writer

    async def read(self) -> bytes:
        """All that has come, at least a byte; b"" at the end. Raises OSError, or what `fail` was given."""
        if not self._parts and not self._over and self._error is None:
            self._reader = self._loop.create_future()
            await self._reader
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            if self._paused:
                self._paused = False
                self._opened().resume_reading()
            return parts[0] if len(parts) == 1 else b"".join(parts)
        if self._error is not None:
            raise self._error
        return b""

    def fail(self, error: Exception) -> None:
        """Makes the pending or the next read raise it, once what has come is read."""
        self._error = error
        self._wake(self._reader)

    def close(self) -> None:
        """At once; what is still to be sent is not."""
        if self._transport is not None:
            self._transport.abort()

    def _opened(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    @staticmethod
    def _wake(future: asyncio.Future[None] | None) -> None:
        if future is not None and not future.done():
            future.set_result(None)


async def connect(url: str, made: Callable[[], UnitConnection] = UnitConnection) -> UnitConnection:
    """To the host and port of an http or https URL; raises OSError."""
    parts = urlsplit(url)
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if secure else 80)
    _, connection = await asyncio.get_running_loop().create_connection(made, parts.hostname or "", port, ssl=secure)
    return connection
