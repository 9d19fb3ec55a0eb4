"""The answer to a streaming request on the wire: headers, events, and comment lines while nothing comes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from syshaxd.tasks import cancelled

COMMENT = b": waiting\n\n"  # clients skip it (WHATWG HTML, section 9.2.6); proxies and time-outs see that we live


class EventStream:
    """Of one request; `close` it always. After `silence` seconds without a byte the headers go out, with what is known
    by then, and a comment; so again after each such pause. What fails after that can only be told in an event."""

    def __init__(self, http: web.Request, request_id: str, silence: float) -> None:
        headers = {"x-request-id": request_id, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self.response = web.StreamResponse(headers=headers)
        self.response.content_type = "text/event-stream"
        self.response.charset = "utf-8"
        self._http = http
        self._silence = silence
        self._loop = asyncio.get_running_loop()
        self._beginning = asyncio.Lock()
        self._heard = self._loop.time()
        self._timer = self._loop.call_later(silence, self._look)
        self._comment: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether the client has the status, so that no other one can be told."""
        return self.response.prepared or self._beginning.locked()

    async def begin(self, headers: Mapping[str, str]) -> None:
        """Sends status and headers, unless that is done. Raises ConnectionError when the client is gone, as `write`."""
        async with self._beginning:
            if not self.response.prepared:
                self.response.headers.update(headers)
                await self.response.prepare(self._http)

    async def write(self, data: bytes) -> None:
        """Whole events."""
        self._heard = self._loop.time()
        await self.response.write(data)

    async def close(self) -> None:
        """No comment comes after this."""
        self._timer.cancel()
        if self._comment is not None:
            await cancelled(self._comment)

    def _look(self) -> None:
        """One timer a stream, not one an event: it looks how long the present pause has lasted, and sleeps the rest."""
        quiet = self._loop.time() - self._heard
        if quiet >= self._silence and (self._comment is None or self._comment.done()):
            self._comment = asyncio.ensure_future(self._say_something())
            quiet = 0.0
        self._timer = self._loop.call_later(max(0.001, self._silence - quiet), self._look)

    async def _say_something(self) -> None:
        try:
            await self.begin({})
            await self.write(COMMENT)
        except ConnectionError:
            return  # the request's own handler notices
