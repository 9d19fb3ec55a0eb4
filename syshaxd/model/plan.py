"""The scheduler's answers. A union, so that "busy" cannot fall into another branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from .request import Route


@dataclass(frozen=True)
class Reason:
    """Why: a stable code for metrics, and one sentence for people."""

    code: str
    text: str


@dataclass(frozen=True)
class Prediction:
    """What the scheduler expects, seconds; None where it has no model yet."""

    ttft: float | None = None
    tpot: float | None = None


@dataclass(frozen=True)
class Whole:
    """One unit serves the whole request."""

    unit: str
    route: Route
    reason: Reason
    prediction: Prediction = Prediction()


@dataclass(frozen=True)
class Split:
    """Prefill on one unit, decode on another; `k` tokens come from the first (0 or 1)."""

    prefill: str
    decode: str
    reason: Reason
    k: int = 1
    prediction: Prediction = Prediction()

    @property
    def route(self) -> Route:
        """Always the split route."""
        return Route.SPLIT


@dataclass(frozen=True)
class Queue:
    """Hold it in the daemon and ask again when load falls, until `deadline` seconds have passed."""

    reason: Reason
    deadline: float


@dataclass(frozen=True)
class Refuse:
    """Not served: HTTP `status`, `Retry-After` in seconds (None: it would be refused again), the field at fault."""

    reason: Reason
    status: int = 429
    retry_after: float | None = 1.0
    param: str | None = None


Plan = Union[Whole, Split, Queue, Refuse]


@dataclass(frozen=True)
class Move:
    """Hand a running request over to another unit."""

    request_id: str
    target: str
    reason: Reason
