"""Who is let in, who waits, and for whom: one queue, shared by keys; two models that never answer for each other."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from syshaxd.config.types import Config, LimitsConfig
from syshaxd.units import SYSINFER, VLLM
from testbed.daemon_in_process import CONFIG, MODEL, House

COMPLETIONS = "/v1/completions"


def body(number: int, **more: Any) -> dict[str, Any]:
    return {"prompt": f"number {number}", "max_tokens": 4, "temperature": 0, **more}


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def keyed(folder: Path, limits: LimitsConfig) -> Config:
    file = folder / "keys"
    file.write_text("one\ntwo\n")
    file.chmod(0o600)
    return replace(CONFIG, limits=limits, conductor=replace(CONFIG.conductor, api_keys_file=str(file)))


async def test_what_is_too_much_at_once_waits_and_a_second_key_is_not_starved(tmp_path: Path) -> None:
    """72 requests of one key at max_in_flight 8 and max_queue 64 are served; another key does not wait for them."""
    limits = replace(CONFIG.limits, max_in_flight=8, max_queue=64, queue_timeout=25.0)
    ended: list[str] = []
    async with House(tmp_path, keyed(tmp_path, limits)) as house:
        await house.faults("gpu", slow=0.02)

        async def ask(name: str, number: int) -> int:
            reply = await house.post(COMPLETIONS, body(number), key(name))
            ended.append(name)
            return reply.status

        first = [asyncio.ensure_future(ask("one", number)) for number in range(72)]
        while house.ledger.queued < 64:
            await asyncio.sleep(0.005)
        assert len(house.ledger) == 8
        over = [asyncio.ensure_future(ask("one", number)) for number in range(72, 74)]
        assert await asyncio.gather(*over) == [429, 429], "its own share is full"
        second = [asyncio.ensure_future(ask("two", number)) for number in range(4)]
        assert await asyncio.gather(*second) == [200] * 4
        assert ended.count("one") < 40, "the second key went first, with fewer requests running"
        statuses = await asyncio.gather(*first)
        assert sorted(statuses) == [200] * 68 + [429] * 4, "four gave their places in the full queue to the second key"
        await house.quiet()


async def test_without_room_in_the_queue_the_client_is_told_when_to_come_again(tmp_path: Path) -> None:
    limits = replace(CONFIG.limits, max_in_flight=1, max_queue=1)
    async with House(tmp_path, replace(CONFIG, limits=limits)) as house:
        await house.faults("gpu", slow=0.05)
        calls = [asyncio.ensure_future(house.post(COMPLETIONS, body(number))) for number in range(3)]
        replies = await asyncio.gather(*calls)
        assert sorted(reply.status for reply in replies) == [200, 200, 429]
        (refused,) = [reply for reply in replies if reply.status == 429]
        assert refused.json["error"]["code"] == "queue_full" and int(refused.headers["Retry-After"]) >= 1


async def test_two_models_never_answer_for_each_other(tmp_path: Path) -> None:
    """60 busy streams fill the side of one model: its requests wait for it, and never go to the other model."""
    other = "other-model"
    async with House(tmp_path, gpu=("--max-num-seqs", "4"), cpu=("--model", other)) as house:
        house.world.change("cpu", model=other)
        await house.faults("gpu", slow=0.002)
        asked = [(MODEL, number) for number in range(60)] + [(other, number) for number in range(60, 90)]
        replies = await asyncio.gather(
            *(house.post(COMPLETIONS, body(number, model=model)) for model, number in asked)
        )  # fmt: skip
        assert {reply.status for reply in replies} == {200}
        assert [reply.json["model"] for reply in replies] == [model for model, _ in asked]
        served = {name: (await house.state(name))["request_ids"] for name in ("gpu", "cpu")}
        assert (len(served["gpu"]), len(served["cpu"])) == (60, 30)
        for path in ("/tokenize", "/v1/completions", "/v1/chat/completions"):
            reply = await house.post(
                path, {**body(0), "messages": [{"role": "user", "content": "x"}], "model": "nobody"}
            )
            assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")
        house.world.change("cpu", url="http://127.0.0.1:9")  # what is asked for the first model alone must not go there
        assert (await house.post("/tokenize", {"prompt": "abc", "model": MODEL})).json["count"] == 3
        assert (await house.post("/tokenize", {"prompt": "abc", "model": other})).status == 502


async def test_what_only_one_unit_can_do_waits_for_it(tmp_path: Path) -> None:
    """12 busy streams fill the side with structured output: a request for it waits there."""
    forms: list[dict[str, Any]] = [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
    ]
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "temperature": 0}
    full = replace(CONFIG.scheduler, threshold=replace(CONFIG.scheduler.threshold, max_num_seqs=12))
    async with House(tmp_path, replace(CONFIG, scheduler=full)) as house:
        house.world.change("gpu", abilities=VLLM.abilities)
        await house.faults("gpu", slow=0.01)
        busy = [asyncio.ensure_future(house.post(COMPLETIONS, body(number, max_tokens=40))) for number in range(12)]
        while len(house.ledger) < 12:
            await asyncio.sleep(0.005)
        replies = await asyncio.gather(
            *(house.post("/v1/chat/completions", {**chat, **forms[n % 2]}) for n in range(12))
        )
        assert {reply.status for reply in replies} == {200}
        assert {reply.headers["x-syshax-route"] for reply in replies} == {"accelerator"}
        await asyncio.gather(*busy)
        house.world.change("gpu", abilities=SYSINFER.abilities)
        reply = await house.post("/v1/chat/completions", {**chat, **forms[0]})
        assert (reply.status, reply.json["error"]["code"]) == (400, "unsupported_by_units")
        assert "structured_output" in reply.json["error"]["message"] and "Retry-After" not in reply.headers
