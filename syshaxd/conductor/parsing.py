"""HTTP request in, checked ClientRequest out. What is not checked here, the unit checks."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any, Callable

from syshaxd.model.request import Endpoint, RequestInfo, Route, Tier
from syshaxd.runner import handover_rules
from syshaxd.runner.bodies import max_tokens_of

from .answers import BadRequest

Headers = Mapping[str, str]
Check = tuple[Callable[[Any], bool], str]

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TIERS = {"auto": Tier.DEFAULT, "default": Tier.DEFAULT, "flex": Tier.FLEX, "priority": Tier.PRIORITY}
_ROUTES = {**{route.value: route for route in Route}, "split": Route.SPLIT}


def _integer(low: int) -> Check:
    return (lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low, f"an integer of at least {low}")


def _number(low: float, high: float) -> Check:
    return (
        lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and low <= v <= high,
        f"a number from {low:g} to {high:g}",
    )


_BOOLEAN: Check = (lambda v: isinstance(v, bool), "true or false")
_OBJECT: Check = (lambda v: isinstance(v, dict), "an object")
_CHECKS: dict[str, Check] = {
    "model": (lambda v: isinstance(v, str), "a string"),
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "max_tokens": _integer(1),
    "max_completion_tokens": _integer(1),
    "min_tokens": _integer(0),
    "n": _integer(1),
    "temperature": _number(0.0, 2.0),
    "top_p": _number(0.0, 1.0),
    "presence_penalty": _number(-2.0, 2.0),
    "frequency_penalty": _number(-2.0, 2.0),
    "seed": (lambda v: isinstance(v, int) and not isinstance(v, bool), "an integer"),
    "stop": (
        lambda v: isinstance(v, str) or isinstance(v, list) and all(isinstance(part, str) for part in v),
        "a string or a list of strings",
    ),
    "return_token_ids": _BOOLEAN,
    "service_tier": (lambda v: v in _TIERS, "auto, default, flex or priority"),
    "priority": (lambda v: isinstance(v, int) and not isinstance(v, bool), "an integer"),
}


def parse_json(data: bytes) -> dict[str, Any]:
    """The body as a JSON object."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as err:
        detail = "not text, or nested too deep"
        if isinstance(err, json.JSONDecodeError):
            detail = f"{err.msg} at line {err.lineno} column {err.colno}"
        raise BadRequest(f"the body is not JSON: {detail}", code="invalid_json") from err
    if not isinstance(body, dict):
        raise BadRequest(f"expected a JSON object, got {_kind(body)}", code="invalid_json")
    return body


def parse_request(
    body: dict[str, Any], endpoint: Endpoint, headers: Headers, request_id: str, default_model: str
) -> RequestInfo:
    """Checks types and ranges of what the daemon reads; raises BadRequest naming the field."""
    _check_fields(body)
    characters = _check_prompt(body, endpoint)
    rules = handover_rules(body)
    return RequestInfo(
        request_id=request_id,
        endpoint=endpoint,
        model=body.get("model") or default_model,
        stream=bool(body.get("stream")),
        prompt_tokens=characters,
        max_tokens=max_tokens_of(body, endpoint),
        route=_route(headers),
        tier=_TIERS[body.get("service_tier") or "auto"],
        priority=body.get("priority") or 0,
        slo_ttft=_milliseconds(headers, "x-slo-ttft-ms"),
        slo_tpot=_milliseconds(headers, "x-slo-tpot-ms"),
        first_token_stays=rules.first_token_stays,
        stays=rules.stays,
    )


def request_id_of(headers: Headers) -> str:
    """The client's x-request-id where it can be one, else a new one."""
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else secrets.token_hex(16)


def _check_fields(body: Mapping[str, Any]) -> None:
    for name, (allowed, text) in _CHECKS.items():
        value = body.get(name)
        if value is not None and not allowed(value):
            raise BadRequest(f"{name}: expected {text}, got {_kind(value)}", name)
    if body.get("stream_options") and not body.get("stream"):
        raise BadRequest("stream_options: allowed only with stream: true", "stream_options")


def _check_prompt(body: Mapping[str, Any], endpoint: Endpoint) -> int:
    """Estimated prompt tokens: a quarter of the characters, or the number of token ids."""
    if endpoint is Endpoint.CHAT:
        return max(1, _messages_length(body.get("messages")) // 4)
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return max(1, len(prompt) // 4)
    if isinstance(prompt, list) and prompt:
        if all(isinstance(part, int) and not isinstance(part, bool) for part in prompt):
            return len(prompt)
        if all(isinstance(part, (str, list)) for part in prompt):
            return max(1, sum(len(part) // 4 if isinstance(part, str) else len(part) for part in prompt))
    if body.get("prompt_embeds") is not None:
        return 1
    raise BadRequest(f"prompt: expected a string or a list of token ids, got {_kind(prompt)}", "prompt")


def _messages_length(messages: Any) -> int:
    if not isinstance(messages, list) or not messages:
        raise BadRequest(f"messages: expected a list with at least one message, got {_kind(messages)}", "messages")
    return sum(_message_length(message, index) for index, message in enumerate(messages))


def _message_length(message: Any, index: int) -> int:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        found = _kind(message)
        raise BadRequest(f"messages[{index}]: expected an object with a role, got {found}", f"messages[{index}]")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return len(content or "")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return sum(len(part["text"]) for part in content if isinstance(part.get("text"), str))
    place = f"messages[{index}].content"
    raise BadRequest(f"{place}: expected a string or a list of parts, got {_kind(content)}", place)


def _route(headers: Headers) -> Route | None:
    name = headers.get("x-syshax-route")
    if name is None:
        return None
    if name not in _ROUTES:
        raise BadRequest(f"x-syshax-route: expected one of {', '.join(_ROUTES)}, got {name!r}", "x-syshax-route")
    return _ROUTES[name]


def _milliseconds(headers: Headers, name: str) -> float | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError as err:
        raise BadRequest(f"{name}: expected milliseconds, got {text!r}", name) from err
    if not 0 < value < 1e9:
        raise BadRequest(f"{name}: expected a positive number of milliseconds, got {text!r}", name)
    return value / 1000


def _kind(value: Any) -> str:
    """Type and, where short, the value; never long text of a prompt."""
    if value is None:
        return "nothing"
    name = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}.get(type(value), "a number")
    if isinstance(value, (bool, int, float)):
        return f"{name} ({value})"
    return f"{name} ({value!r})" if isinstance(value, str) and len(value) <= 20 else name
