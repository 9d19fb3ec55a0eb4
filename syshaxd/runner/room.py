"""The daemon's own queue: requests that wait for room; the tier first, then the deadline, then the arrival."""

from __future__ import annotations

import asyncio
import bisect
import itertools
from typing import Dict, List

from syshaxd.scheduler.turns import ASKED, Turn


class WaitingRoom:
    """Those who wait ask one after the other when something changed, a few at a time; so nobody spins. Who waits for
    one model is nothing to who waits for another."""

    def __init__(self) -> None:
        self._places: "List[Place]" = []
        self._numbers = itertools.count()
        self._in_vain: Dict[str, int] = {}  # by model, since something changed

    def __len__(self) -> int:
        return len(self._places)

    def leads(self, turn: Turn, model: str) -> bool:
        """Whether nobody who waits for the model comes before a newcomer of that turn."""
        return all(turn < place.turn for place in self._places if place.model == model)

    def tokens(self, model: str) -> int:
        """Prompt tokens of all who wait for the model."""
        return sum(place.tokens for place in self._places if place.model == model)

    def ahead(self, turn: Turn, model: str) -> int:
        """Prompt tokens of those who come before a newcomer of that turn, or before who has that turn."""
        return sum(place.tokens for place in self._places if place.model == model and place.turn < turn)

    def changed(self) -> None:
        """Load fell, a unit came or went, time passed: the first ones may ask again."""
        self._in_vain.clear()
        for model in {place.model for place in self._places}:
            self._ask(0, model)

    def declined(self, place: "Place", asked: int = ASKED) -> None:
        """It asked and waits on: the one behind it may ask, for it may need less; at most `asked` do so in vain."""
        self._in_vain[place.model] = self._in_vain.get(place.model, 0) + 1
        if self._in_vain[place.model] < asked:
            self._ask(self._places.index(place) + 1, place.model)

    def left(self, index: int, model: str) -> None:
        """The place of that index is free: who was behind it may ask."""
        if self._in_vain.get(model, 0) < ASKED:
            self._ask(index, model)

    def _ask(self, index: int, model: str) -> None:
        behind = (place for place in self._places[index:] if place.model == model)
        for place in itertools.islice(behind, 1):
            place.call()

    async def wait(self, place: "Place", until: float) -> bool:
        """Until it is this place's turn to ask; False once the loop's time is past `until`."""
        loop = asyncio.get_running_loop()
        future = place.renew(loop)
        await asyncio.wait({future}, timeout=max(0.0, until - loop.time()))
        return future.done()

    def enter(self, turn: Turn, tokens: int, model: str) -> "Place":
        """Takes a place for a prompt of so many tokens to a model; use as a context."""
        return Place(self._places, self, turn, next(self._numbers), tokens, model)


class Place:
    """One waiter's place in the queue."""

    def __init__(
        self, places: "List[Place]", room: WaitingRoom, turn: Turn, number: int, tokens: int, model: str
    ) -> None:
        self._places, self._room = places, room
        self.turn, self._number, self.tokens, self.model = turn, number, tokens, model
        self._future: "asyncio.Future[None]" = asyncio.get_running_loop().create_future()

    def __lt__(self, other: "Place") -> bool:
        return (self.turn, self._number) < (other.turn, other._number)

    def __enter__(self) -> "Place":
        bisect.insort(self._places, self)
        return self

    def __exit__(self, *exc: object) -> None:
        index = self._places.index(self)
        del self._places[index]
        self._future.cancel()
        self._room.left(index, self.model)

    def call(self) -> None:
        """It may ask."""
        if not self._future.done():
            self._future.set_result(None)

    def renew(self, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
        """A fresh future in the same place."""
        if self._future.done():
            self._future = loop.create_future()
        return self._future
