"""What the conductor hands to the Runner, and what it gets back besides the stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, NamedTuple, Optional, Union

from syshaxd.errors import SysHaxError
from syshaxd.model.plan import Prediction, Reason
from syshaxd.model.request import RequestInfo, Route
from syshaxd.unitclient import Usage


@dataclass(frozen=True)
class ClientRequest:
    """A checked request. `arrived`: monotonic seconds; `created`: Unix seconds for the response; `digest`: of the body
    as it came and of the key it came with."""

    info: RequestInfo
    body: Mapping[str, Any]
    arrived: float
    created: int
    digest: bytes = b""


class RequestError(SysHaxError):
    """The request ends with this HTTP status; `body` is a unit's own error object to pass on, if any."""

    def __init__(
        self, status: int, code: str, message: str, retry_after: Optional[float] = None, body: bytes = b""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.body = body


class Head(NamedTuple):
    """Known at the first token: what response headers say."""

    route: Route
    reason: Reason
    prediction: Prediction


def milliseconds(prediction: Prediction) -> Dict[str, float]:
    """What is predicted, by name, for headers, log and timeline."""
    named = {"predicted_ttft": prediction.ttft, "predicted_tpot": prediction.tpot}
    return {name: round(value * 1e3, 2) for name, value in named.items() if value is not None}


class Delta(NamedTuple):
    """Text for the client and the tokens it came from."""

    content: str = ""
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: Optional[Mapping[str, Any]] = None


class Finish(NamedTuple):
    """The end of a request whose text the daemon made."""

    reason: str
    stop_reason: Any
    usage: Usage


class Raw(NamedTuple):
    """One event payload (stream), or the whole response body, as the unit sent it."""

    payload: bytes


Event = Union[Delta, Finish, Raw]
