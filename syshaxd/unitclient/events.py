"""A unit's event stream (WHATWG HTML, section 9.2) as units send it: bytes to `data` payloads, payload to chunk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from syshaxd.errors import UnitError, UnitErrorKind

_FIELDS = (b"event", b"id", b"retry")


class SseError(ValueError):
    """The bytes are no event stream."""


class SseParser:
    """Bytes in any pieces in, whole `data` payloads out. Takes LF, CRLF and CR; skips comments and other fields."""

    def __init__(self, max_event: int = 16 * 1024 * 1024) -> None:
        self._tail = b""
        self._carriage = False
        self._max_event = max_event

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`. Raises SseError on a line that is no field, or an event without end."""
        if self._carriage or b"\r" in data:
            data = self._line_feeds(data)
        *blocks, self._tail = (self._tail + data).split(b"\n\n")
        if len(self._tail) > self._max_event:
            raise SseError(f"an event of more than {self._max_event} bytes")
        payloads = (_payload(block) for block in blocks)
        return [payload for payload in payloads if payload is not None]

    def _line_feeds(self, data: bytes) -> bytes:
        # A CR at the very end may be half of a CRLF: it waits for the next byte.
        if self._carriage:
            data = b"\r" + data
        self._carriage = data.endswith(b"\r")
        if self._carriage:
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    @property
    def partial(self) -> bool:
        """Whether an event has begun and not ended."""
        return bool(self._tail.strip())


def _payload(block: bytes) -> bytes | None:
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = [part for part in map(_data_of, block.split(b"\n")) if part is not None]
    return b"\n".join(lines) if lines else None


def _data_of(line: bytes) -> bytes | None:
    line = line[3:] if line.startswith(b"\xef\xbb\xbf") else line
    name, _, value = line.partition(b":")
    if name == b"data":
        return value[1:] if value.startswith(b" ") else value
    if not name or name in _FIELDS:
        return None
    raise SseError(f"expected an event-stream field, got {line[:60]!r}")


class Usage(NamedTuple):
    """Token counts of one call; `details` is the unit's `prompt_tokens_details`, if any."""

    prompt_tokens: int
    completion_tokens: int
    details: Mapping[str, Any] | None = None


class Chunk(NamedTuple):
    """What one event brought. `payload` is the JSON text as it came; the rest is of choice 0."""

    payload: bytes
    text: str = ""
    token_ids: tuple[int, ...] = ()
    prompt_token_ids: tuple[int, ...] | None = None
    logprobs: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    usage: Usage | None = None
    has_choice: bool = False


def parse_chunk(payload: bytes, unit: str) -> Chunk:
    """Reads one `data` payload of either endpoint. Raises UnitError (garbage, or reported by the unit)."""
    try:
        message = json.loads(payload)
        if "error" in message:
            raise _reported(message["error"], unit)
        return _chunk(payload, message)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as err:
        text = f"expected an OpenAI stream chunk, got {payload[:40]!r}"  # too short to hold a prompt
        raise UnitError(unit, UnitErrorKind.GARBAGE, text) from err


def _chunk(payload: bytes, message: Mapping[str, Any]) -> Chunk:
    choices = message["choices"]
    usage = parse_usage(message.get("usage"))
    prompt = message.get("prompt_token_ids")
    if not choices:
        return Chunk(payload, usage=usage)
    choice = choices[0]
    if prompt is None:
        prompt = choice.get("prompt_token_ids")
    delta = choice.get("delta", choice.get("message"))  # the latter in a whole answer
    text = choice["text"] if delta is None else delta.get("content")
    return Chunk(
        payload,
        text or "",
        tuple(choice.get("token_ids") or ()),
        None if prompt is None else tuple(prompt),
        choice.get("logprobs"),
        choice.get("finish_reason"),
        choice.get("stop_reason"),
        usage,
        True,
    )


def transfer_params(body: bytes, unit: str) -> Mapping[str, Any]:
    """`kv_transfer_params` of a whole answer: where the KV is that the unit keeps. Raises UnitError without them."""
    try:
        message = json.loads(body)
    except ValueError:
        message = None
    return remote_kv(message, unit)


def remote_kv(message: Any, unit: str) -> Mapping[str, Any]:
    """The same of a decoded answer."""
    found = message.get("kv_transfer_params") if isinstance(message, Mapping) else None
    if not isinstance(found, Mapping) or not found.get("remote_engine_id"):
        text = "expected kv_transfer_params of NIXL in its answer; was it started with NixlConnector?"
        raise UnitError(unit, UnitErrorKind.GARBAGE, text)
    return found


def parse_usage(usage: Mapping[str, Any] | None) -> Usage | None:
    """The `usage` object of a chunk or a response."""
    if not usage:
        return None
    return Usage(
        int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0), usage.get("prompt_tokens_details")
    )


def _reported(error: Any, unit: str) -> UnitError:
    if not isinstance(error, Mapping):
        return UnitError(unit, UnitErrorKind.GARBAGE, "reported an error without an error object")
    code = error.get("code")
    status = code if isinstance(code, int) else 500
    body = json.dumps({"error": error}).encode()
    return UnitError(unit, UnitErrorKind.REPORTED, str(error.get("message", "no message")), status=status, body=body)
