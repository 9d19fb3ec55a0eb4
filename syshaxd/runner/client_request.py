"""What the conductor hands to the Runner, and what it gets back besides the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Union

from syshaxd.errors import RequestError
from syshaxd.model.plan import Prediction, Reason
from syshaxd.model.request import RequestInfo, Route
from syshaxd.unitclient import Plain, Usage

__all__ = ["ClientRequest", "Delta", "Event", "Finish", "Head", "Raw", "RequestError", "milliseconds"]


@dataclass(frozen=True)
class ClientRequest:
    """A checked request. `arrived`: monotonic seconds; `created`: Unix seconds for the response; `digest`: of the body
    as it came and of the key it came with."""

    info: RequestInfo
    body: Mapping[str, Any]
    arrived: float
    created: int
    digest: bytes = b""

    def stops(self) -> list[str]:
        """The stop strings, without empty ones."""
        stop = self.body.get("stop")
        return [text for text in ([stop] if isinstance(stop, str) else stop or []) if text]


class Head(NamedTuple):
    """Known at the first token: what response headers say."""

    route: Route
    reason: Reason
    prediction: Prediction


def milliseconds(prediction: Prediction) -> dict[str, float]:
    """What is predicted, by name, for headers, log and timeline."""
    named = {"predicted_ttft": prediction.ttft, "predicted_tpot": prediction.tpot}
    return {name: round(value * 1e3, 2) for name, value in named.items() if value is not None}


class Delta(NamedTuple):
    """Text for the client and the tokens it came from."""

    content: str = ""
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: Mapping[str, Any] | None = None


class Finish(NamedTuple):
    """The end of a request whose text the daemon made."""

    reason: str
    stop_reason: Any
    usage: Usage


class Raw(NamedTuple):
    """One event payload (stream), or the whole response body, as the unit sent it."""

    payload: bytes


Event = Union[Delta, Plain, Finish, Raw]
