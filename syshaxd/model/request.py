"""What the scheduler and the runner need to know of a client's request, besides its raw body."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from .abilities import Feature


class Endpoint(enum.Enum):
    """OpenAI endpoints that generate."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"


class Route(enum.Enum):
    """A route a client may ask for with `x-syshax-route`, and the one it is told."""

    ACCELERATOR = "accelerator"
    CPU = "cpu"
    SPLIT = "accelerator>cpu"


class Tier(enum.Enum):
    """OpenAI `service_tier`."""

    PRIORITY = "priority"
    DEFAULT = "default"
    FLEX = "flex"


@dataclass(frozen=True)
class RequestInfo:
    """Parsed once by the conductor. Token counts are tokens, limits seconds."""

    request_id: str
    endpoint: Endpoint
    model: str
    stream: bool
    prompt_tokens: int  # estimate (characters / 4, at least 1) unless counted
    max_tokens: int | None
    route: Route | None = None  # asked for
    tier: Tier = Tier.DEFAULT
    priority: int = 0
    slo_ttft: float | None = None
    slo_tpot: float | None = None
    first_token_stays: str | None = None  # reason why only k = 0 is allowed; None: k = 1 is
    stays: str | None = None  # reason why it must not move at all; None: it may
    counted: bool = False  # whether a unit has said how many tokens the prompt has
    clipped: int | None = None  # max_tokens that its client asked for, where that was cut to what fits
    client: str = ""  # which API key it came with, as a short digest; "" where none is asked for
    features: frozenset[Feature] = frozenset()  # what only some servers can do
    waited: float = 0.0  # seconds since its client asked first: in earlier attempts, in the daemon's queue


def left_of(info: RequestInfo, waited: float) -> RequestInfo:
    """The request after `waited` seconds more in a queue: that much less is left of its TTFT limit."""
    return replace(info, waited=info.waited + waited)
