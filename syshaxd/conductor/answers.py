"""Answers in OpenAI's forms."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from syshaxd.runner import RequestError

_TYPES = {401: "authentication_error", 404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error"}


class BadRequest(RequestError):
    """The client's request is wrong; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str = "") -> None:
        super().__init__(status, code or "invalid_value", message, param=param)


def error_object(err: RequestError) -> dict[str, Any]:
    """`{"error": {...}}`. A unit's own error object is passed on."""
    if err.body:
        own = _parsed(err.body)
        if own is not None:
            return own
    kind = _TYPES.get(err.status, "invalid_request_error" if err.status < 500 else "server_error")
    return {"error": {"message": str(err), "type": kind, "param": err.param, "code": err.code}}


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        own = json.loads(body)
    except ValueError:
        return None
    if not isinstance(own, dict):
        return None
    return own if isinstance(own.get("error"), dict) else {"error": own}


def reason_of(err: RequestError) -> str:
    """Code and sentence in one line."""
    return " ".join(f"{err.code}: {err}".split())


def error_response(err: RequestError, headers: Mapping[str, str]) -> web.Response:
    """An HTTP error; both forms of the retry hint, because the OpenAI clients read both."""
    made = dict(headers)
    if err.retry_after is not None:
        made["Retry-After"] = str(max(1, math.ceil(err.retry_after)))
        made["retry-after-ms"] = str(max(1, round(err.retry_after * 1000)))
        made["x-syshax-reason"] = reason_of(err)
    if err.status == 401:
        made["WWW-Authenticate"] = "Bearer"
    return web.json_response(error_object(err), status=err.status, headers=made)


def error_events(err: RequestError) -> bytes:
    """How a stream ends that was lost after its first byte."""
    return b"data: " + json.dumps(error_object(err)).encode() + b"\n\ndata: [DONE]\n\n"
