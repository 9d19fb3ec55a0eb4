"""The daemon's own queue: requests that wait for room; the tier first, then the deadline, then the arrival."""

from __future__ import annotations

import asyncio
import bisect
import itertools
from typing import List, NamedTuple

from syshaxd.model.request import RequestInfo, Tier

_RANK = {Tier.PRIORITY: 0, Tier.DEFAULT: 1, Tier.FLEX: 2}


class Turn(NamedTuple):
    """Who asks first: the smallest. `priority` as in vLLM's body field: lower is earlier; `deadline`: loop time."""

    rank: int
    priority: int
    deadline: float


def turn_of(info: RequestInfo, now: float, timeout: float) -> Turn:
    """Earliest deadline first within a tier; the deadline is the request's own TTFT target where that is shorter."""
    patience = timeout if info.slo_ttft is None else min(timeout, info.slo_ttft)
    return Turn(_RANK[info.tier], info.priority, now + patience)


class WaitingRoom:
    """Only the head asks again when something changed; so nobody behind it slips in and nobody spins."""

    def __init__(self) -> None:
        self._places: "List[Place]" = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._places)

    def leads(self, turn: Turn) -> bool:
        """Whether nobody who waits comes before a newcomer of that turn."""
        return not self._places or turn < self._places[0].turn

    def changed(self) -> None:
        """Load fell, a unit came or went, time passed: the head may ask again."""
        if self._places:
            self._places[0].call()

    async def wait(self, place: "Place", until: float) -> bool:
        """Until it is this place's turn to ask; False once the loop's time is past `until`."""
        loop = asyncio.get_running_loop()
        future = place.renew(loop)
        await asyncio.wait({future}, timeout=max(0.0, until - loop.time()))
        return future.done()

    def enter(self, turn: Turn) -> "Place":
        """Takes a place; use as a context."""
        return Place(self._places, self, turn, next(self._numbers))


class Place:
    """One waiter's place in the queue."""

    def __init__(self, places: "List[Place]", room: WaitingRoom, turn: Turn, number: int) -> None:
        self._places, self._room = places, room
        self.turn, self._number = turn, number
        self._future: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()

    def __lt__(self, other: "Place") -> bool:
        return (self.turn, self._number) < (other.turn, other._number)

    def __enter__(self) -> "Place":
        bisect.insort(self._places, self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._places.remove(self)
        self._future.cancel()
        self._room.changed()

    def call(self) -> None:
        """It may ask."""
        if not self._future.done():
            self._future.set_result(None)

    def renew(self, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
        """A fresh future in the same place."""
        if self._future.done():
            self._future = loop.create_future()
        return self._future
