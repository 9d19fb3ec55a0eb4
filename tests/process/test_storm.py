"""Many short requests of every form while units die, clients leave and moves cross: right text or an error, no leak."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syshaxd.model.plan import Move, Reason
from syshaxd.model.unit import UnitState
from testbed.daemon_in_process import CONFIG, House, Reply
from testbed.fake_unit.language import render, text_after

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FORMS: list[dict[str, Any]] = [
    {},
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"logprobs": True},
    {"stop": ["never said"], "stream": True},
    {"n": 2},
    {"seed": 3, "temperature": 1},
    {"seed": 3, "temperature": 1, "stream": True},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "stream": True},
]
KNOWN = {"stream_lost", "unit_failed", "unit_lost", "queue_timeout", "queue_full", "no_unit_ready"}


def request(rng: random.Random, number: int) -> dict[str, Any]:
    form = dict(rng.choice(FORMS))
    if rng.random() < 0.5 or "tools" in form:
        given: dict[str, Any] = {"messages": [{"role": "user", "content": f"storm {number}"}]}
    else:
        given = {"prompt": f"storm {number}"}
        form.update(logprobs=1) if "logprobs" in form else None
    return {"model": "fake-model", "max_tokens": rng.randrange(1, 40), "temperature": 0, **given, **form}


async def ask(house: House, rng: random.Random, number: int, gate: asyncio.Semaphore) -> str:
    """How it ended: "ok", "left", or the code of a documented error."""
    body = request(rng, number)
    path = CHAT if "messages" in body else COMPLETIONS
    headers = {"x-request-id": f"storm{number}"}
    async with gate:
        if rng.random() < 0.1:
            return await leave(house, path, body, headers, rng.random() * 0.1)
        reply = await asyncio.wait_for(house.post(path, body, headers), 25)
    code = error_of(reply)
    if code:
        assert code in KNOWN, reply.data
        return code
    assert reply.text == text_after(render(body), body["max_tokens"]), house.runner.explain(f"storm{number}")["text"]
    return "ok"


async def leave(house: House, path: str, body: dict[str, Any], headers: dict[str, str], after: float) -> str:
    call = asyncio.ensure_future(house.post(path, body, headers))
    await asyncio.wait({call}, timeout=after)
    call.cancel()
    await asyncio.wait({call})
    return "left"


def error_of(reply: Reply) -> str:
    """Code of the error, in whichever form the answer has; "" for none."""
    if reply.headers["Content-Type"].startswith("application/json"):
        return str(reply.json["error"]["code"]) if "error" in reply.json else ""
    return next((str(event["error"]["code"]) for event in reply.events if "error" in event), "")


async def trouble(house: House, rng: random.Random, over: asyncio.Event, deaths: int) -> None:
    """Kills a unit again and again (the other one serves meanwhile), and orders moves that nobody asked for."""
    names = ["gpu", "cpu"]
    for _ in range(deaths):
        for _ in range(20):
            for entry in house.ledger.in_flight():
                if rng.random() < 0.3:
                    house.runner._begin(Move(entry.info.request_id, rng.choice(names), Reason("test", "a test's")))
            house.runner.reconfigure(replace(house.config, pd=replace(house.config.pd, enabled=rng.random() < 0.8)))
            await asyncio.sleep(0.01)
        if over.is_set():
            break
        victim = house.world.units[rng.choice(names)]
        victim.send(signal.SIGKILL)
        await victim.process.wait()
        house.world.change(victim.view.name, state=UnitState.FAILED)
        await house.start(victim.view.name, epoch=victim.view.epoch + 1)
        await house.faults(victim.view.name, slow=0.002)
    house.runner.reconfigure(house.config)


async def storm(house: House, seed: int, count: int) -> list[str]:
    rng, over, gate = random.Random(seed), asyncio.Event(), asyncio.Semaphore(16)
    making = asyncio.ensure_future(trouble(house, rng, over, 8))
    ends = await asyncio.gather(*(ask(house, rng, number, gate) for number in range(count)))
    over.set()
    await making
    await house.quiet()
    return list(ends)


def held() -> dict[str, int]:
    gc.collect()
    return {
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
    }


@pytest.mark.timeout(120)
async def test_two_hundred_requests_through_dying_units(tmp_path: Path) -> None:
    async with House(tmp_path, replace(CONFIG, limits=replace(CONFIG.limits, queue_timeout=20.0))) as house:
        for unit in ("gpu", "cpu"):
            await house.faults(unit, slow=0.002)
        await storm(house, 1, 60)
        before = held()
        ends = await storm(house, 2, 200)
        after = held()
        print({end: ends.count(end) for end in sorted(set(ends))}, before, after)
        assert ends.count("ok") >= 120
        assert after["tasks"] <= before["tasks"] and after["descriptors"] <= before["descriptors"] + 4
        # What may stay is the bounded ring of timelines: some 20 objects an event.
        assert after["objects"] - before["objects"] < 200 * 400


async def test_clients_that_leave_while_their_requests_move(tmp_path: Path) -> None:
    async with House(tmp_path) as house:
        for unit in ("gpu", "cpu"):
            await house.faults(unit, slow=0.002)
        for number, pause in enumerate((0, 0.001, 0.005, 0.02, 0.05) * 2):
            await leave_in_a_move(house, f"leaver{number}", number % 2 == 0, pause)


async def leave_in_a_move(house: House, name: str, stream: bool, pause: float) -> None:
    body = {"prompt": "moving", "max_tokens": 500, "temperature": 0, "stream": stream}
    headers = {"x-request-id": name, "x-syshax-route": "accelerator"}
    call = asyncio.ensure_future(house.post(COMPLETIONS, body, headers))
    while not any(entry.output_tokens > 10 for entry in house.ledger.in_flight()):
        await asyncio.sleep(0)
    for target in ("cpu", "cpu", "gpu"):  # the second and the third are refused: it is moving
        house.runner._begin(Move(name, target, Reason("test", "ordered by a test")))
    await asyncio.wait({call}, timeout=pause)
    call.cancel()
    await asyncio.wait({call})
    await house.quiet()
    events = house.runner.explain(name)["events"]
    refused = [event["why"] for event in events if event["event"] == "not_moved" and "why" in event]
    assert refused == ["not_running"] * 2
    assert events[-1]["status"] == 499
