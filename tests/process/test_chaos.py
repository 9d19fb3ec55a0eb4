"""Chaos matrix: whatever happens to one unit at whatever moment, the client gets the text of an undisturbed run."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from syshaxd.model.plan import Move, Reason
from syshaxd.model.unit import UnitState
from syshaxd.units import OPENAI, SYSINFER
from testbed.daemon_in_process import House, Reply
from testbed.fake_unit.language import render, text_after

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOKENS = 60
PHASES = ("before", "mid", "handoff")
# Faults that a request meets after so many tokens of one leg; the others are signals, or about tickets.
AFTER = {
    "reset": "reset_after",
    "garbage": "garbage_after",
    "not_json": "not_json_after",
    "error_event": "error_after",
    "cut_short": "close_after",
    "stall": "stall_after",
    "unasked_abort": "unasked_abort_after",
}
ALL = (*AFTER, "http_500", "kill", "sigstop", "slow", "pool_full", "corrupt_ticket")
# How the Runner names what it met; where two are given, the moment decides.
SEEN = {
    "reset": {"reset"},
    "garbage": {"garbage"},
    "not_json": {"garbage"},
    "error_event": {"reported"},
    "cut_short": {"reset"},
    "stall": {"stall", "timeout"},
    "unasked_abort": {"aborted"},
    "http_500": {"status"},
    "kill": {"reset", "connect"},
    "sigstop": {"stall", "timeout"},
}
STARVED = {"stall", "timeout"}  # of any unit, where the machine gives it no time for a second
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with House(tmp_path_factory.mktemp("pool")) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def house(shared: House) -> AsyncIterator[House]:
    await shared.post(COMPLETIONS, {"prompt": "warm", "max_tokens": 1})
    before = resources()
    yield shared
    for name, unit in shared.world.units.items():
        unit.process.send_signal(signal.SIGCONT) if unit.process.returncode is None else None
        if unit.process.returncode is not None:
            await shared.start(name, epoch=unit.view.epoch + 1)
    await shared.clear()
    await settled(before)


def resources() -> dict[str, int]:
    return {"tasks": len(asyncio.all_tasks()), "descriptors": len(os.listdir("/proc/self/fd"))}


async def settled(before: dict[str, int]) -> None:
    """Nothing of the daemon's own is left over."""
    now = resources()
    for _ in range(150):
        now = resources()
        if now["tasks"] <= before["tasks"] and now["descriptors"] <= before["descriptors"] + 2:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{before} became {now}: {[task.get_name() for task in asyncio.all_tasks()]}")


def bodies() -> list[dict[str, Any]]:
    """Streamed or not, chat and completions."""
    common = {"model": "fake-model", "max_tokens": TOKENS, "temperature": 0}
    chat = {"messages": [{"role": "user", "content": "chaos"}], **common}
    usage = {"stream_options": {"include_usage": True}}
    forms = ({"stream": False}, {"stream": True, **usage})
    return [{**body, **form} for body in (chat, {"prompt": "chaos", **common}) for form in forms]


async def arm(house: House, fault: str, phase: str, victim: str) -> None:
    """Sets what can be set before the requests come."""
    for unit in ("gpu", "cpu"):
        await house.faults(unit, slow=0.004)
    if fault in AFTER:
        await house.faults(victim, **{AFTER[fault]: 20 if phase == "mid" else 0})
    elif fault == "http_500" and phase == "mid":  # the unit breaks, and the one that is to go on says 500
        await house.faults(victim, reset_after=20, times=4)
        await house.faults("cpu", http_status=500, times=4)
    elif fault == "http_500":
        await house.faults(victim, http_status=500)
    elif fault == "slow":
        await house.faults(victim, slow=0.02)
    elif fault == "pool_full":
        await house.faults("gpu", pool_full=True)
    elif fault == "corrupt_ticket":
        await house.faults("gpu", corrupt_tickets=True)


async def strike(house: House, fault: str, phase: str, victim: str, names: list[str]) -> None:
    """What needs a moment of its own: the move, and the signals."""
    if phase == "handoff" or (fault in ("pool_full", "corrupt_ticket") and phase == "mid"):
        await reached(house, names, "gpu", 15)
        for name in names:
            house.runner._begin(Move(name, "cpu", Reason("test", "ordered by a test")))
    if fault not in ("kill", "sigstop"):
        return
    if phase == "mid":
        await reached(house, names, victim, 20)
    else:
        await reached(house, names, victim, 0)
    house.world.units[victim].send(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)


async def reached(house: House, names: list[str], unit: str, tokens: int) -> None:
    """All requests are on the unit, with so many tokens."""

    def there() -> int:
        found = (entry for entry in house.ledger.in_flight() if entry.info.request_id in names)
        return sum(entry.unit == unit and entry.output_tokens >= tokens for entry in found)

    while there() < len(names):
        await asyncio.sleep(0)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", ALL)
async def test_the_text_is_that_of_an_undisturbed_run(house: House, fault: str, phase: str) -> None:
    victim = "cpu" if phase == "handoff" else "gpu"
    route = "split" if phase == "before" and fault in ("pool_full", "corrupt_ticket") else "accelerator"
    await arm(house, fault, phase, victim)
    requests, before = bodies(), await errors_of(house)
    names = [f"{fault}.{phase}.{index}" for index in range(len(requests))]
    calls = [
        asyncio.ensure_future(house.post(path_of(body), body, {"x-request-id": name, "x-syshax-route": route}))
        for body, name in zip(requests, names)
    ]
    await strike(house, fault, phase, victim, names)
    replies: list[Reply] = await asyncio.gather(*calls)
    for body, reply, name in zip(requests, replies, names):
        story = house.runner.explain(name)
        assert reply.status == 200, (reply.data, story["text"])
        assert (reply.text, reply.finish) == (text_after(render(body), TOKENS), "length"), story["text"]
        as_if_one_unit_had_served_it(reply, body, name)
        assert story["events"][-1]["event"] == "end"
        kinds = {event["kind"] for event in story["events"] if event["event"] == "failed"}
        loads = [event["tokens"] for event in story["events"] if event["event"] == "loaded"]
        if fault in ("pool_full", "corrupt_ticket"):
            assert set(loads) == {0} or STARVED & kinds, story["text"]  # asked for, and computed
        assert kinds & SEEN[fault] if fault in SEEN else kinds <= STARVED, story["text"]
    grown = {kind for (unit, kind), count in (await errors_of(house)).items() if count > before.get((unit, kind), 0)}
    assert grown & SEEN[fault] if fault in SEEN else grown <= STARVED
    await nothing_left(house, fault, victim)


@pytest.mark.parametrize("turns", [0, 2, 5])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_unit_that_hands_over_dies_in_the_middle_of_it(
    house: House, number: signal.Signals, turns: int
) -> None:
    """Before it has heard of the order, or somewhere between that and the end of its stream."""
    for unit in ("gpu", "cpu"):
        await house.faults(unit, slow=0.004)
    requests, names = bodies(), [f"source.{number.name}.{turns}.{index}" for index in range(4)]
    calls = [
        asyncio.ensure_future(house.post(path_of(body), body, {"x-request-id": name, "x-syshax-route": "accelerator"}))
        for body, name in zip(requests, names)
    ]
    await reached(house, names, "gpu", 15)
    for name in names:
        house.runner._begin(Move(name, "cpu", Reason("test", "ordered by a test")))
    for _ in range(turns):
        await asyncio.sleep(0)
    house.world.units["gpu"].send(number)
    for body, name, reply in zip(requests, names, await asyncio.gather(*calls)):
        story = house.runner.explain(name)["text"]
        assert (reply.status, reply.text) == (200, text_after(render(body), TOKENS)), story
        as_if_one_unit_had_served_it(reply, body, name)
    await nothing_left(house, "kill" if number is signal.SIGKILL else "sigstop", "gpu")


def as_if_one_unit_had_served_it(reply: Reply, body: dict[str, Any], name: str) -> None:
    """One id, one role, the usage of the whole."""
    parts = reply.events if body["stream"] else [reply.json]
    assert {part["id"] for part in parts} == {("chatcmpl-" if "messages" in body else "cmpl-") + name}
    assert len({part["created"] for part in parts}) == 1
    prompt = len(render(body))
    usage = {"prompt_tokens": prompt, "completion_tokens": TOKENS, "total_tokens": prompt + TOKENS}
    assert [part["usage"] for part in parts if part.get("usage")] == [usage]
    if body["stream"] and "messages" in body:
        deltas = [part["choices"][0]["delta"] for part in parts if part["choices"]]
        assert sum("role" in delta for delta in deltas) == 1


async def errors_of(house: House) -> dict[tuple[str, str], float]:
    """The daemon's own count of failed calls, by unit and kind."""
    async with house.http.get(house.url + "/metrics") as response:
        text = await response.text()
    found = re.findall(r'^syshax_unit_errors_total{kind="(\w+)",unit="(\w+)"} (\S+)$', text, re.M)
    return {(unit, kind): float(value) for kind, unit, value in found}


def path_of(body: dict[str, Any]) -> str:
    return CHAT if "messages" in body else COMPLETIONS


async def nothing_left(house: House, fault: str, victim: str) -> None:
    assert not len(house.runner)
    if fault == "sigstop":
        house.world.units[victim].send(signal.SIGCONT)
    alive = [name for name in ("gpu", "cpu") if fault != "kill" or name != victim]
    await house.quiet(*alive)
    if fault in ("pool_full", "corrupt_ticket"):
        gpu, cpu = await house.state("gpu"), await house.state("cpu")
        assert gpu["failures"].get("save.full") if fault == "pool_full" else cpu["failures"].get("load.corrupt")
        assert not cpu["totals"].get("external")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_what_must_not_move_ends_with_an_error_never_with_silence(house: House, path: str, stream: bool) -> None:
    given = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": "x"}
    body = {**given, "max_tokens": 40, "seed": 7, "temperature": 1, "stream": stream}
    await house.faults("gpu", reset_after=10, slow=0.01)
    reply = await house.post(path, body, {"x-syshax-route": "accelerator"})
    if stream:
        assert reply.status == 200
        assert reply.events[-1]["error"]["code"] == "stream_lost"
        assert len(reply.events) > 5
    else:  # nothing had been sent, so it could be done again
        assert (reply.status, reply.text) == (200, text_after(render(body), 40))
    await house.quiet()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_foreign_server_never_begins_the_answer_anew(house: House, stream: bool) -> None:
    """A unit of kind openai knows no token ids: what has begun does not go on there."""
    body = {"prompt": "begun", "max_tokens": 40, "temperature": 0, "stream": stream}
    await house.faults("gpu", reset_after=10, slow=0.002, times=1)
    house.world.change("cpu", abilities=OPENAI.abilities)
    try:
        reply = await house.post(COMPLETIONS, body, {"x-syshax-route": "accelerator", "x-request-id": "foreign"})
    finally:
        house.world.change("cpu", abilities=SYSINFER.abilities)
    assert reply.text == text_after(render(body), 40), house.runner.explain("foreign")["text"]
    assert not (await house.state("cpu"))["request_ids"]
    await house.quiet()


async def test_both_units_fail_and_the_client_is_told(house: House) -> None:
    for unit in ("gpu", "cpu"):
        await house.faults(unit, http_status=500)
    impatient = replace(house.config, limits=replace(house.config.limits, queue_timeout=0.2))
    house.scheduler.reconfigure(impatient)
    try:
        reply = await house.post(COMPLETIONS, {"prompt": "x"})
    finally:
        house.scheduler.reconfigure(house.config)
    assert (reply.status, reply.json["error"]["code"]) == (400, "failed_alike"), "what two units share is the request's"


async def test_a_stream_waits_for_the_restart_of_its_only_unit(house: House) -> None:
    """kill -9 of the unit while the other is away: the stream goes on when the unit is back."""
    await house.faults("gpu", slow=0.004)
    house.world.change("cpu", state=UnitState.FAILED)
    try:
        body = bodies()[1]
        call = asyncio.ensure_future(house.post(CHAT, body, {"x-request-id": "restart"}))
        await reached(house, ["restart"], "gpu", 20)
        house.world.units["gpu"].send(signal.SIGKILL)
        await house.world.units["gpu"].process.wait()
        await house.start("gpu", epoch=2)
        reply = await call
        assert reply.text == text_after(render(body), TOKENS), house.runner.explain("restart")["text"]
    finally:
        house.world.change("cpu", state=UnitState.READY)
