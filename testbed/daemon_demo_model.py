"""The whole daemon as a process, over a real pair of sysinfer units on the demo model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from syshaxd.cli.client import Client
from syshaxd.monitor.statspage import Page, PageReader

ROOT = Path(__file__).resolve().parents[1]
DEMO_MODEL = ROOT / "kernels/demo/syshax-demo.gguf"
LIBRARY = ROOT / "kernels/python/syshax_kernels/libsyshax_kernels.so"
MODEL = "syshax-demo"
START_S = 60.0


def demo_config(gpu: Mapping[str, Any] = {}, cpu: Mapping[str, Any] = {}, **sections: Any) -> dict[str, Any]:
    """Configuration of the embedded default, one thread a unit, with these additions."""
    return {
        "services": {"conductor": {"host": "127.0.0.1", "port": free_port()}},
        "models": {"default": MODEL, "path": str(DEMO_MODEL)},
        "units": {
            "gpu": {"role": "accelerator", "kind": "sysinfer", "cpu": {"affinity": "none", "threads": 1}, **gpu},
            "cpu": {"role": "cpu", "kind": "sysinfer", "cpu": {"affinity": "none", "threads": 1}, **cpu},
        },
        **sections,
        "pd": {"pool_size": "128MiB", **sections.get("pd", {})},
    }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Daemon:
    """`async with Daemon(tmp_path, config) as daemon:`; ready when every unit is and the split was tried."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._pool = tempfile.mkdtemp(prefix="syshax-test-", dir="/dev/shm")
        self.rewrite(config)
        self.url = f"http://127.0.0.1:{config['services']['conductor']['port']}"
        self.log_path = folder / "log"
        self._process: asyncio.subprocess.Process | None = None

    def rewrite(self, config: Mapping[str, Any]) -> None:
        """For the next start or reload."""
        folder = self._folder
        private = {"state_dir": str(folder / "state"), "control_socket": str(folder / "control.sock")}
        pd = {**config.get("pd", {}), "pool_dir": self._pool}
        (folder / "syshax.yaml").write_text(yaml.safe_dump({**config, **private, "pd": pd}))

    async def __aenter__(self) -> "Daemon":
        path = os.pathsep.join([str(ROOT), str(ROOT / "kernels/python")])
        with open(self.log_path, "wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "syshaxd", "--config", str(self._folder),
                stdout=log, stderr=log, cwd=self._folder, env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        try:
            await self.logged(r"Ctrl-C stops everything", START_S)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.http.close()
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), 40)
            except asyncio.TimeoutError:
                self._process.kill()
                await self._process.wait()
        shutil.rmtree(self._pool)

    @property
    def log(self) -> str:
        """All it has logged."""
        return self.log_path.read_text()

    async def logged(self, pattern: str, timeout: float = 20.0) -> "re.Match[str]":
        """Waits for a line."""
        until = time.monotonic() + timeout
        while True:
            found = re.search(pattern, self.log)
            if found:
                return found
            assert self._process is not None and self._process.returncode is None, self.log
            assert time.monotonic() < until, f"no {pattern!r} in:\n{self.log}"
            await asyncio.sleep(0.05)

    async def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Any:
        """The JSON answer, which must be 200."""
        async with self.http.post(self.url + path, json={"model": MODEL, **body}, headers=headers) as response:
            data = await response.read()
            assert response.status == 200, data
            return json.loads(data)

    def control(self, *parts: str) -> Any:
        """A command over the control socket."""
        return Client(str(self._folder / "control.sock"), START_S).post(*parts)

    async def split_is_on(self) -> None:
        """Waits until the daemon splits."""
        until, body = time.monotonic() + START_S, {"model": MODEL, "prompt": "x", "max_tokens": 2}
        while True:
            async with self.http.post(
                self.url + "/v1/completions", json=body, headers={"x-syshax-route": "accelerator>cpu"}
            ) as response:
                if response.status == 200:
                    return
            assert time.monotonic() < until, self.log
            await asyncio.sleep(0.1)

    def unit_urls(self) -> dict[str, str]:
        """Base URL by unit, of the last start."""
        return dict(re.findall(r"unit is ready unit=(\S+) .*url=(\S+)", self.log))

    async def unit_metrics(self, unit: str) -> dict[str, float]:
        """The unit's own counters, by name and source."""
        async with self.http.get(self.unit_urls()[unit] + "/metrics", headers=self._key(unit)) as response:
            assert response.status == 200
            text = await response.text()
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {re.sub(r',?model_name="[^"]*",?', "", name).replace("{}", ""): float(value) for name, value in pairs}

    def _key(self, unit: str) -> dict[str, str]:
        secret = (self._folder / "state/units" / unit).read_text().strip()
        return {"Authorization": f"Bearer {secret}"}

    async def explain(self, request_id: str) -> dict[str, Any]:
        """The timeline of a request."""
        connector = aiohttp.UnixConnector(str(self._folder / "control.sock"))
        async with aiohttp.ClientSession(connector=connector) as control:
            async with control.get(f"http://syshax/v1/requests/{request_id}") as response:
                assert response.status == 200, await response.text()
                story: dict[str, Any] = await response.json()
                return story

    def pages(self) -> list[Page]:
        """The stats pages of both units."""
        found = []
        for path in Path(self._pool).glob("*.pool"):
            with contextlib.closing(PageReader(str(path))) as reader:
                page = reader.read()
                assert page is not None
                found.append(page)
        return found

    async def metrics(self) -> dict[str, float]:
        """The daemon's own counters."""
        async with self.http.get(self.url + "/metrics") as response:
            text = await response.text()
        return {name: float(value) for name, value in (
            line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")
        )}  # fmt: skip
