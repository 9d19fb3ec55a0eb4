"""Errors as OpenAI's API tells them, the same from the daemon and from its units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    400: "invalid_value", 401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 408: "request_timeout",
    413: "request_too_large", 415: "unsupported_media_type", 429: "too_many_requests", 500: "internal_error",
    503: "not_ready",
}  # fmt: skip


class BadBody(Exception):
    """A request is refused for what it says; `param` names the field."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str = "") -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code or code_of(status)


def code_of(status: int) -> str:
    """The code of an error that has none of its own."""
    return _CODES.get(status, "invalid_value" if status < 500 else "server_error")


def error_form(message: str, status: int, param: str | None = None, code: str = "") -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or code_of(status)}}


def normalised(error: Mapping[str, Any], status: int) -> dict[str, Any]:
    """Another server's error object (vLLM: type names of its own, the status as code) in the same form."""
    param, code = error.get("param"), error.get("code")
    return error_form(
        str(error.get("message") or "the unit gave no reason"),
        status,
        param if isinstance(param, str) else None,
        code if isinstance(code, str) and not code.isdecimal() else "",
    )
