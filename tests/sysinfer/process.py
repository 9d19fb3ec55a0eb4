"""A sysinfer process of a test: started on a free port, asked over real sockets, always ended."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlsplit

START_S = 40.0
ANSWER_S = 40.0


def wait_for(what: str, check: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Polls `check` until it gives something true."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {timeout} s")


@dataclass
class Unit:
    """A running unit."""

    process: "subprocess.Popen[bytes]"
    url: str
    log: Path
    headers: Mapping[str, str]

    @classmethod
    @contextmanager
    def start(
        cls, model: Path, folder: Path, *options: str, pool: str = "", pool_bytes: int = 64 << 20, key: str = ""
    ) -> Iterator[Unit]:
        """Starts `sysinfer serve MODEL`; with `pool` as the owner of that file in `folder`."""
        log = folder / f"{pool or 'unit'}-{time.monotonic_ns()}.log"
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if pool:
            env.update(SYSHAX_POOL_DIR=str(folder), SYSHAX_POOL_NAME=pool, SYSHAX_POOL_BYTES=str(pool_bytes))
        command = [sys.executable, "-m", "sysinfer", "serve", str(model), "--port", "0", "--served-model-name", "demo"]
        with open(log, "wb") as out:
            process = subprocess.Popen([*command, *options], stdout=out, stderr=subprocess.STDOUT, env=env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        unit = cls(process, "", log, headers)
        try:
            unit.url = wait_for("readiness line", unit.ready_line, START_S)
            yield unit
        finally:
            process.kill()
            process.wait()

    def ready_line(self) -> str:
        assert self.process.poll() is None, self.log.read_text()
        found = re.search(r"sysinfer ready: (\S+)", self.log.read_text())
        return found.group(1) if found else ""

    def stop(self, timeout: float = 5.0) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=ANSWER_S)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}
    ) -> tuple[int, bytes]:
        """Status and body of an answer."""
        connection = self.connect()
        try:
            connection.request(method, path, body, {**self.headers, **headers})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post(self, path: str, body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] = {}) -> Any:
        """The JSON answer to a JSON body."""
        found, data = self.ask("POST", path, json.dumps({"model": "demo", **body}).encode(), headers)
        assert found == status, data
        return json.loads(data) if data else None

    def stream(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] = {}) -> list[Any]:
        """The events of a streamed answer, `[DONE]` checked and left out."""
        sent = json.dumps({"model": "demo", "stream": True, **body}).encode()
        status, data = self.ask("POST", path, sent, headers)
        assert status == 200, data
        events = [line[6:] for line in data.decode().split("\n\n") if line]
        assert events.pop() == "[DONE]"
        return [json.loads(e) for e in events]

    def metrics(self) -> dict[str, float]:
        """Sample (with its labels but model_name) to value."""
        _, data = self.ask("GET", "/metrics")
        found = {}
        for line in data.decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                found[re.sub(r"\{\}", "", re.sub(r',?model_name="[^"]*"', "", name).replace("{,", "{"))] = float(value)
        return found

    def idle(self) -> bool:
        """Whether it holds no request and no block."""
        m = self.metrics()
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        return all(m[n] == 0 for n in names)
