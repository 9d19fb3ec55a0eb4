"""The daemon's own queue: requests that wait for room; the tier first, then the deadline, then the arrival.

Pure: a place is called by a function its owner gives, and the clock is the owner's. The Runner waits, and the
simulation goes by the same turns.
"""

from __future__ import annotations

import bisect
import itertools
from typing import Callable, NamedTuple

from syshaxd.model.plan import Plan, Queue, Split, Whole
from syshaxd.model.request import RequestInfo, Tier

ASKED = 4  # requests that may ask in vain when something changed; a long prompt at the head holds up few others
_RANK = {Tier.PRIORITY: 0, Tier.DEFAULT: 1, Tier.FLEX: 2}


class Turn(NamedTuple):
    """Who asks first: the smallest. `priority` as in vLLM's body field: lower is earlier; `deadline`: the clock's."""

    rank: int
    priority: int
    deadline: float


def turn_of(info: RequestInfo, deadline: float) -> Turn:
    """Earliest deadline first within a tier and a priority."""
    return Turn(_RANK[info.tier], info.priority, deadline)


FIRST = Turn(-1, 0, 0.0)  # before all: whoever asks for the last time


def last_ask(turn: Turn, plan: Plan, now: float) -> float:
    """The clock's time at which a request that waits asks for the last time: there is still time for its prefill.
    `plan`: what it was told now; it would go at once if nobody else waited, or waits itself."""
    if isinstance(plan, Queue):
        return min(turn.deadline, now + plan.deadline)
    ttft = plan.prediction.ttft if isinstance(plan, (Whole, Split)) and plan.prediction is not None else None
    return turn.deadline - 2 * (ttft or 0.0)


class RequestQueue:
    """Those who wait ask one after the other when something changed, a few at a time; so nobody spins. Who waits for
    one model is nothing to who waits for another. One owner (Runner)."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._numbers = itertools.count()
        self._in_vain: dict[str, int] = {}  # by model, since something changed

    def __len__(self) -> int:
        return len(self._places)

    def leads(self, turn: Turn, model: str) -> bool:
        """Whether nobody who waits for the model comes before a newcomer of that turn."""
        return all(turn < place.turn for place in self._places if place.model == model)

    def tokens(self, model: str) -> int:
        """Prompt tokens of all who wait for the model."""
        return sum(place.tokens for place in self._places if place.model == model)

    def tokens_ahead(self, turn: Turn, model: str) -> int:
        """Prompt tokens of those who come before a newcomer of that turn, or before who has that turn."""
        return sum(place.tokens for place in self._places if place.model == model and place.turn < turn)

    def changed(self) -> None:
        """Load fell, a unit came or went, time passed: the first ones may ask again."""
        self._in_vain.clear()
        for model in {place.model for place in self._places}:
            self._call(0, model)

    def asked_in_vain(self, place: Place, at_most: int = ASKED) -> None:
        """It asked and waits on: the one behind it may ask, for it may need less; at most so many do so in vain."""
        self._in_vain[place.model] = self._in_vain.get(place.model, 0) + 1
        if self._in_vain[place.model] < at_most:
            self._call(self._places.index(place) + 1, place.model)

    def enter(self, turn: Turn, tokens: int, model: str, call: Callable[[], None]) -> Place:
        """A place for a prompt of so many tokens to a model, as a context; `call`: tells it that it may ask."""
        return Place(self, turn, next(self._numbers), tokens, model, call)

    def add(self, place: Place) -> None:
        """It waits from now on."""
        bisect.insort(self._places, place)

    def remove(self, place: Place) -> None:
        """It waits no more: who was behind it may ask."""
        index = self._places.index(place)
        del self._places[index]
        if self._in_vain.get(place.model, 0) < ASKED:
            self._call(index, place.model)

    def _call(self, index: int, model: str) -> None:
        behind = (place for place in self._places[index:] if place.model == model)
        for place in itertools.islice(behind, 1):
            place.call()


class Place:
    """One request's place in the queue; in it between entering and leaving the context."""

    def __init__(
        self, queue: RequestQueue, turn: Turn, number: int, tokens: int, model: str, call: Callable[[], None]
    ) -> None:
        self._queue, self._number = queue, number
        self.turn, self.tokens, self.model, self.call = turn, tokens, model, call

    def __lt__(self, other: Place) -> bool:
        return (self.turn, self._number) < (other.turn, other._number)

    def __enter__(self) -> Place:
        self._queue.add(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._queue.remove(self)
