"""A whole daemon with fake units, and everything that stands around it: service manager, clients, administrator."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import aiohttp
import psutil
import yaml

from testbed.fake_unit.language import render, text_after

ROOT = Path(__file__).resolve().parents[1]
MODEL = "fake-model"
LAW = "0.001,0,0,0.001"


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def unit(role: str, *options: str, **more: Any) -> dict[str, Any]:
    """A fake unit in the configuration."""
    command = ["{python}", "-m", "testbed.fake_unit", "--port", "{port}", "--law", LAW, *options]
    return {
        "role": role, "kind": "sysinfer", "served_name": MODEL, "command": command, "cpu": {"affinity": "none"},
        "health": {"interval": "100ms"}, "restart": {"backoff": "100ms"}, "stop_timeout": "5s", **more,
    }  # fmt: skip


class Daemon:
    """`python -m syshaxd` over a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.config: dict[str, Any] = {
            "services": {"conductor": {"host": "127.0.0.1", "port": self.port}},
            "models": {"default": MODEL},
            "units": {"gpu": unit("accelerator"), "cpu": unit("cpu")},
            "pd": {"pool_dir": str(folder / "pool"), "pool_size": "1MiB", "self_check": False},
            "lifecycle": {"drain_timeout": "20s"},
            "control_socket": str(folder / "control.sock"),
            "state_dir": str(folder / "state"),
        }
        self.messages: list[str] = []
        self.output = b""
        self.process: asyncio.subprocess.Process | None = None
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(folder / "notify"))
        self._manager.setblocking(False)
        self._reading: list["asyncio.Future[Any]"] = []

    def write(self, text: str | None = None) -> None:
        """The configuration file, whole at once as an editor would."""
        file = self.folder / "etc" / "syshax.yaml"
        file.parent.mkdir(exist_ok=True)
        file.with_suffix(".new").write_text(text or yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
        file.with_suffix(".new").rename(file)

    async def start(self, listeners: Sequence[socket.socket] = (), **environ: str) -> None:
        """Start it; `ready` waits for it."""
        self.write()
        self.messages.clear()
        env = {
            **os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(self.folder / "notify"),
            "PYTHONWARNINGS": "error", **environ,
        }  # fmt: skip
        command: list[str] = [sys.executable, "-m", "syshaxd", "--config", str(self.folder / "etc")]
        if listeners:  # as systemd does: descriptors from 3 on, and the process' own id
            moves = "; ".join(f"os.dup2({sock.fileno()}, {3 + at})" for at, sock in enumerate(listeners))
            code = f"import os, sys; {moves}; os.environ.update(LISTEN_PID=str(os.getpid())); "
            command = [sys.executable, "-c", code + "os.execv(sys.argv[1], sys.argv[1:])", *command]
            env["LISTEN_FDS"] = str(len(listeners))
        self.process = await asyncio.create_subprocess_exec(
            *command, env=env, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            pass_fds=[sock.fileno() for sock in listeners],
        )  # fmt: skip
        self._reading = [asyncio.ensure_future(self._read()), asyncio.ensure_future(self._hear())]

    async def _read(self) -> None:
        assert self.process and self.process.stdout
        while data := await self.process.stdout.read(65536):
            self.output += data

    async def _hear(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.messages.append((await loop.sock_recv(self._manager, 65536)).decode())

    async def until(self, condition: Callable[[], bool], seconds: float = 90.0) -> None:
        """Poll with a deadline."""
        end = time.monotonic() + seconds
        while not condition():
            ended = self.process is not None and self.process.returncode is not None
            assert time.monotonic() < end, f"not in time; notify: {self.messages}; log:\n{self.output.decode()}"
            await asyncio.sleep(0.02 if not ended else 0.1)

    async def ready(self) -> None:
        """READY=1 has come and every unit is up."""
        await self.until(lambda: any("READY=1" in message.split("\n") for message in self.messages))
        while not all(one["state"] == "ready" for one in (await self.status())["units"]):
            await asyncio.sleep(0.02)

    def signal(self, number: int) -> None:
        """To the daemon."""
        assert self.process
        self.process.send_signal(number)

    async def ended(self, seconds: float = 90.0) -> int:
        """Its exit code."""
        assert self.process
        try:
            code = await asyncio.wait_for(self.process.wait(), seconds)
        except asyncio.TimeoutError:
            raise AssertionError(f"still running; log:\n{self.output.decode()}") from None
        await asyncio.wait_for(self._reading[0], 10)
        return code

    async def control(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One call to the control socket: (status, JSON)."""
        connector = aiohttp.UnixConnector(path=str(self.folder / "control.sock"))
        async with aiohttp.ClientSession(connector=connector) as session:
            async with session.request(method, f"http://localhost/v1/{path}", json=body) as answer:
                return answer.status, await answer.json()

    async def status(self) -> Any:
        """`syshax status --json`."""
        code, status = await self.control("GET", "status")
        assert code == 200
        return status

    async def unit(self, name: str) -> Any:
        """One unit's status."""
        return next(one for one in (await self.status())["units"] if one["name"] == name)

    def children(self) -> list[psutil.Process]:
        """Its units."""
        assert self.process
        return psutil.Process(self.process.pid).children()

    async def close(self) -> None:
        """End it, whatever state it is in."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        for reading in self._reading:
            reading.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)
        self._manager.close()
        transport = getattr(self.process, "_transport", None)
        if transport is not None:
            transport.close()

    def nothing_left(self) -> None:
        """No outbox, no control socket, no warning of something that was not closed or awaited."""
        assert b"ResourceWarning" not in self.output and b"never awaited" not in self.output
        assert [file.name for file in (self.folder / "pool").iterdir() if file.suffix == ".pool"] == []
        assert not (self.folder / "control.sock").exists()


@contextlib.asynccontextmanager
async def clients(daemon: Daemon, timeout: float = 120.0) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the API; each request on a connection of its own."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    limit = aiohttp.ClientTimeout(total=timeout)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{daemon.port}", connector=connector, timeout=limit) as session:
        yield session


async def ask(session: aiohttp.ClientSession, question: str, tokens: int = 20) -> None:
    """One streamed chat, which must come whole and right."""
    body: dict[str, Any] = {
        "model": MODEL, "max_tokens": tokens, "temperature": 0, "stream": True,
        "messages": [{"role": "user", "content": question}],
    }  # fmt: skip
    text = ""
    async with session.post("/v1/chat/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    assert text == text_after(render(body), tokens)


TERM, HUP, KILL = signal.SIGTERM, signal.SIGHUP, signal.SIGKILL
