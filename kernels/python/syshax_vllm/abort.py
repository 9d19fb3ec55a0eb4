"""`POST /inference/v1/abort_requests` for versions of vLLM that offer it only without text (docs/kv-handoff.md)."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Mapping
from typing import Any, Callable

from syshax_vllm.env import own_secret

PATH = "/inference/v1/abort_requests"
MAX_BODY = 1 << 20


class AbortRequests:
    """ASGI middleware, named to vLLM's --middleware. It checks the unit's secret itself: vLLM guards /v1 only."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app, self._secret = app, own_secret()

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        if self._secret and not self._allowed(scope):
            return await _answer(send, 401, "Unauthorized")
        ids = _ids(await _body(receive))
        if ids is None:
            return await _answer(send, 400, "expected an object with request_ids, a list of texts")
        await scope["app"].state.engine_client.abort(ids)
        await _answer(send, 200, "")

    def _allowed(self, scope: Mapping[str, Any]) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, f"Bearer {self._secret}".encode())


async def _body(receive: Any) -> bytes:
    data, more = b"", True
    while more and len(data) <= MAX_BODY:
        message = await receive()
        data += message.get("body", b"")
        more = message.get("more_body", False)
    return data


def _ids(data: bytes) -> list[str] | None:
    try:
        ids = json.loads(data)["request_ids"]
    except (ValueError, KeyError, TypeError):
        return None
    return ids if isinstance(ids, list) and all(isinstance(i, str) for i in ids) else None


async def _answer(send: Any, status: int, error: str) -> None:
    body = json.dumps({"error": {"message": error}}).encode() if error else b""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
