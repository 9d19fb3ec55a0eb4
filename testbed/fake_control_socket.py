"""A daemon that is nothing but its control socket: the real server, a scripted Control. Prints "ready" when it listens.

python -m testbed.fake_control_socket SOCKET [--hang] [--garbage] [--left N]: reload answers after a minute; no answer
is HTTP; a drain leaves N requests. The reload is bad while a file SOCKET.bad exists.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from syshaxd.conductor.control import ControlServer
from syshaxd.errors import ConfigError, ControlError, Problem

UNIT = {"kind": "sysinfer", "backend": "process", "age": 75.0, "in_flight": 2, "restarts": 0, "kv_usage": 0.25}


class Scripted:
    """Control with fixed answers."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._states = {"gpu": "ready", "cpu": "failed"}

    def status(self) -> Mapping[str, Any]:
        """A ready and a failed unit."""
        gpu = {**UNIT, "name": "gpu", "role": "accelerator", "url": "http://127.0.0.1:8001", "model": "m"}
        cpu = {**UNIT, "name": "cpu", "role": "cpu", "url": "http://127.0.0.1:8002", "model": "m", "max_model_len": 512}
        gpu.update(state=self._states["gpu"], reason="", last_log=[], max_model_len=2048)
        cpu.update(state=self._states["cpu"], reason="exited with code 3", last_log=["out of memory", "bye"])
        return {
            "version": "1.2.3", "state": "ready", "uptime": 7200.0, "url": "http://127.0.0.1:8010", "model": "m",
            "in_flight": 2, "queued": 1, "pd": {"enabled": False, "reason": "no CPU unit"},
            "reload": {"pending_restart": ["state_dir: /a -> /b"]}, "units": [gpu, cpu],
        }  # fmt: skip

    async def reload(self) -> Mapping[str, Any]:
        """Good, bad or slow."""
        if self._options.hang:
            await asyncio.sleep(60)
        if Path(f"{self._options.socket}.bad").exists():
            raise ConfigError([Problem("found 1; allowed is 2", "a.yaml", 3, 4, "x.y"), Problem("no unit", "b.yaml")])
        return {"applied": ["log.level: info -> debug"], "replaced": ["gpu"], "pending_restart": []}

    async def drain(self, timeout: float | None) -> Mapping[str, Any]:
        """Leaves as many as it was told to."""
        return {"in_flight": self._options.left, "timeout": timeout}

    async def pd_check(self) -> Mapping[str, Any]:
        """Splits stay off."""
        return {"enabled": False, "reason": "no CPU unit"}

    async def unit_action(self, name: str, action: str) -> Mapping[str, Any]:
        """Changes the state."""
        if name == "cpu" and action == "restart":
            raise ControlError(409, "unit cpu does not stop")
        self._states[name] = {"stop": "stopped"}.get(action, "ready")
        return next(unit for unit in self.status()["units"] if unit["name"] == name)

    def unit_logs(self, name: str, lines: int) -> Sequence[str]:
        """Numbered lines."""
        return [f"{name} line {i}" for i in range(200)][-lines:]

    def unit_command(self, name: str) -> Sequence[str]:
        """A command with a word that needs quotes."""
        return ["python3", "-m", "sysinfer", "--name", f"{name} unit"]

    def explain(self, request_id: str) -> Mapping[str, Any]:
        """One known request."""
        if request_id != "abc":
            raise ControlError(404, f"no request {request_id}")
        text = "request abc\n0.0 ms admitted"
        return {"events": [{"ms": 0.0, "event": "admitted"}], "text": text, "trace": {"traceEvents": []}}


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers like nothing that speaks HTTP."""
    await reader.readuntil(b"\r\n\r\n")  # a reset would be another failure than nonsense
    writer.write(b"\x00\x01 what?\r\n\r\n")
    writer.close()


async def serve(options: argparse.Namespace) -> None:
    """Until killed."""
    if options.garbage:
        await asyncio.start_unix_server(garbage, options.socket)
    else:
        await ControlServer(Scripted(options)).start(options.socket)
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Parse and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    parser.add_argument("--hang", action="store_true")
    parser.add_argument("--garbage", action="store_true")
    parser.add_argument("--left", type=int, default=0)
    os.umask(0o022)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
