"""The daemon's own queue: requests that wait for room; the tier first, then the client's share, then the deadline.

Clients (API keys) share it: of those who wait, the client with the fewest requests running asks first, and a full queue
takes a newcomer in place of the last one of whoever holds most of it. With one client, or without keys, the deadline
alone decides. Pure: a place is called by a function its owner gives, and the clock is the owner's. The Runner waits,
and the simulation goes by the same turns.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Mapping
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


def _nobody() -> Mapping[str, int]:
    return {}


class RequestQueue:
    """Those who wait ask one after the other when something changed, a few at a time; so nobody spins. Who waits for
    one model is nothing to who waits for another. One owner (Runner). `running`: requests on units by client."""

    def __init__(self, running: Callable[[], Mapping[str, int]] = _nobody) -> None:
        self._running = running
        self._places: list[Place] = []
        self._numbers = itertools.count()
        self._in_vain: dict[str, int] = {}  # by model, since something changed

    def __len__(self) -> int:
        return len(self._places)

    def leads(self, turn: Turn, model: str, client: str = "") -> bool:
        """Whether nobody who waits for the model comes before a newcomer of that turn."""
        waiting = [place for place in self._places if place.model == model]
        if all(place.client == client for place in waiting):
            return all(turn < place.turn for place in waiting)
        newcomer = Place(self, turn, next(self._numbers), 0, model, _nothing, client)
        bisect.insort(waiting, newcomer)
        return self._shared_out(waiting)[0] is newcomer

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
            self._call(self._order(place.model).index(place) + 1, place.model)

    def promote(self, place: Place) -> None:
        """It has waited long in a tier that yields to all others: it counts as of the default tier from now on, and
        nobody goes round it any more."""
        if place.turn.rank > _RANK[Tier.DEFAULT]:
            self._places.remove(place)
            place.turn = place.turn._replace(rank=_RANK[Tier.DEFAULT])
            place.yields = False
            bisect.insort(self._places, place)

    def enter(self, turn: Turn, tokens: int, model: str, call: Callable[[], None], client: str = "") -> Place:
        """A place for a prompt of so many tokens to a model, as a context; `call`: tells it that it may ask."""
        return Place(self, turn, next(self._numbers), tokens, model, call, client)

    def has_room(self, client: str, limit: int) -> bool:
        """Whether a newcomer of that client may wait: a place is free, or another client can give one up."""
        return len(self._places) < limit or self._greedy(client) is not None

    def make_room(self, client: str, limit: int) -> None:
        """Sends the last one of the client that holds most of a full queue away, to be refused."""
        greedy = self._greedy(client) if len(self._places) >= limit else None
        if greedy is not None:
            self._places.remove(greedy)
            greedy.sent_away = True
            greedy.call()

    def _greedy(self, client: str) -> Place | None:
        """The last place of the client with the most of them, where that is over one more than the newcomer's."""
        held = Counter(place.client for place in self._places)
        most, count = max(held.items(), key=lambda item: item[1], default=("", 0))
        if count <= held[client] + 1:
            return None
        return next(place for place in reversed(self._places) if place.client == most)

    def add(self, place: Place) -> None:
        """It waits from now on."""
        bisect.insort(self._places, place)

    def remove(self, place: Place) -> None:
        """It waits no more: who was behind it may ask."""
        if place.sent_away:
            return
        index = self._order(place.model).index(place)
        self._places.remove(place)
        if self._in_vain.get(place.model, 0) < ASKED:
            self._call(index, place.model)

    def _call(self, index: int, model: str) -> None:
        """The one of that index may ask, unless somebody before it has waited so long that nobody goes round him."""
        order = self._order(model)
        if index < len(order) and all(place.yields for place in order[:index]):
            order[index].call()

    def _order(self, model: str) -> list[Place]:
        return self._shared_out([place for place in self._places if place.model == model])

    def _shared_out(self, waiting: list[Place]) -> list[Place]:
        """Within a tier the n-th of a client comes as if n requests of his were running already."""
        if all(place.client == waiting[0].client for place in waiting):
            return waiting
        ahead = Counter(self._running())
        shares = {}
        for place in waiting:
            shares[place] = (place.turn.rank, ahead[place.client])
            ahead[place.client] += 1
        return sorted(waiting, key=shares.__getitem__)


def _nothing() -> None:
    return None


class Place:
    """One request's place in the queue; in it between entering and leaving the context."""

    def __init__(
        self,
        queue: RequestQueue,
        turn: Turn,
        number: int,
        tokens: int,
        model: str,
        call: Callable[[], None],
        client: str,
    ) -> None:
        self._queue, self._number = queue, number
        self.turn, self.tokens, self.model, self.call, self.client = turn, tokens, model, call, client
        self.yields = True  # others may go round it
        self.sent_away = False

    def __lt__(self, other: Place) -> bool:
        return (self.turn, self._number) < (other.turn, other._number)

    def __enter__(self) -> Place:
        self._queue.add(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._queue.remove(self)
