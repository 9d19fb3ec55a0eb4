"""OpenAI responses out of deltas: one id, one `created`, one role, whatever units the text came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from syshaxd.model.request import Endpoint
from syshaxd.unitclient import Plain, Usage

from .client_request import ClientRequest, Delta, Event, Finish, Raw
from .produced import join_logprobs

DONE = b"data: [DONE]\n\n"


def usage_json(usage: Usage) -> dict[str, Any]:
    """The `usage` object."""
    made: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if usage.details:
        made["prompt_tokens_details"] = dict(usage.details)
    return made


def _string(text: str) -> bytes:
    """A JSON string, in the form that plain events have (unitclient/plain_events.py)."""
    try:
        return json.dumps(text, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(text).encode()


def sse(payload: bytes) -> bytes:
    """One event."""
    return b"data: " + payload + b"\n\n"


class StreamRenderer:
    """Deltas to server-sent events."""

    def __init__(self, request: ClientRequest) -> None:
        body = request.body
        self._chat = request.info.endpoint is Endpoint.CHAT
        self._tier = _tier(request)
        self._common = _common(request, "chat.completion.chunk" if self._chat else "text_completion")
        options = body.get("stream_options") or {}
        self._usage = bool(options.get("include_usage"))
        self._ids = bool(body.get("return_token_ids"))
        self._begun = False
        # The text of a plain delta is all that changes from event to event.
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": None}
        choice.update({"delta": {"content": "\0"}} if self._chat else {"text": "\0"})
        whole = json.dumps({**self._common, "choices": [choice]}, separators=(",", ":"))
        before, after = whole.split('"\\u0000"')
        self._before, self._after = f"data: {before}".encode(), f"{after}\n\n".encode()

    def render(self, event: Event, prompt_ids: tuple[int, ...] | None = None) -> bytes:
        """Bytes for the client; several events where a role or the usage belongs to it."""
        if isinstance(event, Raw):
            return sse(_with_tier(event.payload, self._tier))
        first = b"" if self._begun else self._first(prompt_ids)
        self._begun = True
        if isinstance(event, Plain):
            return first + self._before + b'"' + event.text + b'"' + self._after
        return first + (self._finish(event) if isinstance(event, Finish) else self._delta(event))

    def _first(self, prompt_ids: tuple[int, ...] | None) -> bytes:
        extra = {"prompt_token_ids": list(prompt_ids or ())} if self._ids else {}
        if not self._chat:
            return self._event([self._choice("", None)], extra) if self._ids else b""
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return self._event([choice], extra)

    def _delta(self, delta: Delta) -> bytes:
        if delta.logprobs is None and not delta.reasoning and not self._ids:
            return self._before + _string(delta.content) + self._after
        if self._chat:
            texts = {"reasoning_content": delta.reasoning, "content": delta.content}
            shown = {name: text for name, text in texts.items() if text}
            choice: dict[str, Any] = {"index": 0, "delta": shown, "logprobs": delta.logprobs, "finish_reason": None}
        else:
            choice = self._choice(delta.content, delta.logprobs)
        if self._ids:
            choice["token_ids"] = list(delta.token_ids)
        return self._event([choice], {})

    def _finish(self, finish: Finish) -> bytes:
        if self._chat:
            choice: dict[str, Any] = {"index": 0, "delta": {}, "logprobs": None}
        else:
            choice = {"index": 0, "text": "", "logprobs": None}
        choice.update(finish_reason=finish.reason, stop_reason=finish.stop_reason)
        end = self._event([choice], {})
        return end + self._event([], {"usage": usage_json(finish.usage)}) if self._usage else end

    def _event(self, choices: list[dict[str, Any]], extra: Mapping[str, Any]) -> bytes:
        return sse(json.dumps({**self._common, "choices": choices, **extra}, separators=(",", ":")).encode())

    @staticmethod
    def _choice(text: str, logprobs: Mapping[str, Any] | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": None}


class Collector:
    """Deltas to one response body."""

    def __init__(self, request: ClientRequest) -> None:
        self._request = request
        self._raw: bytes | None = None
        self._deltas: list[Delta] = []
        self._finish: Finish | None = None

    def add(self, event: Event) -> None:
        """Takes the next event of the stream."""
        if isinstance(event, Raw):
            self._raw = event.payload
        elif isinstance(event, Finish):
            self._finish = event
        elif isinstance(event, Delta):  # a Plain is made for streams only
            self._deltas.append(event)

    def body(self, prompt_ids: tuple[int, ...] | None = None) -> bytes:
        """The JSON response."""
        if self._raw is not None:
            return _with_tier(self._raw, _tier(self._request))
        assert self._finish is not None
        chat = self._request.info.endpoint is Endpoint.CHAT
        choice: dict[str, Any] = {"index": 0}
        content = "".join(delta.content for delta in self._deltas)
        choice.update({"message": self._message(content)} if chat else {"text": content})
        choice["logprobs"] = join_logprobs([delta.logprobs for delta in self._deltas])
        choice.update(finish_reason=self._finish.reason, stop_reason=self._finish.stop_reason)
        made = {**_common(self._request, "chat.completion" if chat else "text_completion"), "choices": [choice]}
        if self._request.body.get("return_token_ids"):
            choice["token_ids"] = [token for delta in self._deltas for token in delta.token_ids]
            made["prompt_token_ids"] = list(prompt_ids or ())
        return json.dumps({**made, "usage": usage_json(self._finish.usage)}).encode()

    def _message(self, content: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": content}
        reasoning = "".join(delta.reasoning for delta in self._deltas)
        if reasoning:
            message["reasoning_content"] = reasoning
        return message


def _tier(request: ClientRequest) -> dict[str, str]:
    """The tier that served it, where the client named one, as at OpenAI."""
    return {"service_tier": request.info.tier.value} if request.body.get("service_tier") is not None else {}


def _with_tier(payload: bytes, tier: Mapping[str, str]) -> bytes:
    """A unit's own JSON object with the tier in it; what is no object stays as it is."""
    if not tier:
        return payload
    try:
        value = json.loads(payload)
    except ValueError:
        return payload
    return json.dumps({**value, **tier}).encode() if isinstance(value, dict) and "error" not in value else payload


def _common(request: ClientRequest, kind: str) -> dict[str, Any]:
    prefix = "chatcmpl" if request.info.endpoint is Endpoint.CHAT else "cmpl"
    return {
        "id": f"{prefix}-{request.info.request_id}",
        "object": kind,
        "created": request.created,
        "model": request.body.get("model") or request.info.model,
        **_tier(request),
    }
