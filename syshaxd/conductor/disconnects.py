"""Notices clients that leave: aiohttp 3.8 has no handler cancellation, and later versions only on request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

INTERVAL = 0.1  # seconds between two looks; both legs must stop within one second
GRACE = 5.0  # seconds after the request's own deadline


class DisconnectWatch:
    """Cancels the handler whose client is gone, or which is stuck in writing long after its deadline."""

    def __init__(self) -> None:
        self._handlers: "dict[asyncio.Task[Any], tuple[web.BaseRequest, float]]" = {}
        self._busy = asyncio.Event()  # while there are handlers

    @contextmanager
    def over(self, request: web.BaseRequest, until: float) -> Iterator[None]:
        """Watches the current task; `until`: loop time at which its request should have ended."""
        task = asyncio.current_task()
        assert task is not None
        self._handlers[task] = (request, until + GRACE)
        self._busy.set()
        try:
            yield
        finally:
            del self._handlers[task]
            if not self._handlers:
                self._busy.clear()

    async def run(self) -> None:
        """Looks until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._busy.wait()
            await asyncio.sleep(INTERVAL)
            now = loop.time()
            for task, (request, until) in tuple(self._handlers.items()):
                transport = request.transport
                if transport is None or transport.is_closing() or now > until:
                    task.cancel()
