"""Answers in OpenAI's forms."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from syshax_contract.error_form import error_form, normalised
from syshaxd.runner import RequestError


class BadRequest(RequestError):
    """The client's request is wrong; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str = "") -> None:
        super().__init__(status, code or "invalid_value", message, param=param)


def error_object(err: RequestError) -> dict[str, Any]:
    """`{"error": {...}}`. Message and field of a unit's own error are passed on, in the same form."""
    own = _parsed(err.body) if err.body else None
    return normalised(own, err.status) if own is not None else error_form(str(err), err.status, err.param, err.code)


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        own = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(own, dict):
        return None
    return own["error"] if isinstance(own.get("error"), dict) else own


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
