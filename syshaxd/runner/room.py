"""The daemon's own queue: requests that wait for room, in order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Deque


class WaitingRoom:
    """Only the head asks again when something changed; so nobody is overtaken and nobody spins."""

    def __init__(self) -> None:
        self._waiters: "Deque[asyncio.Future[None]]" = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    def changed(self) -> None:
        """Load fell, a unit came or went, time passed: the head may ask again."""
        if self._waiters and not self._waiters[0].done():
            self._waiters[0].set_result(None)

    async def wait(self, place: "Place", until: float) -> bool:
        """Until it is this place's turn to ask; False once the loop's time is past `until`."""
        loop = asyncio.get_running_loop()
        future = place.renew(loop)
        await asyncio.wait({future}, timeout=max(0.0, until - loop.time()))
        return future.done()

    def enter(self) -> "Place":
        """Takes the last place; use as a context."""
        return Place(self._waiters, self)


class Place:
    """One waiter's place in the queue."""

    def __init__(self, waiters: "Deque[asyncio.Future[None]]", room: WaitingRoom) -> None:
        self._waiters, self._room = waiters, room
        self._future: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()

    def __enter__(self) -> "Place":
        self._waiters.append(self._future)
        return self

    def __exit__(self, *exc: object) -> None:
        self._waiters.remove(self._future)
        self._future.cancel()
        self._room.changed()

    def renew(self, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
        """A fresh future in the same place."""
        if self._future.done():
            fresh: "asyncio.Future[None]" = loop.create_future()
            self._waiters[self._waiters.index(self._future)] = fresh
            self._future = fresh
        return self._future
