"""A real daemon over two sysinfer units in containers of a real engine, and clients whose streams can be watched."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from syshaxd.cli.client import Client
from syshaxd.cli.exits import CommandError

from .container_engines import RealEngine
from .processes import ROOT, end_process, run, wait_for
from .unit_image import UNIT_IMAGE

MODEL = ROOT / "kernels/demo/syshax-demo.gguf"
PROMPT = "What is a glacier?"
ROUTES = ("accelerator", "cpu", "accelerator>cpu")
LONG = 1500  # tokens: some seconds


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class House:
    """syshaxd as a child with a folder of its own. `config` may be changed; `write` and `reload` bring it in force."""

    def __init__(self, folder: Path, engine: RealEngine, **sections: Any) -> None:
        self.folder, self.engine, self.tag = folder, engine, f"{folder.name}-{os.getpid()}"
        self.port = free_port()
        self.config: dict[str, Any] = {
            "services": {"conductor": {"port": self.port}},
            "models": {"default": "syshax-demo", "path": str(MODEL)},
            "control_socket": str(folder / "control.sock"),
            "state_dir": str(folder / "state"),
            "units": {"gpu": self.unit("gpu", role="accelerator"), "cpu": self.unit("cpu")},
            **sections,
            "pd": {"pool_dir": f"/dev/shm/{self.tag}", "pool_size": "24MiB", **sections.get("pd", {})},
        }
        self._process: Any = None

    def unit(self, name: str, container: Mapping[str, Any] = {}, **more: Any) -> dict[str, Any]:
        """One sysinfer unit in a container."""
        section = {"image": UNIT_IMAGE, "socket": self.engine.socket, "name": f"{self.tag}-{name}", "pull": "never"}
        return {
            "kind": "sysinfer", "backend": self.engine.kind.value, "cpu": {"affinity": "none", "threads": 1},
            "health": {"interval": "200ms"}, "restart": {"backoff": "100ms", "limit": 10}, "stop_timeout": "5s",
            "container": {**section, **container}, **more,
        }  # fmt: skip

    # ---- the daemon

    def start(self) -> "House":
        """Run it; `ready` waits for it."""
        (self.folder / "syshax.yaml").write_text(json.dumps(self.config))
        words = (sys.executable, "-m", "syshaxd", "--config", str(self.folder))
        environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/kernels/python"}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                words, stdout=log, stderr=log, cwd=self.folder, env=environ, start_new_session=True
            )
        return self

    @property
    def pid(self) -> int:
        """Of the daemon."""
        return int(self._process.pid)

    @property
    def log(self) -> str:
        """All it has said."""
        return (self.folder / "log").read_text(errors="replace")

    def reload(self) -> None:
        """New configuration, by SIGHUP."""
        before = len(re.findall("configuration", self.log))
        (self.folder / "syshax.new").write_text(json.dumps(self.config))
        (self.folder / "syshax.new").rename(self.folder / "syshax.yaml")
        self._process.send_signal(signal.SIGHUP)
        wait_for("the reload took effect", lambda: len(re.findall("configuration", self.log)) > before, 30)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            end_process(process, number, 90)

    def close(self) -> None:
        """End it, units included."""
        try:
            if self._process is not None and self._process.poll() is None:
                self.end()
        finally:
            names = self.engine.cli("ps", "--all", "--format", "{{.Names}}", check=False).split()
            for name in (name for name in names if name.startswith(self.tag)):
                self.engine.cli("rm", "--force", name, check=False)
            run("rm", "-rf", self.config["pd"]["pool_dir"], check=False)

    # ---- what it says of itself

    def ask_control(self, *parts: str) -> Any:
        """A GET on the control socket; {} while nobody answers."""
        try:
            return Client(str(self.folder / "control.sock")).get(*parts)
        except CommandError:
            assert self._process.poll() is None, self.log[-4000:]
            return {}

    def unit_status(self, name: str) -> dict[str, Any]:
        """One unit as `syshax units show` tells it."""
        units = self.ask_control("units").get("units", [])
        return next((one for one in units if one["name"] == name), {})

    def ready(self, pd: bool = True) -> dict[str, str]:
        """Container ids by unit, once both serve and the split was tried."""

        def probe() -> dict[str, str]:
            status = self.ask_control("status")
            units = status.get("units", [])
            good = len(units) == 2 and all(unit["state"] == "ready" for unit in units)
            settled = good and (not pd or status["pd"]["enabled"])
            return {unit["name"]: unit["container"] for unit in units} if settled else {}

        try:
            return wait_for("both units are ready", probe, timeout=60, pause=0.1)
        except AssertionError as err:
            raise AssertionError(f"{err}\n{self.log[-4000:]}") from None

    def failovers(self) -> int:
        """Streams that have gone on, from their last token, on another unit than the one that failed under them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found = re.search(r'^syshax_handoffs_total{kind="failover",result="ok"} (\S+)$', text, re.M)
        return int(float(found[1])) if found else 0

    def failed(self, name: str) -> dict[str, Any]:
        """The unit once it stays down."""

        def probe() -> dict[str, Any]:
            unit = self.unit_status(name)
            return unit if unit.get("state") == "failed" else {}

        return wait_for(f"unit {name} is failed", probe, timeout=60)

    # ---- clients

    def tokens(self, route: str = "", count: int = 40) -> list[int]:
        """A whole answer."""
        return self.stream(route, count).result()

    def stream(self, route: str, count: int = LONG, again: bool = False) -> "Stream":
        """A client that reads."""
        stream = Stream(self.port, route, count, again)
        stream.start()
        return stream


class Stream(threading.Thread):
    """A client of streamed completions: greedy, so that every unit gives the same tokens. `again`: it begins the next
    one whenever one is whole, until it is asked for the results."""

    def __init__(self, port: int, route: str, count: int, again: bool) -> None:
        super().__init__(daemon=True)
        self._port, self._route, self._length = port, route, count
        self._answers: list[list[int]] = []
        self._error = ""
        self._last = threading.Event()
        if not again:
            self._last.set()

    def run(self) -> None:
        """Read them to their ends."""
        try:
            self._read()
            while not self._last.is_set():
                self._read()
        except (OSError, ValueError, http.client.HTTPException) as err:
            self._error = repr(err)

    def _read(self) -> None:
        tokens: list[int] = []
        self._answers.append(tokens)
        body = {
            "model": "syshax-demo", "prompt": PROMPT, "max_tokens": self._length, "min_tokens": self._length,
            "temperature": 0, "stream": True, "return_token_ids": True,
        }  # fmt: skip
        headers = {"Content-Type": "application/json", **({"x-syshax-route": self._route} if self._route else {})}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise ValueError(f"{response.status}: {response.read()[:500]!r}")
            for line in response:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise ValueError(f"{event}")
                    tokens += event["choices"][0].get("token_ids") or []
        finally:
            connection.close()

    @property
    def count(self) -> int:
        """Tokens that have come so far."""
        return sum(map(len, self._answers))

    def at(self, count: int) -> "Stream":
        """Once so many tokens have come."""
        wait_for(f"{count} tokens", lambda: self.count >= count or self._error, 60, pause=0.002)
        assert not self._error, self._error
        return self

    def more(self, count: int = 20) -> "Stream":
        """Once so many more tokens have come."""
        return self.at(self.count + count)

    def results(self) -> list[list[int]]:
        """The tokens of each answer, the present one to its end; fails where one broke."""
        self._last.set()
        self.join(120)
        assert not self._error and not self.is_alive(), self._error or f"stands at {self.count} tokens"
        return self._answers

    def result(self) -> list[int]:
        """The same of a single answer."""
        (answer,) = self.results()
        return answer


def resident(pid: int) -> int:
    """Bytes of memory a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def alive(pid: int, seconds: float) -> bool:
    """Whether a process is still there after so long at most."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and Path(f"/proc/{pid}").exists():
        time.sleep(0.05)
    return Path(f"/proc/{pid}").exists()
