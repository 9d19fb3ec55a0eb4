"""Who asks first in the daemon's queue. Pure; the Runner's waiting room and the simulation go by it."""

from __future__ import annotations

from typing import NamedTuple

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
