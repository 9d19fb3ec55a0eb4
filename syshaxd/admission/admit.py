"""Who is let in, who waits, who is refused: the daemon's only answers of 404, 413, 429 and 503, and of 400 for length.

The conductor asks at the door, the Scheduler's deciders where no unit can take a request now, the Runner when a wait is
over. Each question is a function of what the asker sees; None: nothing stands against the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Union

from syshaxd.model.plan import Queue, Reason, Refuse
from syshaxd.model.request import Endpoint, RequestInfo, Route

from .refusals import Refusal

Held = Union[Queue, Refuse]


def of_size(size: int, limit: int) -> Refuse | None:
    """A body of `size` bytes, read so far or announced."""
    return Refusal.BODY_TOO_LARGE.told(limit=limit) if size > limit else None


def at_the_door(model: str, served: Sequence[str], open_: bool) -> Refuse | None:
    """A checked request, before anything is kept of it. `open_`: whether the daemon takes requests at all."""
    if not open_:
        return Refusal.DRAINING.told()
    return of_model(model, served)


def of_model(model: str, served: Sequence[str]) -> Refuse | None:
    """A request that names a model, against all names there are."""
    return Refusal.UNKNOWN_MODEL.told(model=model, served=", ".join(served)) if model not in served else None


def can_be_done(lacking: str) -> Refuse | None:
    """`lacking`: what no unit, READY or not, could do for the request; ""."""
    return Refusal.UNABLE.told(what=lacking) if lacking else None


def fits_a_context(info: RequestInfo, longest: int | None) -> Refuse | None:
    """A request whose prompt was counted, against the longest context there is for it (None: not known)."""
    output = info.max_tokens or 1
    needed = info.prompt_tokens + output
    if longest is None or not info.counted or needed <= longest:
        return None
    field = "messages" if info.endpoint is Endpoint.CHAT else "prompt"
    values = {"longest": longest, "needed": needed, "prompt": info.prompt_tokens, "output": output}
    return Refusal.TOO_LONG.told(param=field, **values)


def clipped(info: RequestInfo, longest: int | None) -> RequestInfo:
    """The same with as much output as fits, where the operator wants that and its prompt alone fits."""
    room = (longest or 0) - info.prompt_tokens
    if not info.counted or room < 1 or info.max_tokens is None or info.max_tokens <= room:
        return info
    return replace(info, max_tokens=room, clipped=info.max_tokens)


def nobody(failed: bool, queue_timeout: float) -> Held:
    """No READY unit serves it. `failed`: it ran into a dying unit, which a restart may bring back."""
    if failed:
        return Queue(Reason("unit_restarting", "no other unit is ready"), queue_timeout)
    return Refusal.NO_UNIT_READY.told(what="request")


def no_split(why: str, requests_own: bool) -> Refuse:
    """The client asked for a split. `requests_own`: its own parameters forbid it, and always will."""
    return (Refusal.SPLIT_NEVER if requests_own else Refusal.SPLIT_NOT_NOW).told(why=why)


def route_not_ready(route: Route) -> Refuse:
    """The client asked for a side on which no unit is READY."""
    return Refusal.ROUTE_NOT_READY.told(route=route.value)


@dataclass(frozen=True)
class Busy:
    """Why no unit takes a request now. `may_wait`: seconds until it should ask for the last time; `hopeless`: why
    waiting would not help; `retry_after`: seconds after which a client may find room."""

    code: str
    text: str
    may_wait: float
    hopeless: Refusal | None = None
    retry_after: float | None = None


def wait_or_refuse(busy: Busy, queued: int, max_queue: int) -> Held:
    """A place in the daemon's queue, where one is free and waiting can help; `queued`: who waits there already."""
    if busy.hopeless is not None:
        return busy.hopeless.told(busy.retry_after, why=busy.text)
    return place(Queue(Reason(busy.code, busy.text), busy.may_wait), queued, max_queue, busy.retry_after)


def place(wait: Queue, queued: int, max_queue: int, retry_after: float | None = None) -> Held:
    """The bound of the queue."""
    if queued >= max_queue:
        return Refusal.QUEUE_FULL.told(retry_after, why=wait.reason.text, queued=queued)
    return wait


def beyond_the_limit(in_flight: int, limit: int, patience: float) -> Queue | None:
    """The bound of requests on units; None: one more may go."""
    if in_flight < limit:
        return None
    return Queue(Reason("in_flight", f"{in_flight} requests are in flight (limits.max_in_flight)"), patience)


def pushed_out(queued: int) -> Refuse:
    """It held the last place of the client that waits with most requests, and another client came."""
    return Refusal.QUEUE_FULL.told(why="another client came, and this one has the most waiting", queued=queued)


def behind_others(patience: float) -> Queue:
    """A unit would take it, but others wait for that already."""
    return Queue(Reason("behind_others", "others wait already"), patience)


def after_the_last_ask(plan: Queue) -> Refuse:
    """It asked for the last time, and would have to wait on."""
    return Refusal.QUEUE_TIMEOUT.told(why=plan.reason.text)
