"""Streams on the real daemon and a real sysinfer pair: a unit killed or frozen in the middle changes no text."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from testbed.daemon_demo_model import LIBRARY, Daemon, demo_config

TOKENS = 600
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120),
    pytest.mark.skipif(not LIBRARY.exists(), reason="needs the native core: make native"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    config = demo_config(limits={"stall_timeout": "1s"}, log={"level": "debug"})
    async with Daemon(tmp_path_factory.mktemp("daemon"), config) as made:
        yield made


def body_for(path: str, question: str = "What is a glacier?", **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"messages": [{"role": "user", "content": question}]} if "chat" in path else {}
    given = given or {"prompt": question}
    return {**given, "max_tokens": TOKENS, "min_tokens": TOKENS, "temperature": 0, "return_token_ids": True, **more}


async def streamed(daemon: Daemon, path: str, strike_at: int, strike: Any, **more: Any) -> tuple[list[int], str, int]:
    """Token ids, finish reason and number of roles; `strike` is called once so many tokens have come."""
    tokens: list[int] = []
    finish, roles = "", 0
    body = body_for(path, stream=True, **more)
    async with daemon.http.post(daemon.url + path, json=body, headers={"x-syshax-route": "accelerator"}) as response:
        assert response.status == 200
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            choice = event["choices"][0]
            before = len(tokens)
            tokens += choice.get("token_ids") or []
            finish = choice["finish_reason"] or finish
            roles += "role" in choice.get("delta", {})
            if before < strike_at <= len(tokens):
                strike()
    return tokens, finish, roles


def pid_of(daemon: Daemon, unit: str) -> int:
    """Process that listens on the unit's port."""
    port = re.search(r":(\d+)$", daemon.unit_urls()[unit])
    assert port is not None
    inode = listening_inode(int(port.group(1)))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if any(os.readlink(f"/proc/{pid}/fd/{fd}") == f"socket:[{inode}]" for fd in os.listdir(f"/proc/{pid}/fd")):
                return int(pid)
        except OSError:
            continue
    raise AssertionError(f"nobody listens on {port.group(1)}")


def listening_inode(port: int) -> str:
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
            return fields[9]
    raise AssertionError(f"no socket listens on {port}")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_stream_goes_on_and_the_unit_comes_back(daemon: Daemon, path: str, number: int) -> None:
    whole = await daemon.post(path, body_for(path), {"x-syshax-route": "accelerator"})
    starts = len(re.findall("unit is ready unit=gpu", daemon.log))
    victim = pid_of(daemon, "gpu")
    tokens, finish, roles = await streamed(daemon, path, 40, lambda: os.kill(victim, number))
    assert tokens == whole["choices"][0]["token_ids"]
    assert (finish, roles) == ("length", 1 if "chat" in path else 0)
    while len(re.findall("unit is ready unit=gpu", daemon.log)) == starts:
        await asyncio.sleep(0.05)
    await daemon.post(path, body_for(path, max_tokens=3, min_tokens=0), {"x-syshax-route": "accelerator"})
    assert (await daemon.metrics())['syshax_handoffs_total{kind="failover",result="ok"}'] >= 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_restart_gives_the_streams_away_with_their_kv(daemon: Daemon, path: str) -> None:
    await daemon.split_is_on()
    question = f"What does a river carry to {path}?"  # in no cache of the other unit
    whole = await daemon.post(path, body_for(path, question), {"x-syshax-route": "accelerator"})
    before, moves = await loaded(daemon, "cpu"), await drained(daemon)
    kept = (await daemon.metrics()).get('syshax_handoff_kv_total{kind="drain",result="loaded"}', 0)
    orders: list[Any] = []

    def restart() -> None:
        orders.append(asyncio.ensure_future(asyncio.to_thread(daemon.control, "units", "gpu", "restart")))

    tokens, finish, _ = await streamed(daemon, path, 40, restart, question=question)
    assert (tokens, finish) == (whole["choices"][0]["token_ids"], "length")
    await orders[0]
    assert await drained(daemon) == moves + 1
    assert await loaded(daemon, "cpu") - before >= 40
    assert (await daemon.metrics())['syshax_handoff_kv_total{kind="drain",result="loaded"}'] == kept + 1


async def drained(daemon: Daemon) -> float:
    """Streams that have left a draining unit."""
    return (await daemon.metrics()).get('syshax_handoffs_total{kind="drain",result="ok"}', 0)


async def loaded(daemon: Daemon, unit: str) -> float:
    """Tokens whose KV a unit took over."""
    found = await daemon.unit_metrics(unit)
    return sum(value for name, value in found.items() if 'source="external_kv_transfer"' in name)
