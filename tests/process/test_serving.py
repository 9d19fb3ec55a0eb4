"""Requests through conductor and Runner to fake units: routes, forms, bad input, clients that leave."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from testbed.daemon_in_process import House
from testbed.fake_unit.language import encode, render, text_after

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with House(tmp_path_factory.mktemp("pool")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared: House) -> AsyncIterator[House]:
    yield shared
    await shared.clear()


def body_for(path: str, text: str, tokens: int, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
    return {"model": "fake-model", "max_tokens": tokens, "temperature": 0, **given, **more}


def expected(body: dict[str, Any]) -> str:
    return text_after(render(body), body["max_tokens"])


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("route", ["accelerator", "cpu", "accelerator>cpu"])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_route_gives_the_same_text(house: House, path: str, route: str, stream: bool) -> None:
    for index, tokens in enumerate((1, 2, 17, 40)):
        body = body_for(path, f"question {index}", tokens, stream=stream)
        reply = await house.post(path, body, {"x-syshax-route": route, "x-request-id": f"r{index}"})
        assert reply.status == 200, reply.data
        assert reply.text == expected(body)
        assert reply.finish == "length"
        assert reply.headers["x-syshax-route"] == route
        assert reply.headers["x-request-id"] == f"r{index}"
    await house.quiet()


async def test_a_split_hands_the_prompt_over(house: House) -> None:
    body = body_for(CHAT, "x" * 500, 20)
    reply = await house.post("/v1/chat/pd_disagg", body)
    assert reply.text == expected(body)
    gpu, cpu = await house.state("gpu"), await house.state("cpu")
    prompt = len(render(body))
    # A first token that is only a part of a character is computed again.
    assert (gpu["totals"]["generated"], cpu["totals"]["generated"]) in ((1, 19), (1, 20))
    assert cpu["totals"]["external"] in (prompt, prompt - 1)
    assert cpu["totals"]["local"] <= 1
    await house.quiet()


async def test_k_is_0_where_the_first_token_must_stay(house: House) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    body = body_for(CHAT, "with tools", 20, tools=tools)
    reply = await house.post(CHAT, body, {"x-syshax-route": "split"})
    assert reply.text == expected(body)
    assert (await house.state("cpu"))["totals"]["generated"] == 20
    await house.quiet()


async def test_stream_has_one_id_one_role_and_usage(house: House) -> None:
    options = {"include_usage": True}
    body = body_for(CHAT, "SAY:你好 world|", 50, stream=True, stream_options=options, logprobs=True)
    reply = await house.post(CHAT, body, {"x-syshax-route": "split"})
    events = reply.events
    assert len({event["id"] for event in events}) == 1
    assert len({event["created"] for event in events}) == 1
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    assert [delta.get("role") for delta in deltas].count("assistant") == 1
    assert deltas[0]["role"] == "assistant"
    prompt, output = len(render(body)), len(encode("你好 world")) + 1
    assert events[-1]["usage"] == {
        "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
    }  # fmt: skip
    logprobs = [event["choices"][0]["logprobs"] for event in events if event["choices"]]
    assert sum(len(part["content"]) for part in logprobs if part) == output
    assert (reply.text, reply.finish) == ("你好 world", "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_the_text_and_the_unit(house: House, stream: bool) -> None:
    body = body_for(COMPLETIONS, "SAY:one two three four|", 100, stop=["xx", "wo th"], stream=stream)
    reply = await house.post(COMPLETIONS, body)
    assert (reply.text, reply.finish) == ("one t", "stop")
    await house.quiet()


async def test_what_must_not_move_is_passed_through(house: House) -> None:
    reply = await house.post(COMPLETIONS, body_for(COMPLETIONS, "many", 5, n=3))
    assert len(reply.json["choices"]) == 3
    reply = await house.post(COMPLETIONS, body_for(COMPLETIONS, "many", 5, n=3), {"x-syshax-route": "split"})
    assert (reply.status, reply.json["error"]["code"]) == (400, "split_impossible")


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"{", 400, "not JSON"),
        (b"[1]", 400, "JSON object"),
        (b"\xff\xfe", 400, "not JSON"),
        (b'{"prompt": "x", "max_tokens": "7"}', 400, "max_tokens"),
        (b'{"prompt": "x", "max_tokens": 0}', 400, "max_tokens"),
        (b'{"prompt": 7}', 400, "prompt"),
        (b'{"prompt": []}', 400, "prompt"),
        (b'{"prompt": "x", "stream": 1}', 400, "stream"),
        (b'{"prompt": "x", "stop": [1]}', 400, "stop"),
        (b'{"prompt": "x", "model": "other"}', 404, "other"),
        (b'{"prompt": "' + b"x" * 9000 + b'"}', 400, "maximum context length"),
        (b'{"prompt": "' + b"x" * 20_000_000 + b'"}', 413, "larger than"),
    ],
)
async def test_bad_input_gets_an_openai_error(house: House, data: bytes, status: int, word: str) -> None:
    async with house.http.post(house.url + COMPLETIONS, data=io.BytesIO(data)) as response:
        error = (await response.json())["error"]
        assert (response.status, word in error["message"]) == (status, True), error
        assert {"message", "type", "code"} <= error.keys()
    assert (await house.post(COMPLETIONS, body_for(COMPLETIONS, "fine", 3))).status == 200


async def test_a_key_of_other_bytes_is_a_key_like_any_other(house: House) -> None:
    """No key is asked for here; bytes that are no text must not end the request."""
    address, data = urlsplit(house.url), b'{"prompt": "x", "max_tokens": 3, "temperature": 0}'
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
    writer.write(head.encode() + b"Authorization: Bearer \xff\xfe\r\n\r\n" + data)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]


@pytest.mark.parametrize("route", ["accelerator", "accelerator>cpu"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_both_units_within_a_second(house: House, route: str, stream: bool) -> None:
    for unit in ("gpu", "cpu"):
        await house.faults(unit, slow=0.05)
    body = body_for(CHAT, "long", 5000, stream=stream)
    session = aiohttp.ClientSession()
    call = asyncio.ensure_future(session.post(house.url + CHAT, json=body, headers={"x-syshax-route": route}))
    while (await house.state("cpu" if "cpu" in route else "gpu"))["totals"].get("generated", 0) < 5:
        await asyncio.sleep(0.01)
    if call.done():
        call.result().close()
    call.cancel()
    await session.close()
    left = time.monotonic()
    await house.quiet()
    assert time.monotonic() - left < 1.0
    assert b'status="499"' in await metrics(house)


async def metrics(house: House) -> bytes:
    async with house.http.get(house.url + "/metrics") as response:
        return await response.read()


async def test_models_health_metrics_and_passthrough(house: House) -> None:
    async with house.http.get(house.url + "/v1/models") as response:
        cards = (await response.json())["data"]
        assert [(card["id"], card["max_model_len"]) for card in cards] == [("fake-model", 8192)]
    async with house.http.get(house.url + "/health") as response:
        assert (response.status, (await response.json())["status"]) == (200, "ok")
    assert (await house.post("/tokenize", {"prompt": "ab"})).json["tokens"] == [97, 98]
    assert (await house.post("/v1/embeddings", {"input": "ab"})).status == 404
    assert (await house.post("/v1/responses", {})).status == 404
    assert (await house.post("/nothing", {})).status == 404
    assert b"syshax_unit_state" in await metrics(house)


async def test_same_request_id_twice_at_once(house: House) -> None:
    bodies = [body_for(COMPLETIONS, f"p{index}", 30) for index in range(8)]
    replies = await asyncio.gather(*(house.post(COMPLETIONS, body, {"x-request-id": "same"}) for body in bodies))
    assert [reply.text for reply in replies] == [expected(body) for body in bodies]
    assert len({reply.headers["x-request-id"] for reply in replies}) == 8
