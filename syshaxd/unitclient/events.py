"""One event of a unit's stream, read once."""

from __future__ import annotations

import json
from typing import Any, Mapping, NamedTuple, Optional

from syshaxd.errors import UnitError, UnitErrorKind


class Usage(NamedTuple):
    """Token counts of one call; `details` is the unit's `prompt_tokens_details`, if any."""

    prompt_tokens: int
    completion_tokens: int
    details: Optional[Mapping[str, Any]] = None


class Chunk(NamedTuple):
    """What one event brought. `payload` is the JSON text as it came; the rest is of choice 0."""

    payload: bytes
    text: str = ""
    token_ids: tuple[int, ...] = ()
    prompt_token_ids: Optional[tuple[int, ...]] = None
    logprobs: Optional[Mapping[str, Any]] = None
    finish_reason: Optional[str] = None
    stop_reason: Any = None
    usage: Optional[Usage] = None
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


def parse_usage(usage: Optional[Mapping[str, Any]]) -> Optional[Usage]:
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
