"""Any interleaving of moves, aborts, failures, restarts and reloads ends every stream exactly once."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, cast

from hypothesis import example, given, settings
from hypothesis import strategies as st

from syshaxd.config.types import Config, LimitsConfig
from syshaxd.errors import UnitErrorKind
from syshaxd.metrics import MetricsService
from syshaxd.model.plan import Move, Reason
from syshaxd.model.request import Endpoint, RequestInfo
from syshaxd.runner import ClientRequest, InFlightLedger, RequestError, Runner, handover_rules
from syshaxd.scheduler import Scheduler
from syshaxd.tasks import cancelled
from syshaxd.unitclient import UnitClient
from testbed.fake_unit.language import render, text_after
from tests.unit.runner.simulated import SimulatedClient, SimulatedWorld

CONFIG = Config(model_name="m", limits=LimitsConfig(queue_timeout=4.0, request_timeout=10.0))
TOKENS = 25
KINDS = [kind for kind in UnitErrorKind if kind is not UnitErrorKind.STATUS]
REQUESTS: list[tuple[Endpoint, dict[str, Any]]] = [
    (Endpoint.CHAT, {"messages": [{"role": "user", "content": "one"}], "max_tokens": TOKENS}),
    (Endpoint.COMPLETIONS, {"prompt": "two", "max_tokens": TOKENS}),
    (Endpoint.COMPLETIONS, {"prompt": "stays", "max_tokens": TOKENS, "seed": 1}),
]
units = st.sampled_from(["gpu", "cpu"])
numbers = st.integers(0, len(REQUESTS) - 1)
operations = st.one_of(
    st.tuples(st.just("move"), numbers, units),
    st.tuples(st.just("fail"), units, st.sampled_from(KINDS)),
    st.tuples(st.just("abort"), units, st.none()),
    st.tuples(st.just("stop"), units, st.none()),
    st.tuples(st.just("restart"), units, st.none()),
    st.tuples(st.just("deaf"), units, st.booleans()),
    st.tuples(st.just("leave"), numbers, st.none()),
    st.tuples(st.just("reload"), st.booleans(), st.none()),
)
schedules = st.lists(st.tuples(st.integers(0, 8), operations), max_size=14)


class Play:
    """One schedule against three requests."""

    def __init__(self) -> None:
        self.ledger = InFlightLedger()
        self.world = SimulatedWorld(self.ledger)
        self.metrics = MetricsService()
        self.scheduler = Scheduler(CONFIG)
        client = cast(UnitClient, SimulatedClient(self.world.units))
        self.runner = Runner(client, self.world, self.world, self.scheduler, self.metrics, self.ledger, CONFIG)
        self.clients: list["asyncio.Task[str]"] = []
        self.submitted = 0  # a client cancelled before its task began never sent anything

    async def client(self, index: int) -> str:
        """What a client gets: its text, or how it ended."""
        endpoint, body = REQUESTS[index]
        rules = handover_rules(body)
        info = RequestInfo(
            f"r{index}", endpoint, "m", True, 3, TOKENS, first_token_stays=rules.first_token_stays, stays=rules.stays
        )
        now = asyncio.get_running_loop().time()
        self.submitted += 1
        stream = self.runner.submit(ClientRequest(info, body, now, 0))
        status, text, done = 499, "", 0
        try:
            await stream.open()
            while data := await stream.next_bytes():
                done += data.count(b"[DONE]")
                text += content(data)
            status = 200
            assert done == 1
            return text
        except RequestError as err:
            status = err.status
            return f"error {err.code}"
        finally:
            await self.runner.finish(stream, status)

    async def run(self, schedule: list[tuple[int, tuple[str, Any, Any]]]) -> list[str]:
        """Plays it, then brings both units back so that everything can end."""
        self.clients = [asyncio.ensure_future(self.client(index)) for index in range(len(REQUESTS))]
        for pause, (what, first, second) in schedule:
            for _ in range(pause):
                await asyncio.sleep(0)
            self.runner.tick()
            self.act(what, first, second)
        for unit in self.world.units.values():
            if not unit.view.ready:
                unit.restart()
        ticking = asyncio.ensure_future(self.tick())
        ends = await asyncio.wait_for(asyncio.gather(*self.clients, return_exceptions=True), 15)
        await cancelled(ticking)
        await self.runner.close()
        return [end if isinstance(end, str) else type(end).__name__ for end in ends]

    async def tick(self) -> None:
        while True:
            self.runner.tick()
            await asyncio.sleep(0.005)

    def act(self, what: str, first: Any, second: Any) -> None:
        if what == "move":
            self.runner._begin(Move(f"r{first}", second, Reason("test", "test")))
        elif what == "leave":
            self.clients[first].cancel()
        elif what == "reload":
            config = replace(CONFIG, pd=replace(CONFIG.pd, enabled=first))
            self.runner.reconfigure(config)
            self.scheduler.reconfigure(config)
        else:
            self.act_on_unit(what, first, second)

    def act_on_unit(self, what: str, name: str, value: Any) -> None:
        unit = self.world.units[name]
        if what == "fail":
            unit.fail(value)
        elif what == "abort":
            for stream in unit.streams:
                stream.aborted = True
        elif what == "deaf":
            unit.refuses_aborts = value
        elif what == "stop":
            unit.stop()
        else:
            unit.restart()


def content(data: bytes) -> str:
    text = ""
    for line in data.decode().splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:]).get("choices", ()):
                text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return text


def counted(metrics: MetricsService) -> float:
    return sum(
        sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "syshax_requests_total"
    )


@settings(max_examples=60, deadline=None)
@given(schedules)
@example([(2, ("abort", "gpu", None)), (0, ("deaf", "gpu", True))])
@example([(3, ("move", 0, "cpu")), (1, ("stop", "cpu", None)), (1, ("fail", "gpu", UnitErrorKind.GONE))])
@example([(2, ("abort", "gpu", None)), (2, ("fail", "gpu", UnitErrorKind.CONNECT))])
@example([(5, ("move", 0, "cpu")), (0, ("leave", 0, None)), (2, ("move", 1, "cpu")), (0, ("restart", "gpu", None))])
def test_every_stream_ends_exactly_once(schedule: list[tuple[int, tuple[str, Any, Any]]]) -> None:
    async def scenario() -> None:
        play = Play()
        ends = await play.run(schedule)
        left = {first for _, (what, first, _) in schedule if what == "leave"}
        for index, (_, body) in enumerate(REQUESTS):
            if index in left and ends[index] == "CancelledError":
                continue
            if "seed" in body:
                lost = ends[index] in ("error stream_lost", "error failed_alike")
                assert lost or text_after(render(body), TOKENS).startswith(ends[index]), ends
            elif ends[index] not in ("error unit_failed", "error failed_alike"):
                story = play.runner.explain(f"r{index}")["text"]
                assert ends[index] == text_after(render(body), TOKENS), ends[index] + story
        assert len(play.runner) == 0 and len(play.ledger) == 0
        assert not any(unit.streams or unit.tickets - unit.left_to_lease for unit in play.world.units.values())
        assert counted(play.metrics) == play.submitted
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert not others, others

    asyncio.run(scenario())
