"""A stream handed over after exactly N tokens, for every N: the client reads what one unit would have said."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, cast

import pytest

from syshaxd.config.types import Config, UnitConfig
from syshaxd.metrics import MetricsService
from syshaxd.model.plan import Move, Reason
from syshaxd.model.request import Endpoint, RequestInfo
from syshaxd.model.unit import Role
from syshaxd.runner import ClientRequest, InFlightLedger, Runner
from syshaxd.scheduler import Scheduler
from syshaxd.unitclient import UnitClient
from testbed.fake_unit.language import encode
from tests.unit.runner.simulated import SimulatedClient, SimulatedWorld

UNITS = (UnitConfig("gpu", Role.ACCELERATOR), UnitConfig("cpu", Role.CPU))
CONFIG = Config(model_name="m", units=UNITS)
MIXED = "你好，世界! 😀👩\u200d👧 naïve e\u0301te\u0301 ok"
TEXTS: dict[str, tuple[str, list[str], str, str, str]] = {  # said, stops, reasoning, content, finish
    "mixed": (MIXED, [], "", MIXED, "stop"),
    "stop string": ("一 two, STOP你HERE and never", ["STOP你HERE", "nope"], "", "一 two, ", "stop"),
    "no stop string": ("ends with STO", ["STOP"], "", "ends with STO", "stop"),
    "think": ("<think>你 why 😀</think>So: e\u0301 42", [], "你 why 😀", "So: e\u0301 42", "stop"),
    "think on": ("<think>never an end 你", [], "never an end 你", "", "stop"),
    "think and stop": ("<think>a</think>b END c", ["END"], "a", "b ", "stop"),
}


async def story(name: str, endpoint: Endpoint, stream: bool, cuts: list[int]) -> tuple[str, str, str, int]:
    """Reasoning, content, finish reason and tokens that the client reads; moved to the other unit at each of `cuts`."""
    said, stops, *_ = TEXTS[name]
    thinks = name.startswith("think")
    units = tuple(replace(unit, reasoning_parser="deepseek_r1" if thinks else "") for unit in UNITS)
    config = replace(CONFIG, units=units)
    ledger = InFlightLedger()
    world = SimulatedWorld(ledger)
    for unit in world.units.values():
        unit.cuts = list(cuts)
    runner = Runner(
        cast(UnitClient, SimulatedClient(world.units)),
        world,
        world,
        Scheduler(config),
        MetricsService(),
        ledger,
        config,
    )
    text = f"SAY:{said}|"
    given = {"messages": [{"role": "user", "content": text}]} if endpoint is Endpoint.CHAT else {"prompt": text}
    body = {**given, "max_tokens": 300, "stop": stops, "stream": stream, "stream_options": {"include_usage": True}}
    info = RequestInfo("r", endpoint, "m", stream, 3, 300)
    made = runner.submit(ClientRequest(info, body, asyncio.get_running_loop().time(), 0))
    mover = asyncio.ensure_future(move_on(runner, ledger, len(cuts)))
    await made.open()
    data = b"".join([part async for part in whole(made)]) if stream else b"data: " + await made.body()
    await runner.finish(made, 200)
    mover.cancel()
    await runner.close()
    assert not any(unit.tickets for unit in world.units.values())
    found = read(data)
    if cuts and 1 < cuts[0] < found[3]:
        assert world.units["gpu"].cut_at[0] == cuts[0]
    return found


async def whole(stream: Any) -> Any:
    while data := await stream.next_bytes():
        yield data


async def move_on(runner: Runner, ledger: InFlightLedger, times: int) -> None:
    """Orders a move to the other unit as soon as the request runs; the unit obeys after the token it was told."""
    moved = 0
    while moved < times:
        for entry in ledger.in_flight():
            if not entry.moving and entry.moves == moved:
                target = "cpu" if entry.unit == "gpu" else "gpu"
                runner._begin(Move("r", target, Reason("test", "test")))
        moved = max([moved, *(entry.moves for entry in ledger.in_flight())])
        await asyncio.sleep(0)


def read(data: bytes) -> tuple[str, str, str, int]:
    reasoning = content = finish = ""
    tokens = 0
    for line in data.decode().splitlines():
        message = json.loads(line[6:]) if line.startswith("data: {") else {}
        tokens = (message.get("usage") or {}).get("completion_tokens", tokens)
        for choice in message.get("choices", ()):
            part = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
            reasoning += part.get("reasoning_content") or ""
            content += part.get("content") or ""
            finish = choice["finish_reason"] or finish
    return reasoning, content, finish, tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.COMPLETIONS])
@pytest.mark.parametrize("name", TEXTS)
def test_every_cut_reads_as_one_text(name: str, endpoint: Endpoint, stream: bool) -> None:
    said, _, reasoning, content, finish = TEXTS[name]
    if endpoint is Endpoint.COMPLETIONS and reasoning:  # no parser there: the text is as the model says it
        reasoning, content = "", "<think>" + "</think>".join(filter(None, (reasoning, content)))
    expected = (reasoning, content, finish)

    async def scenario() -> None:
        uncut = await story(name, endpoint, stream, [])
        assert uncut[:3] == expected
        length = len(encode(said))
        for cut in range(length + 2):
            assert await story(name, endpoint, stream, [cut]) == uncut, cut
            assert await story(name, endpoint, stream, [cut, 3]) == uncut, (cut, 3)

    asyncio.run(scenario())
