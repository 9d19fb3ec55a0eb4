"""Who asks first in the daemon's queue. Pure; the Runner's waiting room and the simulation go by it."""

from __future__ import annotations

from typing import NamedTuple

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
