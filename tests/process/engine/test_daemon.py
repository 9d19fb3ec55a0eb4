"""The daemon as a service: notify protocol, signals, reload, socket activation, and what is left behind (nothing)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from testbed.daemon_fake_units import HUP, KILL, TERM, Daemon, ask, clients, free_port, unit

pytestmark = pytest.mark.timeout(240)  # starts several daemons; a busy machine takes seconds for each interpreter


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    made = Daemon(tmp_path)
    yield made
    await made.close()


def _has(daemon: Daemon, word: str) -> bool:
    return any(word in message.split("\n") for message in daemon.messages)


async def test_notify_protocol_from_start_to_end(daemon: Daemon) -> None:
    await daemon.start(WATCHDOG_USEC="1500000", INVOCATION_ID="0" * 32)
    await daemon.ready()
    before_ready = daemon.messages[: next(i for i, text in enumerate(daemon.messages) if "READY=1" in text)]
    assert any(text.startswith("EXTEND_TIMEOUT_USEC=") for text in before_ready)
    for child in daemon.children():
        left = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "INVOCATION_ID", "JOURNAL_STREAM"} & set(child.environ())
        assert not left
    await daemon.until(lambda: daemon.messages.count("WATCHDOG=1") >= 2)
    await daemon.until(lambda: any("gpu: ready" in text and "queue 0/" in text for text in daemon.messages))
    daemon.messages.clear()
    daemon.signal(HUP)
    await daemon.until(lambda: _has(daemon, "READY=1"))
    reloading = next(text for text in daemon.messages if text.startswith("RELOADING=1"))
    assert reloading.split("\n")[1].startswith("MONOTONIC_USEC=")
    daemon.signal(TERM)
    assert await daemon.ended() == 0
    await daemon.until(lambda: _has(daemon, "STOPPING=1"))
    daemon.nothing_left()


async def test_a_frozen_daemon_does_not_feed_the_watchdog(daemon: Daemon) -> None:
    await daemon.start(WATCHDOG_USEC="1000000")
    await daemon.ready()
    assert daemon.process
    process = psutil.Process(daemon.process.pid)
    process.suspend()
    await asyncio.sleep(0)
    daemon.messages.clear()
    process.resume()
    await daemon.until(lambda: _has(daemon, "WATCHDOG=1"))


async def test_a_bad_configuration_ends_with_78_and_the_place(daemon: Daemon) -> None:
    daemon.config["units"]["gpu"]["rolle"] = "cpu"
    await daemon.start()
    assert await daemon.ended() == 78
    assert b"syshax.yaml:" in daemon.output and b"rolle" in daemon.output
    assert b"Traceback" not in daemon.output


async def test_a_port_in_use_is_named(daemon: Daemon) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", daemon.port))
        taken.listen()
        await daemon.start()
        assert await daemon.ended() == 1
    assert f"cannot listen on 127.0.0.1:{daemon.port}".encode() in daemon.output
    assert b"Traceback" not in daemon.output


async def test_sigterm_under_load_drains(daemon: Daemon) -> None:
    await daemon.start()
    await daemon.ready()
    pids = [child.pid for child in daemon.children()]
    async with clients(daemon) as session:
        asked = [asyncio.ensure_future(ask(session, f"question {n}", 300)) for n in range(8)]
        while (await daemon.status())["in_flight"] < 8:
            await asyncio.sleep(0.01)
        daemon.signal(TERM)
        while (await daemon.status())["state"] != "draining":
            await asyncio.sleep(0.01)
        async with session.get("/health") as answer:
            assert answer.status == 503
        await asyncio.gather(*asked)
    assert await daemon.ended() == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    daemon.nothing_left()


async def test_what_outlasts_the_drain_ends_with_an_error_event(daemon: Daemon) -> None:
    daemon.config["lifecycle"]["drain_timeout"] = "200ms"
    await daemon.start()
    await daemon.ready()
    async with clients(daemon) as session:
        body = {"model": "fake-model", "max_tokens": 8000, "stream": True, "prompt": "long"}
        async with session.post("/v1/completions", json=body) as answer:
            await answer.content.readline()
            daemon.signal(TERM)
            rest = await answer.content.read()
    assert b'"error"' in rest and rest.rstrip().endswith(b"data: [DONE]")
    assert await daemon.ended() == 0
    daemon.nothing_left()


async def test_clients_that_leave_cost_one_line_each(daemon: Daemon) -> None:
    """In the middle of their answers, whose writes then fail, and in the middle of their own bodies."""
    await daemon.start()
    await daemon.ready()
    body = json.dumps({"model": "fake-model", "max_tokens": 8000, "stream": True, "prompt": "long"}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for round_ in range(10):
        for sent in (body, body[:20]):
            reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
            writer.write(head + sent)
            await writer.drain()
            if sent == body:
                await reader.readuntil(b"data: ")
            writer.transport.abort()
        await daemon.until(lambda: daemon.output.count(b"status=499") == round_ + 1)
    async with clients(daemon) as session:
        await ask(session, "question")
    daemon.signal(TERM)
    assert await daemon.ended() == 0
    assert b"Traceback" not in daemon.output and b"Error handling" not in daemon.output, daemon.output.decode()
    assert daemon.output.count(b"access: request") == 11
    daemon.nothing_left()


async def test_the_second_signal_means_now(daemon: Daemon) -> None:
    daemon.config["units"]["gpu"] = unit("accelerator", "--fault", "ignore_sigterm", stop_timeout="10min")
    daemon.config["lifecycle"]["drain_timeout"] = "10min"
    await daemon.start()
    await daemon.ready()
    async with clients(daemon) as session:
        body = {"model": "fake-model", "max_tokens": 8000, "stream": True, "prompt": "long"}
        async with session.post("/v1/completions", json=body) as answer:
            await answer.content.readline()
            daemon.signal(TERM)
            while (await daemon.status())["state"] != "draining":
                await asyncio.sleep(0.01)
            daemon.signal(TERM)
            assert await daemon.ended() == 0
    daemon.nothing_left()


async def test_units_do_not_survive_a_killed_daemon(daemon: Daemon) -> None:
    await daemon.start()
    await daemon.ready()
    children = daemon.children()
    assert len(children) == 2
    daemon.signal(KILL)
    await daemon.ended()
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)


async def test_a_start_after_a_kill_finds_its_way(daemon: Daemon) -> None:
    await daemon.start()
    await daemon.ready()
    daemon.signal(KILL)
    await daemon.ended()
    await daemon.start()
    await daemon.ready()
    daemon.signal(TERM)
    assert await daemon.ended() == 0
    daemon.nothing_left()


async def test_a_killed_unit_loses_no_request(daemon: Daemon) -> None:
    await daemon.start()
    await daemon.ready()
    async with clients(daemon) as session:
        asked = [asyncio.ensure_future(ask(session, f"question {n}", 200)) for n in range(6)]
        while not (await daemon.unit("gpu"))["in_flight"]:
            await asyncio.sleep(0.01)
        os.kill((await daemon.unit("gpu"))["pid"], KILL)
        await asyncio.gather(*asked)
        while (await daemon.unit("gpu"))["state"] != "ready":
            await asyncio.sleep(0.02)
    assert (await daemon.unit("gpu"))["restarts"] == 1


async def test_a_hundred_hangups_under_traffic_lose_nothing(daemon: Daemon) -> None:
    await daemon.start()
    await daemon.ready()
    done = asyncio.Event()
    served: list[int] = []

    async def traffic(session: aiohttp.ClientSession, number: int) -> None:
        while not done.is_set():
            await ask(session, f"client {number} question {len(served)}", 10)
            served.append(number)

    async with clients(daemon) as session:
        running = [asyncio.ensure_future(traffic(session, number)) for number in range(4)]
        for turn in range(100):
            daemon.config["limits"] = {"max_queue": 100 + turn}
            daemon.config["services"]["conductor"]["port"] = daemon.port
            daemon.write()
            daemon.signal(HUP)
            await asyncio.sleep(0.01)
        code, result = await daemon.control("POST", "reload")
        assert code == 200, result
        done.set()
        await asyncio.gather(*running)
    assert served
    assert all(one["restarts"] == 0 for one in (await daemon.status())["units"])
    await daemon.until(lambda: any("queue 0/199" in text for text in daemon.messages))


async def test_a_bad_file_changes_nothing(daemon: Daemon) -> None:
    await daemon.start()
    await daemon.ready()
    before = {one["name"]: one["pid"] for one in (await daemon.status())["units"]}
    daemon.write("units: {gpu: [\n")
    code, answer = await daemon.control("POST", "reload")
    assert code == 422 and answer["error"]["problems"][0]["line"] > 0
    await daemon.until(lambda: any("reload rejected" in text for text in daemon.messages))
    status = await daemon.status()
    assert status["reload"]["error"] and {one["name"]: one["pid"] for one in status["units"]} == before
    async with clients(daemon) as session:
        await ask(session, "still there?")
    daemon.write()
    code, answer = await daemon.control("POST", "reload")
    assert code == 200 and "error" not in (await daemon.status())["reload"]


async def test_a_listener_that_cannot_be_opened_changes_nothing(daemon: Daemon) -> None:
    await daemon.start()
    await daemon.ready()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        daemon.config["services"]["conductor"]["port"] = taken.getsockname()[1]
        daemon.config["units"]["cpu"]["env"] = {"NEW": "1"}
        daemon.write()
        code, answer = await daemon.control("POST", "reload")
    assert code == 500 and "cannot listen" in answer["error"]["message"]
    assert (await daemon.unit("cpu"))["epoch"] == 1
    async with clients(daemon) as session:
        await ask(session, "still there?")


async def test_reload_moves_the_listener_and_replaces_one_unit(daemon: Daemon) -> None:
    await daemon.start()
    await daemon.ready()
    gpu = (await daemon.unit("gpu"))["pid"]
    async with clients(daemon) as session:
        running = asyncio.ensure_future(ask(session, "a long answer", 300))
        while not (await daemon.status())["in_flight"]:
            await asyncio.sleep(0.01)
        daemon.port = daemon.config["services"]["conductor"]["port"] = free_port()
        daemon.config["units"]["cpu"]["env"] = {"NEW": "1"}
        daemon.config["state_dir"] = str(daemon.folder / "elsewhere")
        daemon.write()
        code, result = await daemon.control("POST", "reload")
        assert code == 200 and result["replaced"] == ["cpu"]
        assert any("state_dir" in change for change in result["pending_restart"])
        await running
    async with clients(daemon) as session:
        await ask(session, "on the new port")
    while (await daemon.unit("cpu"))["epoch"] != 2 or (await daemon.unit("cpu"))["state"] != "ready":
        await asyncio.sleep(0.02)
    assert (await daemon.unit("gpu"))["pid"] == gpu


async def test_control_of_units(daemon: Daemon) -> None:
    await daemon.start()
    await daemon.ready()
    code, view = await daemon.control("POST", "units/cpu/stop")
    assert (code, view["state"]) == (200, "stopped")
    async with clients(daemon) as session:
        await ask(session, "with one unit")
    code, view = await daemon.control("POST", "units/cpu/start")
    assert (code, view["state"], view["epoch"]) == (200, "ready", 2)
    code, logs = await daemon.control("GET", "units/cpu/logs")
    assert code == 200 and any(line.startswith("READY") for line in logs["lines"])
    code, answer = await daemon.control("GET", "units/cpu/command")
    assert "testbed.fake_unit" in answer["command"]
    code, answer = await daemon.control("POST", "drain", {"timeout": 1})
    assert (code, answer) == (200, {"in_flight": 0})


async def test_socket_activation_refuses_nobody_over_a_restart(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        daemon = Daemon(tmp_path)
        daemon.port = daemon.config["services"]["conductor"]["port"] = listener.getsockname()[1]
        try:
            await daemon.start([listener])
            await daemon.ready()
            async with clients(daemon) as session:
                answered = await _restart_under_load(daemon, listener, session)
            assert answered > 0
            daemon.signal(TERM)
            assert await daemon.ended() == 0
        finally:
            await daemon.close()


async def _restart_under_load(daemon: Daemon, listener: socket.socket, session: aiohttp.ClientSession) -> int:
    """Connections all the time; none may be refused or reset. What is in flight or waits is answered."""
    restarted = asyncio.Event()
    answers: list[int] = []

    async def knock() -> None:
        while not restarted.is_set():
            async with session.get("/health/live") as answer:
                answers.append(answer.status)
            await asyncio.sleep(0.005)

    knocking = [asyncio.ensure_future(knock()) for _ in range(4)]
    running = asyncio.ensure_future(ask(session, "across the restart", 200))
    while not (await daemon.status())["in_flight"]:
        await asyncio.sleep(0.01)
    daemon.signal(TERM)
    assert await daemon.ended() == 0
    await running
    await daemon.start([listener])
    await daemon.ready()
    restarted.set()
    await asyncio.gather(*knocking)
    assert set(answers) == {200}
    return len(answers)


async def test_foreground_greets_the_person(daemon: Daemon) -> None:
    await daemon.start(NOTIFY_SOCKET="")
    await daemon.until(lambda: b"Ctrl-C stops everything." in daemon.output)
    text = daemon.output.decode()
    assert f"curl http://127.0.0.1:{daemon.port}/v1/chat/completions" in text
    assert "starting unit unit=gpu" in text and "unit is ready unit=gpu seconds=" in text
    daemon.signal(TERM)
    assert await daemon.ended() == 0


async def test_nothing_grows_over_reloads_and_restarts(daemon: Daemon) -> None:
    await daemon.start()
    await daemon.ready()
    assert daemon.process
    process = psutil.Process(daemon.process.pid)

    async def round_trip(number: int) -> None:
        async with clients(daemon) as session:
            await asyncio.gather(*(ask(session, f"{number} {n}", 10) for n in range(4)))
        daemon.config["limits"] = {"max_queue": 100 + number}
        daemon.write()
        assert (await daemon.control("POST", "reload"))[0] == 200
        assert (await daemon.control("POST", "units/cpu/restart"))[0] == 200

    await round_trip(0)
    before: Any = None
    for number in (1, 2, 3):
        await round_trip(number)
        before = before or process.num_fds()
    await daemon.until(lambda: process.num_fds() <= before + 1)
    assert len(daemon.children()) == 2
