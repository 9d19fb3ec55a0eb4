"""Splits between units whose KV goes by vLLM's NixlConnector: decode is told what the prefill unit answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from testbed.daemon_in_process import House
from testbed.fake_unit.language import render, text_after

from .test_moves import CHAT, COMPLETIONS, body_for

SPLIT = {"x-syshax-route": "accelerator>cpu"}
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with House(tmp_path_factory.mktemp("pool")) as made:
        for unit in ("gpu", "cpu"):
            made.world.change(unit, nixl=True, pool_file="")
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared: House) -> AsyncIterator[House]:
    yield shared
    await shared.clear()


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_decode_unit_takes_the_kv(house: House, path: str, stream: bool) -> None:
    body = body_for(path, "a question", 20, stream=stream, min_tokens=5)
    reply = await house.post(path, body, SPLIT)
    prompt = render(body)
    assert (reply.status, reply.text, reply.finish) == (200, text_after(prompt, 20), "length")
    assert reply.headers["x-syshax-route"] == "accelerator>cpu"
    gpu, cpu = await house.state("gpu"), await house.state("cpu")
    assert gpu["totals"]["generated"] == 1 and cpu["totals"]["generated"] == 20
    assert cpu["totals"]["external"] == len(prompt) - 1, "all but the last token, which is computed for its logits"
    await house.quiet()


async def test_usage_counts_what_the_client_asked_for(house: House) -> None:
    body = body_for(COMPLETIONS, "a question", 7)
    reply = await house.post(COMPLETIONS, body, SPLIT)
    assert reply.json["usage"]["prompt_tokens"] == len(render(body)) and reply.json["usage"]["completion_tokens"] == 7


async def test_a_stop_string_in_the_first_token_ends_it_at_the_decode_unit(house: House) -> None:
    body = body_for(COMPLETIONS, "a question", 7)
    reply = await house.post(COMPLETIONS, {**body, "stop": [text_after(render(body), 1)]}, SPLIT)
    assert (reply.status, reply.text, reply.finish) == (200, "", "stop")
    assert reply.headers["x-syshax-route"] == "accelerator>cpu"
    assert (await house.state("cpu"))["totals"]["external"] == len(render(body)) - 1
    await house.quiet()


@pytest.mark.parametrize("fault", [{"no_remote": True}, {"http_status": 500}])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_prefill_unit_that_fails_is_gone_round(house: House, path: str, fault: dict[str, Any]) -> None:
    await house.faults("gpu", **fault)
    body = body_for(path, f"a question {fault}", 9)  # one input casts suspicion once
    reply = await house.post(path, body, SPLIT)
    assert (reply.status, reply.text, reply.headers["x-syshax-route"]) == (200, text_after(render(body), 9), "cpu")
    assert [entry[0] for entry in house.world.suspected] == ["gpu"]
    await house.quiet("cpu")
