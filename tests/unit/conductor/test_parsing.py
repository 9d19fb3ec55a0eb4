"""Bodies and headers to requests; errors in OpenAI's form; keys; listeners."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from syshaxd.conductor.answers import BadRequest, error_events, error_object, error_response
from syshaxd.conductor.keys import check_key, read_keys
from syshaxd.conductor.listeners import Listeners
from syshaxd.conductor.parsing import parse_json, parse_request, request_id_of
from syshaxd.errors import ConfigError, SysHaxError
from syshaxd.model.request import Endpoint, RequestInfo, Route, Tier
from syshaxd.runner import RequestError

MESSAGES = [{"role": "user", "content": "x" * 40}]


def parsed(body: dict[str, Any], endpoint: Endpoint = Endpoint.CHAT, **headers: str) -> RequestInfo:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse_request(body, endpoint, named, "R", "default-model")


def test_a_request_with_all_hints() -> None:
    info = parsed(
        {"messages": MESSAGES, "model": "m", "stream": True, "service_tier": "flex", "priority": -1, "seed": 1},
        x_syshax_route="accelerator>cpu",
        x_slo_ttft_ms="1500",
        x_slo_tpot_ms="40.5",
    )
    assert (info.model, info.stream, info.prompt_tokens, info.max_tokens) == ("m", True, 10, None)
    assert (info.route, info.tier, info.priority) == (Route.SPLIT, Tier.FLEX, -1)
    assert (info.slo_ttft, info.slo_tpot) == (1.5, 0.0405)
    assert (info.stays, info.first_token_stays) == (None, "seed")


def test_defaults_and_limits() -> None:
    assert parsed({"messages": MESSAGES}).model == "default-model"
    assert parsed({"messages": MESSAGES, "max_completion_tokens": 5, "max_tokens": 9}).max_tokens == 5
    assert parsed({"prompt": "ab"}, Endpoint.COMPLETIONS).max_tokens == 16
    assert parsed({"prompt": [1, 2, 3]}, Endpoint.COMPLETIONS).prompt_tokens == 3
    assert parsed({"prompt": ["abcdefgh", [1, 2]]}, Endpoint.COMPLETIONS).stays == "several_prompts"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["x"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": MESSAGES, "temperature": "hot"}, "temperature"),
        ({"messages": MESSAGES, "temperature": 3}, "temperature"),
        ({"messages": MESSAGES, "n": 0}, "n"),
        ({"messages": MESSAGES, "max_tokens": True}, "max_tokens"),
        ({"messages": MESSAGES, "stop": {"a": 1}}, "stop"),
        ({"messages": MESSAGES, "stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": MESSAGES, "service_tier": "gold"}, "service_tier"),
        ({"messages": MESSAGES, "model": 5}, "model"),
    ],
)
def test_mistakes_name_their_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parsed(body)
    assert (caught.value.param, caught.value.status) == (param, 400)
    assert "expected" in str(caught.value) or "allowed" in str(caught.value)


@pytest.mark.parametrize(
    "headers", [{"x_syshax_route": "gpu"}, {"x_slo_ttft_ms": "fast"}, {"x_slo_tpot_ms": "-1"}, {"x_slo_tpot_ms": "nan"}]
)
def test_bad_headers(headers: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        parsed({"messages": MESSAGES}, **headers)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["messages", "prompt", "stop", "n", "tools", "logprobs", "stream", "max_tokens", "model"])


@given(st.dictionaries(names, json_values), st.sampled_from(list(Endpoint)))
def test_no_json_object_makes_it_fail_otherwise(body: dict[str, Any], endpoint: Endpoint) -> None:
    try:
        parsed(body, endpoint)
    except BadRequest as err:
        json.dumps(error_object(err))


@given(st.binary(max_size=50))
def test_no_bytes_make_it_fail_otherwise(data: bytes) -> None:
    try:
        assert isinstance(parse_json(data), dict)
    except BadRequest as err:
        assert err.status == 400


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(BadRequest):
        parse_json(b"[" * 100_000)


def test_no_prompt_text_in_an_error() -> None:
    with pytest.raises(BadRequest) as caught:
        parsed({"prompt": {"secret": "prompt text"}}, Endpoint.COMPLETIONS)
    assert "secret" not in str(caught.value)


def test_request_ids() -> None:
    assert request_id_of({"x-request-id": "abc-1.2:3_4"}) == "abc-1.2:3_4"
    for bad in ("", "a b", "x" * 200, "é", "a\nb"):
        made = request_id_of({"x-request-id": bad})
        assert made != bad and len(made) == 32


def test_errors_in_openais_form() -> None:
    response = error_response(RequestError(429, "queue_full", "full", 0.25), {"x-request-id": "R"})
    assert (response.headers["Retry-After"], response.headers["retry-after-ms"]) == ("1", "250")
    assert error_object(RequestError(429, "queue_full", "full"))["error"] == {
        "message": "full", "type": "rate_limit_error", "param": None, "code": "queue_full",
    }  # fmt: skip
    own = {"message": "too long", "type": "BadRequestError", "code": 400}
    for body in ({"error": own}, own):
        told = {"message": "too long", "type": "invalid_request_error", "param": None, "code": "invalid_value"}
        assert error_object(RequestError(400, "c", "m", body=json.dumps(body).encode())) == {"error": told}
    assert error_object(RequestError(400, "c", "m", body=b"<html>"))["error"]["code"] == "c"
    lines = error_events(RequestError(502, "stream_lost", "lost")).decode().split("\n\n")
    assert json.loads(lines[0][6:])["error"]["code"] == "stream_lost" and lines[1] == "data: [DONE]"


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\ufeffalpha\n# ours\n\n beta \n", encoding="utf-8")  # with a byte order mark, as editors write
    file.chmod(0o640)
    keys = read_keys(str(file))
    check_key("Bearer alpha", keys)
    check_key("bearer beta", keys)
    check_key("", read_keys(""))
    for wrong in ("", "alpha", "Bearer gamma", "Basic alpha", "Bearer é"):
        with pytest.raises(BadRequest) as caught:
            check_key(wrong, keys)
        assert caught.value.status == 401
    file.write_text("# none\n")
    with pytest.raises(SysHaxError, match="no key"):
        read_keys(str(file))
    with pytest.raises(ConfigError, match=r"services\.conductor\.api_keys_file: cannot read .*: No such file"):
        read_keys(str(tmp_path / "missing"))
    file.chmod(0o644)
    with pytest.raises(ConfigError, match=r"open to everybody \(mode 0644\); chmod 0640"):
        read_keys(str(file))
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="no regular file"):
        read_keys(str(tmp_path / "pipe"))


async def test_a_listener_changes_without_touching_connections() -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def handler(request: web.BaseRequest) -> web.Response:
        entered.set()
        await release.wait()
        return web.Response(text="done")

    listeners = Listeners(web.Server(handler))
    await listeners.listen("127.0.0.1", 0)
    host, first = listeners.addresses[0]
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as http:
        slow = asyncio.ensure_future(http.get(f"http://{host}:{first}/"))
        await entered.wait()
        await listeners.listen("localhost", 0)
        second = listeners.addresses[0][1]
        assert second != first
        with pytest.raises(SysHaxError, match="cannot listen"):
            await listeners.listen("192.0.2.1", 1)
        assert listeners.addresses[0][1] == second
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(f"http://127.0.0.1:{first}/")
        release.set()
        async with await slow as response:
            assert await response.text() == "done"
        listeners.close()
