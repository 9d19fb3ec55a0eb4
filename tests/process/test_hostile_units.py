"""A unit in quarantine: whatever it sends, the daemon's cost is bounded and the stream goes on on the other unit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from syshaxd.unitclient.http_answer import MAX_HEAD
from testbed.daemon_in_process import House
from testbed.fake_unit.language import render, text_after

PATH = "/v1/completions"
BODY = {"prompt": "who lies", "max_tokens": 20, "stream": True}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
pytestmark = pytest.mark.asyncio(loop_scope="module")


def event(**fields: Any) -> bytes:
    choice = {"index": 0, "text": "", "token_ids": [7], "finish_reason": None, **fields}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"


LIES: dict[str, bytes] = {
    "text that is a number": HEAD + event(text=5),
    "ids that are text": HEAD + event(token_ids="abc"),
    "ids below zero": HEAD + event(token_ids=[-1]),
    "ids that are booleans": HEAD + event(token_ids=[True]),
    "a finish_reason that is a list": HEAD + event(finish_reason=["stop"]),
    "a finish_reason of a megabyte": HEAD + event(finish_reason="x" * 1_000_000),
    "a stop_reason that is an object": HEAD + event(stop_reason={}),
    "logprobs that are text": HEAD + event(logprobs="x"),
    "logprobs of numbers": HEAD + event(logprobs={"tokens": 3}),
    "offsets that are text": HEAD + event(logprobs={"text_offset": ["x"]}),
    "prompt ids that are text": HEAD + event(prompt_token_ids="x"),
    "usage that is text": HEAD + b'data: {"choices": [], "usage": "x"}\n\n',
    "usage of 5,000 digits": HEAD + b'data: {"choices": [], "usage": {"prompt_tokens": %b}}\n\n' % (b"9" * 5000),
    "usage below zero": HEAD + b'data: {"choices": [], "usage": {"prompt_tokens": -4}}\n\n',
    "details that are text": HEAD
    + b'data: {"choices": [], "usage": {"prompt_tokens": 4, "prompt_tokens_details": {"cached_tokens": "x"}}}\n\n',
    "choices that are a number": HEAD + b'data: {"choices": 5}\n\n',
    "JSON of 100,000 brackets": HEAD + b"data: " + b"[" * 100_000 + b"\n\n",
    "an error that is a list": HEAD + b'data: {"error": []}\n\n',
    "more tokens than it was asked for": HEAD + event(text="a", token_ids=list(range(500))),
    "events without end and without a token": HEAD + event(token_ids=[]) * 5000,
    "no event stream": HEAD + b"<html>\n\n",
    "[DONE] and nothing else": HEAD + b"data: [DONE]\n\n",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MAX_HEAD,
    "no HTTP": b"SSH-2.0-lies\r\n\r\n",
    "an encoding nobody asked for": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "a page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>",
    "a chunk of no size": HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "nothing": b"",
    "an error page without end": b"HTTP/1.1 500 No\r\n\r\n" + b"<p>" * 2_000_000,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with House(tmp_path_factory.mktemp("pool")) as made:
        yield made


@pytest.mark.parametrize("lie", LIES)
async def test_no_lie_reaches_the_client_or_ends_the_stream(house: House, lie: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(LIES[lie])
        try:
            await asyncio.wait_for(writer.drain(), 5)
            writer.close()
        except (OSError, asyncio.TimeoutError):
            writer.transport.abort()

    honest = house.world.units["gpu"].view.url
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    house.world.change("gpu", url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        reply = await house.post(PATH, BODY, {"x-request-id": "lied"})
    finally:
        house.world.change("gpu", url=honest)
        server.close()
    story = house.runner.explain("lied")["text"]
    assert reply.status == 200 and reply.text == text_after(render(BODY), 20), story
    assert "unit=gpu" in story and "failed" in story, "it was asked, and was not believed"
    await house.quiet("cpu")


async def test_a_stream_of_comments_ends_with_its_request(house: House) -> None:
    """Bytes without end that are no events are no sign of life: the stream goes on elsewhere."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD)
        try:
            while not writer.transport.is_closing():
                writer.write(b": still here\n\n" * 100)
                await writer.drain()
                await asyncio.sleep(0.01)
        except OSError:
            return

    honest = house.world.units["gpu"].view.url
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    house.world.change("gpu", url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        reply = await asyncio.wait_for(house.post(PATH, BODY), 15)
    finally:
        house.world.change("gpu", url=honest)
        server.close()
    assert reply.text == text_after(render(BODY), 20)
