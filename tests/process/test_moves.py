"""Streams that move: offload, return, drain, and cuts at every token position."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from syshaxd.model.plan import Move, Reason
from syshaxd.model.unit import UnitState
from syshaxd.units import VLLM
from testbed.daemon_in_process import CONFIG, House, Reply
from testbed.fake_unit.language import encode, render, text_after

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MIXED = "SAY:Hi 你好，世界! 😀👩\u200d👧 naïve e\u0301te\u0301 <b> ok|"
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


async def moved(house: House, path: str, body: dict[str, Any], at: list[int], name: str) -> Reply:
    """Posts the request and orders a move to the other unit each time its output has reached the next of `at`."""
    call = asyncio.ensure_future(house.post(path, body, {"x-syshax-route": "accelerator", "x-request-id": name}))
    for number, position in enumerate(at):
        target = "cpu" if number % 2 == 0 else "gpu"
        while not call.done():
            entry = next((e for e in house.ledger.in_flight() if e.info.request_id == name), None)
            if entry and entry.output_tokens >= position and entry.unit != target and not entry.moving:
                house.runner._begin(Move(name, target, Reason("test", "ordered by a test")))
                break
            await asyncio.sleep(0)
        while not call.done() and not any(e.unit == target for e in house.ledger.in_flight()):
            await asyncio.sleep(0)
    return await call


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_running_request_moves_with_its_kv(house: House, path: str, stream: bool) -> None:
    for unit in ("gpu", "cpu"):
        await house.faults(unit, slow=0.002)
    body = body_for(path, "a question", 200, stream=stream, logprobs=True if path == CHAT else 1)
    if stream:
        body["stream_options"] = {"include_usage": True}
    reply = await moved(house, path, body, [40, 80], "m")
    prompt = render(body)
    assert reply.text == text_after(prompt, 200)
    assert reply.finish == "length"
    usage = reply.events[-1]["usage"] if stream else reply.json["usage"]
    assert usage == {"prompt_tokens": len(prompt), "completion_tokens": 200, "total_tokens": len(prompt) + 200}
    cpu, gpu = await house.state("cpu"), await house.state("gpu")
    # Up to three tokens of a character cut short, and the last one, are computed again.
    assert cpu["totals"]["external"] >= len(prompt) + 40 - 4
    assert gpu["totals"]["external"] >= len(prompt) + 80 - 4
    assert cpu["totals"]["local"] <= 5
    choices = [event["choices"][0] for event in reply.events if event["choices"]] if stream else reply.json["choices"]
    parts = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    assert sum(len(part["content"] if path == CHAT else part["tokens"]) for part in parts) == 200
    if path == COMPLETIONS:
        offsets = [offset for part in parts for offset in part["text_offset"]]
        assert offsets == sorted(offsets)
    await house.quiet()
    events = {event["event"] for event in house.runner.explain("m")["events"]}
    assert {"move", "handed_over", "loaded", "end"} <= events
    trace = house.runner.explain("m")["trace"]["traceEvents"]
    spans = [(event["name"], event["ts"], event["ts"] + event["dur"]) for event in trace if event["ph"] == "X"]
    assert [name for name, _, _ in spans] == ["gpu", "cpu", "gpu"]
    assert all(begin < end for _, begin, end in spans)
    assert all(abs(before[2] - after[1]) <= 2 for before, after in zip(spans, spans[1:]))  # microseconds, rounded


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_cuts_at_every_position_of_mixed_text(house: House, path: str) -> None:
    """Chinese, emoji with joiners, combining characters: never half a character, never a leaked prompt."""
    text = MIXED[4:-1]
    await house.faults("gpu", slow=0.002)
    for first in range(0, len(encode(text)), 8):
        names = [f"{path}{position}".replace("/", ":") for position in range(first, first + 8)]
        calls = [moved(house, path, body_for(path, MIXED, 500), [first + i], name) for i, name in enumerate(names)]
        replies = await asyncio.gather(*calls)
        assert [(reply.text, reply.finish) for reply in replies] == [(text, "stop")] * 8
    await house.quiet()


async def test_a_stop_string_across_every_cut(house: House) -> None:
    await house.faults("gpu", slow=0.002)
    said = "SAY:one, two, STOP你HERE and never this|"
    stop = "STOP你HERE"
    for position in range(8, 26):
        body = body_for(CHAT, said, 200, stop=[stop], stream=position % 2 == 0)
        reply = await moved(house, CHAT, body, [position], f"stop{position}")
        assert (reply.text, reply.finish) == ("one, two, ", "stop")
    await house.quiet()


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_across_every_cut(tmp_path: Path, stream: bool) -> None:
    config = replace(CONFIG, units=tuple(replace(unit, reasoning_parser="deepseek_r1") for unit in CONFIG.units))
    async with House(tmp_path, config) as house:
        await house.faults("gpu", slow=0.003)
        said = "SAY:<think>你 first</think>So: 42|"
        body = body_for(CHAT, said, 200, stream=stream)
        calls = [moved(house, CHAT, body, [cut], f"think{cut}") for cut in range(32)]
        for reply in await asyncio.gather(*calls):
            assert parts_of(reply) == ("你 first", "So: 42")
        await house.quiet()


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_of_answers_that_are_passed_through(tmp_path: Path, stream: bool) -> None:
    """A seed keeps a request where it is; its `<think>` block is split all the same. A vLLM unit splits for itself."""
    config = replace(CONFIG, units=tuple(replace(unit, reasoning_parser="deepseek_r1") for unit in CONFIG.units))
    async with House(tmp_path, config) as house:
        said = "SAY:<think>你 first</think>So: 42|"
        body = body_for(CHAT, said, 200, stream=stream, seed=7, temperature=1)
        for route in ("accelerator", "split"):
            assert parts_of(await house.post(CHAT, body, {"x-syshax-route": route})) == ("你 first", "So: 42")
        both = (await house.post(CHAT, {**body, "n": 2, "stream": False})).json["choices"]
        assert [choice["message"]["reasoning_content"] for choice in both] == ["你 first"] * 2
        await house.quiet()
        for unit in ("gpu", "cpu"):
            house.world.change(unit, abilities=VLLM.abilities)
        plain = body_for(CHAT, said, 200, stream=stream)
        for route in ("accelerator", "split"):
            reply = await house.post(CHAT, plain, {"x-syshax-route": route, "x-request-id": f"own.{route}"})
            assert reply.text == said[4:-1]  # as the unit wrote it
            assert "rule=reasoning_parser" in house.runner.explain(f"own.{route}")["text"]


def parts_of(reply: Reply) -> tuple[str, str]:
    """Reasoning and content."""
    if reply.headers["Content-Type"].startswith("application/json"):
        message = reply.json["choices"][0]["message"]
        return message["reasoning_content"], message["content"]
    deltas = [event["choices"][0]["delta"] for event in reply.events if event["choices"]]
    whole = ["".join(delta.get(name) or "" for delta in deltas) for name in ("reasoning_content", "content")]
    return whole[0], whole[1]


async def test_moves_that_come_too_late_or_are_refused_change_nothing(house: House) -> None:
    await house.faults("gpu", slow=0.005, no_abort=True)
    body = body_for(CHAT, "stays", 60)
    reply = await moved(house, CHAT, body, [5], "refused")
    assert reply.text == text_after(render(body), 60)
    assert not (await house.state("cpu"))["request_ids"]
    assert "abort_refused" in house.runner.explain("refused")["text"]
    await house.quiet()


async def test_preempted_requests_are_resumed_elsewhere_or_here(tmp_path: Path) -> None:
    """The accelerator is short of KV, the CPU takes one at a time: who is preempted waits with its KV saved, moves with
    it when there is a seat, or takes it back."""
    threshold = replace(CONFIG.scheduler.threshold, cpu_max_num_seqs=1, waiting=64)
    limits = replace(CONFIG.limits, first_token_timeout=20.0, stall_timeout=20.0)  # to stand still is no fault here
    config = replace(CONFIG, scheduler=replace(CONFIG.scheduler, threshold=threshold), limits=limits)
    async with House(tmp_path, config, gpu=("--kv-blocks", "40"), cpu=()) as house:
        for unit in ("gpu", "cpu"):
            await house.faults(unit, slow=0.003)
        bodies = [body_for(COMPLETIONS, f"long {index}", 300 + 20 * index) for index in range(5)]
        names = [f"long{index}" for index in range(5)]
        calls = [house.post(COMPLETIONS, body, {"x-request-id": name}) for body, name in zip(bodies, names)]
        for body, reply in zip(bodies, await asyncio.gather(*calls)):
            assert reply.text == text_after(render(body), body["max_tokens"])
        gpu, cpu = await house.state("gpu"), await house.state("cpu")
        assert gpu["totals"]["preemptions"] > 0 and gpu["totals"]["restored"] > 0
        stories = [house.runner.explain(name)["events"] for name in names]
        elsewhere = [story for story in stories if any(event.get("reason") == "preempted" for event in story)]
        assert elsewhere and cpu["totals"]["external"] > 100
        for story in elsewhere:
            at = next(index for index, event in enumerate(story) if event.get("reason") == "preempted")
            loaded = next(event for event in story[at:] if event["event"] == "loaded")
            assert loaded["tokens"] >= loaded["of"] - 4
        await house.quiet()


async def test_a_draining_unit_gives_its_streams_away(house: House) -> None:
    await house.faults("gpu", slow=0.005)
    body = body_for(CHAT, "drain me", 120)
    call = asyncio.ensure_future(house.post(CHAT, body, {"x-syshax-route": "accelerator", "x-request-id": "drain"}))
    while not any(entry.output_tokens > 10 for entry in house.ledger.in_flight()):
        await asyncio.sleep(0.005)
    house.world.change("gpu", state=UnitState.DRAINING)
    try:
        assert (await call).text == text_after(render(body), 120)
    finally:
        house.world.change("gpu", state=UnitState.READY)
    assert "kind=drain" in house.runner.explain("drain")["text"]
    await house.quiet()
