"""The one list of reasons for which the daemon does not serve a request: code, status, sentence, when to come again.

docs/metrics.md explains the codes. What becomes of a request that was admitted (502, 504) is the Runner's to tell.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from syshaxd.errors import RequestError
from syshaxd.model.plan import Reason, Refuse

SOON, LATER = 1.0, 5.0  # seconds of Retry-After where nothing better is known


class _Row(NamedTuple):
    code: str
    status: int
    sentence: str
    retry_after: float | None = None  # seconds; None: the same request would be refused again
    param: str | None = None  # the field that is at fault


class Refusal(enum.Enum):
    """`Refusal.X.told(name=value, ...)` is the answer; the names are those in its sentence."""

    BODY_TOO_LARGE = _Row("request_too_large", 413, "the body is larger than {limit} bytes (conductor.max_body)")
    TOO_LONG = _Row(
        "context_length_exceeded",
        400,
        "This model's maximum context length is {longest} tokens; the request needs {needed}: "
        "{prompt} of its prompt and {output} of output",
    )
    UNABLE = _Row("unsupported_by_units", 400, "no unit that this request may go to can serve: {what}")
    UNKNOWN_MODEL = _Row("model_not_found", 404, "the model {model!r} does not exist; served: {served}", param="model")
    SPLIT_NEVER = _Row("split_impossible", 400, "a split is not possible: {why}")
    SPLIT_NOT_NOW = _Row("split_impossible", 503, "a split is not possible: {why}", SOON)
    ROUTE_NOT_READY = _Row("route_not_ready", 503, "no unit of route {route} is ready", LATER)
    NO_UNIT_READY = _Row("no_unit_ready", 503, "no unit that can serve this {what} is ready", LATER)
    UNIT_REMOVED = _Row("no_unit_ready", 503, "unit {unit} was removed", SOON)
    DRAINING = _Row("draining", 503, "the daemon is draining and takes no new requests", LATER)
    SHUTTING_DOWN = _Row("shutting_down", 503, "the daemon is stopping", SOON)
    TOO_MANY_BODIES = _Row("too_many_bodies", 429, "too many large bodies are being read", SOON)
    QUEUE_FULL = _Row("queue_full", 429, "{why}; {queued} requests queue already (limits.max_queue)", SOON)
    QUEUE_TIMEOUT = _Row("queue_timeout", 429, "no room in time: {why}", 2.0)
    LATE = _Row("refuse_late", 429, "{why}", SOON)  # its time went by in the queue, or between earlier attempts
    TTFT = _Row("refuse_ttft", 429, "{why}", SOON)  # what would break its limits, were it to come now
    BACKLOG = _Row("refuse_backlog", 429, "{why}", SOON)
    TPOT = _Row("refuse_tpot", 429, "{why}", SOON)
    KV = _Row("refuse_kv", 429, "{why}", SOON)

    def told(self, retry_after: float | None = None, param: str | None = None, **values: object) -> Refuse:
        """The refusal in words; `retry_after`: seconds, `param`: a field, where more is known than in the list."""
        row = self.value
        again = row.retry_after if retry_after is None else retry_after
        return Refuse(Reason(row.code, row.sentence.format(**values)), row.status, again, param or row.param)


def error_of(refuse: Refuse) -> RequestError:
    """To be raised where the request ends."""
    return RequestError(refuse.status, refuse.reason.code, refuse.reason.text, refuse.retry_after, param=refuse.param)
