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
from pathlib import Path
from typing import Any, Dict, List, Mapping

from syshaxd.cli.client import Client
from syshaxd.cli.exits import CommandError

from .engines import RealEngine
from .rig import ROOT, poll, run
from .unit_image import UNIT_IMAGE

MODEL = ROOT / "kernels/demo/syshax-demo.gguf"
PROMPT = "What is a glacier?"
ROUTES = ("accelerator", "cpu", "accelerator>cpu")


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
        self.config: Dict[str, Any] = {
            "services": {"conductor": {"port": self.port}},
            "models": {"default": "syshax-demo", "path": str(MODEL)},
            "control_socket": str(folder / "control.sock"),
            "state_dir": str(folder / "state"),
            "units": {"gpu": self.unit("gpu", role="accelerator"), "cpu": self.unit("cpu")},
            **sections,
            "pd": {"pool_dir": f"/dev/shm/{self.tag}", "pool_size": "24MiB", **sections.get("pd", {})},
        }
        self._process: Any = None

    def unit(self, name: str, container: Mapping[str, Any] = {}, **more: Any) -> Dict[str, Any]:
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
        poll("the reload took effect", lambda: len(re.findall("configuration", self.log)) > before, 30)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(90)
            self._process = None

    def close(self) -> None:
        """End it, units included."""
        if self._process is not None and self._process.poll() is None:
            self.end()
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

    def unit_status(self, name: str) -> Dict[str, Any]:
        """One unit as `syshax units show` tells it."""
        units = self.ask_control("units").get("units", [])
        return next((one for one in units if one["name"] == name), {})

    def ready(self, pd: bool = True) -> Dict[str, str]:
        """Container ids by unit, once both serve and the split was tried."""

        def probe() -> Dict[str, str]:
            status = self.ask_control("status")
            units = status.get("units", [])
            good = len(units) == 2 and all(unit["state"] == "ready" for unit in units)
            settled = good and (not pd or status["pd"]["enabled"])
            return {unit["name"]: unit["container"] for unit in units} if settled else {}

        try:
            return poll("both units are ready", probe, timeout=60, pause=0.1)
        except AssertionError as err:
            raise AssertionError(f"{err}\n{self.log[-4000:]}") from None

    def failed(self, name: str) -> Dict[str, Any]:
        """The unit once it stays down."""

        def probe() -> Dict[str, Any]:
            unit = self.unit_status(name)
            return unit if unit.get("state") == "failed" else {}

        return poll(f"unit {name} is failed", probe, timeout=60)

    # ---- clients

    def tokens(self, route: str = "", count: int = 40) -> List[int]:
        """A whole answer."""
        stream = Stream(self.port, route, count)
        stream.start()
        return stream.result()

    def stream(self, route: str, count: int = 600) -> "Stream":
        """A client that reads."""
        stream = Stream(self.port, route, count)
        stream.start()
        return stream


class Stream(threading.Thread):
    """One streamed completion: greedy, so that every unit gives the same tokens."""

    def __init__(self, port: int, route: str, count: int) -> None:
        super().__init__(daemon=True)
        self._port, self._route, self._count = port, route, count
        self._tokens: List[int] = []
        self._error = ""

    def run(self) -> None:
        """Read it to its end."""
        body = {
            "model": "syshax-demo", "prompt": PROMPT, "max_tokens": self._count, "min_tokens": self._count,
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
                    self._tokens += event["choices"][0].get("token_ids") or []
        except (OSError, ValueError, http.client.HTTPException) as err:
            self._error = repr(err)
        finally:
            connection.close()

    def at(self, count: int) -> "Stream":
        """Once so many tokens have come."""
        poll(f"{count} tokens", lambda: len(self._tokens) >= count or self._error, 60, pause=0.002)
        return self

    @property
    def flows(self) -> bool:
        """Whether it is still on."""
        return self.is_alive()

    def result(self) -> List[int]:
        """All tokens; fails where the stream broke."""
        self.join(120)
        assert not self._error and not self.is_alive(), self._error or f"stands at {len(self._tokens)} tokens"
        return self._tokens


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
