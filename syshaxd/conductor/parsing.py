"""HTTP request in, checked ClientRequest out. What is not checked here, the unit checks."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from syshax_contract.error_form import BadBody
from syshax_contract.request_body import decoded, kind_of, parse_object
from syshax_contract.request_fields import check_fields
from syshaxd.model.request import Endpoint, RequestInfo, Route, Tier
from syshaxd.runner import handover_rules
from syshaxd.runner.bodies import max_tokens_of

from .answers import BadRequest

Headers = Mapping[str, str]

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TIERS = {"auto": Tier.DEFAULT, "default": Tier.DEFAULT, "flex": Tier.FLEX, "priority": Tier.PRIORITY}
_ROUTES = {**{route.value: route for route in Route}, "split": Route.SPLIT}


def parse_json(data: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises BadRequest."""
    with told():
        return parse_object(data)


def parse_body(data: bytes, headers: Headers, most: int) -> dict[str, Any]:
    """The same of the bytes as they came, at most `most` of them once its Content-Encoding is undone."""
    with told():
        return parse_object(decoded(data, headers.get("Content-Encoding", ""), most))


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What both sides refuse alike, as the daemon's error."""
    try:
        yield
    except BadBody as err:
        raise BadRequest(str(err), err.param, err.status, err.code) from err


def parse_request(
    body: dict[str, Any], endpoint: Endpoint, headers: Headers, request_id: str, default_model: str
) -> RequestInfo:
    """Checks types and ranges of what the daemon reads; raises BadRequest naming the field."""
    with told():
        check_fields(body, endpoint is Endpoint.CHAT)
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


def _check_prompt(body: dict[str, Any], endpoint: Endpoint) -> int:
    """Estimated prompt tokens: a quarter of the characters, or the number of token ids."""
    if endpoint is Endpoint.CHAT:
        return max(1, _messages_length(body.get("messages")) // 4)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = body["prompt"] = prompt[0]  # one prompt in a list is one prompt, and can be split
    if isinstance(prompt, str):
        return max(1, len(prompt) // 4)
    if isinstance(prompt, list) and prompt:
        if all(isinstance(part, int) and not isinstance(part, bool) for part in prompt):
            return len(prompt)
        if all(isinstance(part, (str, list)) for part in prompt):
            return max(1, sum(len(part) // 4 if isinstance(part, str) else len(part) for part in prompt))
    if body.get("prompt_embeds") is not None:
        return 1
    raise BadRequest(f"prompt: expected a string or a list of token ids, got {kind_of(prompt)}", "prompt")


def _messages_length(messages: Any) -> int:
    if not isinstance(messages, list) or not messages:
        raise BadRequest(f"messages: expected a list with at least one message, got {kind_of(messages)}", "messages")
    return sum(_message_length(message, index) for index, message in enumerate(messages))


def _message_length(message: Any, index: int) -> int:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        found = kind_of(message)
        raise BadRequest(f"messages[{index}]: expected an object with a role, got {found}", f"messages[{index}]")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return len(content or "")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return sum(len(part["text"]) for part in content if isinstance(part.get("text"), str))
    place = f"messages[{index}].content"
    raise BadRequest(f"{place}: expected a string or a list of parts, got {kind_of(content)}", place)


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
