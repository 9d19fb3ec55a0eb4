"""A streaming client hears something while it waits: headers and comment lines, then its answer or an error event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from syshaxd.model.unit import UnitState
from testbed.daemon_in_process import CONFIG, House
from testbed.fake_unit.language import render, text_after

BODY = {"messages": [{"role": "user", "content": "patience"}], "max_tokens": 20, "stream": True}
SILENCE = 0.15
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    config = replace(CONFIG, limits=replace(CONFIG.limits, max_silence=SILENCE, first_token_timeout=20.0))
    async with House(tmp_path_factory.mktemp("pool"), config) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared: House) -> AsyncIterator[House]:
    yield shared
    await shared.clear()


async def test_headers_and_comments_come_during_a_long_prefill(house: House) -> None:
    await house.faults("gpu", freeze=True)
    async with house.http.post(house.url + "/v1/chat/completions", json=BODY) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        assert response.headers["x-request-id"]
        for _ in range(3):
            assert await response.content.readline() == b": waiting\n"
            assert await response.content.readline() == b"\n"
        await house.faults("gpu", freeze=None)
        rest = (await response.read()).decode()
    said = [json.loads(line[6:]) for line in rest.splitlines() if line.startswith("data: {")]
    assert "".join(part["choices"][0]["delta"].get("content") or "" for part in said) == text_after(render(BODY), 20)
    assert rest.endswith("data: [DONE]\n\n")
    await house.quiet()


async def test_a_failure_after_the_headers_is_an_error_event(house: House) -> None:
    for name in ("gpu", "cpu"):
        house.world.change(name, state=UnitState.FAILED)
    await house.faults("gpu", freeze=True)
    house.world.change("gpu", state=UnitState.READY)
    async with house.http.post(house.url + "/v1/chat/completions", json=BODY) as response:
        assert response.status == 200 and await response.content.readline() == b": waiting\n"
        house.runner.go_down()
        rest = await response.read()
    house.runner.ending = False
    for name in ("gpu", "cpu"):
        house.world.change(name, state=UnitState.READY)
    assert b'"code": "shutting_down"' in rest and rest.endswith(b"data: [DONE]\n\n")
    await house.faults("gpu", freeze=None)
    await house.quiet()


async def test_headers_and_comments_come_in_the_queue(house: House) -> None:
    full = replace(CONFIG.scheduler.threshold, waiting=0, cpu_max_num_seqs=0)
    house.scheduler.reconfigure(replace(house.config, scheduler=replace(CONFIG.scheduler, threshold=full)))
    try:
        async with house.http.post(house.url + "/v1/chat/completions", json=BODY) as response:
            assert response.status == 200
            line = await response.content.readline()
            assert line == b": waiting\n", (line, dict(response.headers))
            assert house.ledger.queued == 1 and "x-syshax-route" not in response.headers
            house.scheduler.reconfigure(house.config)
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
    finally:
        house.scheduler.reconfigure(house.config)
    await house.quiet()


async def test_a_quick_answer_has_its_route_in_the_headers_and_no_comment(house: House) -> None:
    reply = await house.post("/v1/chat/completions", BODY)
    assert reply.headers["x-syshax-route"] == "accelerator" and b": waiting" not in reply.data


async def test_a_client_that_leaves_while_it_waits_is_noticed(house: House) -> None:
    await house.faults("gpu", freeze=True)
    response = await house.http.post(house.url + "/v1/chat/completions", json=BODY)
    assert await response.content.readline() == b": waiting\n"
    response.close()
    await house.faults("gpu", freeze=None)
    await asyncio.wait_for(house.quiet(), 5)
