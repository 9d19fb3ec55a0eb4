"""A unit's event stream (WHATWG HTML, section 9.2) as units send it: bytes to `data` payloads, payload to chunk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from syshaxd.errors import UnitError, UnitErrorKind

MAX_EVENT = 16 * 1024 * 1024  # bytes; a prompt's ids and log-probabilities can be long
MAX_TOKEN = 1 << 31
MAX_WORD = 64  # characters of a finish_reason
MAX_MESSAGE = 500  # characters of an error that is told on
_FIELDS = (b"event", b"id", b"retry")


class SseError(ValueError):
    """The bytes are no event stream."""


class SseParser:
    """Bytes in any pieces in, whole `data` payloads out. Takes LF, CRLF and CR; skips comments and other fields."""

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._tail = bytearray()
        self._carriage = False
        self._max_event = max_event

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`. Raises SseError on a line that is no field, or an event without end."""
        payloads: list[bytes] = []
        self.feed_into(data, payloads)
        return payloads

    def feed_into(self, data: bytes, payloads: list[bytes]) -> None:
        """The same, appended: what comes before a fault is there when SseError is raised."""
        if self._carriage or b"\r" in data:
            data = self._line_feeds(data)
        if self._tail:
            seen = max(0, len(self._tail) - 1)
            self._tail += data
            if self._tail.find(b"\n\n", seen) < 0:
                self._bounded()
                return
            data = bytes(self._tail)
        *blocks, tail = data.split(b"\n\n")
        self._tail = bytearray(tail)
        for block in blocks:
            payload = _payload(block)
            if payload is not None:
                payloads.append(payload)
        self._bounded()

    def _bounded(self) -> None:
        if len(self._tail) > self._max_event:
            raise SseError(f"an event of more than {self._max_event} bytes")

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
    """Reads one `data` payload of either endpoint; every field is what its type says. Raises UnitError (garbage, or
    reported by the unit)."""
    try:
        message = json.loads(payload)
        if "error" in message:
            raise _reported(message["error"], unit)
        return _chunk(payload, message)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as err:
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
        _word(text, len(payload)) or "",
        _ids(choice.get("token_ids") or []),
        None if prompt is None else _ids(prompt),
        _logprobs(choice.get("logprobs")),
        _word(choice.get("finish_reason"), MAX_WORD),
        _stop_reason(choice.get("stop_reason")),
        usage,
        True,
    )


def _word(value: Any, longest: int) -> str | None:
    if value is not None and (not isinstance(value, str) or len(value) > longest):
        raise TypeError(f"expected a string of at most {longest} characters")
    return value


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < MAX_TOKEN for token in value):
        raise TypeError("expected a list of token ids")
    return tuple(value)


def _stop_reason(value: Any) -> Any:
    return value if value is None or type(value) is int else _word(value, MAX_EVENT)


def _logprobs(value: Any) -> Mapping[str, Any] | None:
    """Lists by name, as both endpoints have them."""
    if value is None:
        return None
    if not all(part is None or isinstance(part, list) for part in value.values()):
        raise TypeError("expected lists of log-probabilities")
    if not all(type(offset) is int for offset in value.get("text_offset") or ()):
        raise TypeError("expected text offsets")
    return dict(value)


def transfer_params(body: bytes, unit: str) -> Mapping[str, Any]:
    """`kv_transfer_params` of a whole answer: where the KV is that the unit keeps. Raises UnitError without them."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
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
    details = usage.get("prompt_tokens_details")
    known = None if details is None else {str(name): _count(value) for name, value in details.items()}
    return Usage(_count(usage["prompt_tokens"]) or 0, _count(usage.get("completion_tokens")) or 0, known)


def _count(value: Any) -> int | None:
    if value is not None and not (type(value) is int and 0 <= value < MAX_TOKEN):
        raise TypeError("expected a number of tokens")
    return value


def _reported(error: Any, unit: str) -> UnitError:
    if not isinstance(error, Mapping):
        return UnitError(unit, UnitErrorKind.GARBAGE, "reported an error without an error object")
    code = error.get("code")
    status = code if type(code) is int and 400 <= code < 600 else 500
    message = str(error.get("message", "no message"))[:MAX_MESSAGE]
    told = {name: error[name] for name in ("type", "param", "code") if isinstance(error.get(name), (str, int))}
    body = json.dumps({"error": {"message": message, **told}}).encode()
    return UnitError(unit, UnitErrorKind.REPORTED, message, status=status, body=body)
