"""The container backend against an engine that fails on demand: a process of its own on a real unix socket."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest

from syshaxd.backends.backend import Exit, LaunchSpec, Running
from syshaxd.backends.container import ContainerBackend
from syshaxd.backends.container_spec import ContainerSpec, EngineKind
from syshaxd.backends.pidfd import has_ended
from syshaxd.errors import BackendError

ROOT = Path(__file__).resolve().parents[3]
SLEEPER = "echo up; exec sleep 600"


class Rig:
    """One fake engine and one backend."""

    def __init__(self, folder: Path) -> None:
        self.socket = str(folder / "engine.sock")
        self.backend = ContainerBackend(EngineKind.DOCKER, "/var/lib/here")
        self.lines: list[str] = []
        self.process: asyncio.subprocess.Process

    async def up(self, *faults: str) -> "Rig":
        words = [word for fault in faults for word in ("--fault", fault)]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "testbed.fake_container_engine", self.socket, *words,
            cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert await self.said() == "READY"
        return self

    async def said(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), 20)).decode().strip()

    async def signal(self, number: int) -> str:
        self.process.send_signal(number)
        return await self.said()

    def spec(self, script: str, **more: object) -> LaunchSpec:
        container = ContainerSpec("syshax-cpu", "here:1", ("sh", "-c", script), socket=self.socket)
        container = replace(container, **more)  # type: ignore[arg-type]
        return LaunchSpec("cpu", (), {}, "http://127.0.0.1:1", digest="d1", container=container)

    async def start(self, script: str, **more: object) -> Running:
        return await asyncio.wait_for(self.backend.start(self.spec(script, **more), self.lines.append), 20)

    async def close(self) -> None:
        await self.backend.close()
        self.process.terminate()
        await asyncio.wait_for(self.process.wait(), 20)


Up = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Up]:
    rig = Rig(tmp_path)
    yield rig.up
    await rig.close()


async def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "condition did not come true in time"
        await asyncio.sleep(0.01)


async def test_lines_and_exit_status(up: Up) -> None:
    rig = await up()
    unit = await rig.start("echo one; echo two >&2; exit 3")
    assert await asyncio.wait_for(unit.wait(), 20) == Exit(3)
    assert rig.lines == ["one", "two"]
    assert await rig.backend.adopt(rig.spec(""), rig.lines.append) is None, "it was cleared away"


async def test_stop_is_polite_and_then_not(up: Up) -> None:
    rig = await up()
    polite = await rig.start("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done")
    await _until(lambda: rig.lines == ["up"])
    assert await asyncio.wait_for(polite.stop(15), 20) == Exit(0, asked=True)
    deaf = await rig.start("trap '' TERM; echo deaf; while :; do sleep 0.05; done")
    await _until(lambda: rig.lines == ["up", "deaf"])
    ended = await asyncio.wait_for(deaf.stop(1), 20)
    assert ended == Exit(137, asked=True) and ended.reason == "killed by SIGKILL"


async def test_adoption_by_digest_keeps_the_container(up: Up) -> None:
    rig = await up()
    older = replace(rig.spec(SLEEPER), contract="0")
    first = await asyncio.wait_for(rig.backend.start(older, rig.lines.append), 20)
    await first.release()
    spec = replace(rig.spec(SLEEPER), contract="1")
    assert await rig.backend.adopt(replace(spec, digest="d2"), rig.lines.append) is None
    adopted = await rig.backend.adopt(replace(spec, url="http://127.0.0.1:9"), rig.lines.append)
    assert adopted is not None and adopted.running.container == first.container
    assert adopted.url == "http://127.0.0.1:1", "the port of its own start"
    assert adopted.contract == "0", "it is adopted all the same: whether it is replaced, the supervisor decides"
    second = await rig.start(SLEEPER)
    assert second.container != first.container
    assert (await asyncio.wait_for(adopted.running.wait(), 20)).code in (137, None), "a new start clears it away"
    await second.kill()


async def test_a_container_of_a_daemon_that_gave_no_name_label(up: Up) -> None:
    """It is the unit's where it has the unit's name; a copy of an image that was committed from it has not."""
    rig = await up("no-name-label")
    first, copy = await rig.start(SLEEPER), await rig.start(SLEEPER, name="a-copy")
    await first.release()
    await copy.release()
    adopted = await rig.backend.adopt(rig.spec(SLEEPER), rig.lines.append)
    assert adopted is not None and adopted.running.container == first.container
    await adopted.running.release()
    changed = replace(rig.spec(SLEEPER), digest="d2")
    assert await rig.backend.adopt(changed, rig.lines.append) is None
    second = await asyncio.wait_for(rig.backend.start(changed, rig.lines.append), 20)
    await _until(lambda: has_ended(first.pid or 0))
    assert copy.pid and not has_ended(copy.pid)
    await second.kill()
    os.kill(copy.pid, signal.SIGKILL)


async def test_another_daemons_container_is_left_alone(up: Up) -> None:
    rig = await up()
    ours = await rig.start(SLEEPER)
    other = ContainerBackend(EngineKind.DOCKER, "/var/lib/elsewhere")
    try:
        assert await other.adopt(rig.spec(SLEEPER), rig.lines.append) is None
    finally:
        await other.close()
    await ours.kill()


async def test_an_engine_that_is_away_ends_no_unit(up: Up) -> None:
    rig = await up()
    unit = await rig.start(SLEEPER)
    await _until(lambda: rig.lines == ["up"])
    ended = asyncio.ensure_future(unit.wait())
    assert await rig.signal(signal.SIGUSR1) == "AWAY"
    with pytest.raises(BackendError, match="cannot talk to the container engine"):
        await rig.backend.adopt(rig.spec(SLEEPER), rig.lines.append)
    assert not ended.done()
    assert await rig.signal(signal.SIGUSR2) == "READY"
    assert not ended.done() and unit.pid
    os.kill(unit.pid, signal.SIGKILL)
    assert (await asyncio.wait_for(ended, 20)).reason.startswith("killed by SIGKILL, probably out of memory")


async def test_out_of_memory_as_the_engine_tells_it(up: Up) -> None:
    unit = await (await up("oom")).start("kill -9 $$")
    assert "out of memory (the container engine saw it)" in (await asyncio.wait_for(unit.wait(), 20)).reason


async def test_a_process_that_is_gone_behind_the_engines_back(up: Up) -> None:
    rig = await up("deaf-wait")
    unit = await rig.start(SLEEPER)
    assert unit.pid
    os.kill(unit.pid, signal.SIGKILL)
    ended = await asyncio.wait_for(unit.wait(), 40)
    assert ended.reason == "ended; its exit status is unknown: its process is gone, and the engine did not notice"


async def test_a_log_that_is_cut_is_taken_up_again(up: Up) -> None:
    rig = await up("cut-logs")
    unit = await rig.start("echo first; sleep 1; echo second")
    await asyncio.wait_for(unit.wait(), 20)
    assert rig.lines[-1] == "second"


async def test_pull_tells_its_progress(up: Up) -> None:
    rig = await up()
    unit = await rig.start("exit 0", image="there:2")
    assert rig.lines[0] == "pulling there:2: 1.00 of 2.00 GB"
    await asyncio.wait_for(unit.wait(), 20)


@pytest.mark.parametrize(
    "fault, more, words",
    [
        ("pull-error", {"image": "there:2"}, "cannot pull there:2: manifest unknown; .*syshax image load"),
        ("pull-error", {"image": "there:2", "pull": "never"}, "is not here, and pull is never"),
        ("no-gpu", {"gpus": ("all",)}, "a GPU was asked for, but there is none in the container"),
        ("name-in-use", {}, "a container named syshax-cpu is there already and is not ours"),
        ("port-in-use", {}, "its port is taken"),
        ("garbage", {}, "expected JSON"),
        ("old-api", {}, r"API versions 1\.12 to 1\.24; expected"),
    ],
)
async def test_what_the_engine_refuses_says_what_to_do(up: Up, fault: str, more: object, words: str) -> None:
    rig = await up(fault)
    with pytest.raises(BackendError, match=words) as caught:
        await rig.start(SLEEPER, **more)  # type: ignore[arg-type]
    assert caught.value.__cause__ is not None or fault in ("pull-error", "no-gpu", "old-api")


async def test_the_wrong_engine_is_named(up: Up) -> None:
    rig = await up()
    podman = ContainerBackend(EngineKind.PODMAN, "/var/lib/here")
    try:
        with pytest.raises(BackendError, match="expected podman, found docker"):
            await podman.start(rig.spec(SLEEPER), rig.lines.append)
    finally:
        await podman.close()
