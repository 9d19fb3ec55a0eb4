"""The whole daemon as a process, with two real sysinfer units on a small random model."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from syshaxd.monitor.statspage import OFFSET, decode

from .processes import wait_for

ROOT = Path(__file__).resolve().parents[1]
MODEL = "small"
ROUTES = ("accelerator", "cpu", "accelerator>cpu")
CONFIG = """\
services: {{conductor: {{host: 127.0.0.1, port: 0}}}}
models: {{default: {model}, path: "{path}"}}
units:
  gpu: {{role: accelerator, kind: sysinfer, cpu: {{affinity: none, threads: 1}}, restart: {{backoff: 100ms}}}}
  cpu: {{role: cpu, kind: sysinfer, cpu: {{affinity: none, threads: 1}}, restart: {{backoff: 100ms}}}}
pd: {{pool_dir: "{folder}/pool", pool_size: 64MiB}}
control_socket: "{folder}/control.sock"
state_dir: "{folder}/state"
"""
SAMPLE = re.compile(r"^(\S+?)(\{.*\})? (\S+)$")


@dataclass
class Daemon:
    """A running daemon. Asked over HTTP and with the `syshax` command."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    patience: float = 60.0  # seconds for an answer
    url: str = ""
    units: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self.folder / "log").read_text(errors="replace")

    def status(self) -> dict[str, Any]:
        """`syshax status --json`."""
        socket = str(self.folder / "control.sock")
        command = [sys.executable, "-m", "syshaxd.cli", "status", "--json", "--socket", socket]
        output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
        answer = json.loads(output) if output else {}
        self.units = {unit["name"]: unit for unit in answer.get("units", ())}
        return dict(answer)

    def ready(self) -> bool:
        """Both units serve and the split has been tried."""
        assert self.process.poll() is None, self.log
        if "Try:" not in self.log:
            return False
        self.url = str(self.status()["url"])
        return all(unit["state"] == "ready" for unit in self.units.values())

    def ask(self, path: str, body: Any = None, headers: Mapping[str, str] = {}, base: str = "") -> "Answer":
        """GET, or POST of a body (bytes, or a value for JSON)."""
        place = urlsplit(base or self.url)
        connection = http.client.HTTPConnection(place.netloc, timeout=self.patience)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps({"model": MODEL, **body}).encode()
        typed = {"Content-Type": "application/json", **headers}
        try:
            connection.request("GET" if data is None else "POST", path, data, typed)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def ask_unit(self, unit: str, path: str, body: Any = None) -> "Answer":
        """The same of a unit, with its secret."""
        secret = (self.folder / "state" / "units" / unit).read_text().strip()
        return self.ask(path, body, {"Authorization": f"Bearer {secret}"}, self.units[unit]["url"])

    def metrics(self, unit: str = "") -> dict[str, float]:
        """Samples by name and labels (without model_name and engine), of the daemon or of a unit."""
        answer = self.ask_unit(unit, "/metrics") if unit else self.ask("/metrics")
        found: dict[str, float] = {}
        for line in answer.body.decode().splitlines():
            match = SAMPLE.match(line)
            if match:
                labels = re.sub(r',?(model_name|engine)="[^"]*",?', "", match[2] or "")
                found[match[1] + ("" if labels == "{}" else labels)] = float(match[3])
        return found

    def pools_empty(self) -> bool:
        """No ticket of any unit holds a chunk."""
        pages = [decode((self.folder / "pool" / f"{unit}.pool").read_bytes()[OFFSET:]) for unit in self.units]
        return all(page is not None and page.pool_chunks_free == page.pool_chunks_total > 0 for page in pages)

    def idle(self) -> bool:
        """Nothing in flight, and no unit holds a request or a block."""
        held = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        units = [self.metrics(unit) for unit in self.units]
        gauges = [value for name, value in self.metrics().items() if name.startswith("syshax_requests_in_flight")]
        return not any(gauges) and all(sample[name] == 0 for sample in units for name in held)


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The generated text, streamed or not, chat or completion."""
        assert self.status == 200, self.body
        if not self.body.startswith(b"data:"):
            return choice_text(self.json["choices"][0])
        events = [line[6:] for line in self.body.decode().split("\n\n") if line.startswith("data: ")]
        assert events.pop() == "[DONE]"
        choices = [choice for event in events for choice in json.loads(event)["choices"]]
        return "".join(choice_text(choice) for choice in choices)


def choice_text(choice: Mapping[str, Any]) -> str:
    """Text of a choice, whatever the endpoint."""
    message = choice.get("message") or choice.get("delta") or {}
    return str(choice.get("text") or message.get("content") or "")


@contextlib.contextmanager
def running(model: Path, config: str = CONFIG, start_timeout: float = 60.0, patience: float = 60.0) -> Iterator[Daemon]:
    """A daemon on that model, ended at the end, with everything it started."""
    with tempfile.TemporaryDirectory(prefix="syshax-") as name:
        folder = Path(name)
        (folder / "pool").mkdir()
        (folder / "syshax.yaml").write_text(config.format(model=MODEL, path=model, folder=folder))
        command = [sys.executable, "-m", "syshaxd", "--config", str(folder / "syshax.yaml")]
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels/python'}", "PYTHONUNBUFFERED": "1"}
        with open(folder / "log", "wb") as out:
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=env)
        daemon = Daemon(process, folder, patience)
        try:
            wait_for("start", daemon.ready, start_timeout)
            yield daemon
        finally:
            stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, and SIGKILL where that does not help."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
