"""The whole daemon with two units in containers of a real Podman, the second in the IPC namespace of the first."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syshaxd.backends.container_spec import EngineKind
from testbed.container_engines import IMAGE, RealEngine
from testbed.processes import ROOT, run, wait_for

PACKAGES = Path(json.__file__).resolve().parents[1]


class Daemon:
    """syshaxd as a child, with a configuration of its own."""

    def __init__(self, folder: Path, engine: RealEngine) -> None:
        self.folder = folder
        self.pool = f"/dev/shm/{folder.name}"
        (folder / "syshax.yaml").write_text(json.dumps(self._config(engine)))
        self.process: Any = None

    def _config(self, engine: RealEngine) -> dict[str, Any]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return {
            "models": {"default": "fake-model", "path": "/usr/share"},
            "services": {"conductor": {"port": port}},
            "control_socket": str(self.folder / "control.sock"),
            "state_dir": str(self.folder / "state"),
            "pd": {"pool_dir": self.pool, "pool_size": "16m", "self_check": False},
            "units": {
                "gpu": {"role": "accelerator", **_unit("gpu", engine, self.folder.name, "shareable")},
                "cpu": _unit("cpu", engine, self.folder.name, "unit:gpu"),
            },
        }

    def start(self) -> "Daemon":
        words = (sys.executable, "-m", "syshaxd", "--config", str(self.folder))
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        return self

    def units(self) -> list[dict[str, Any]]:
        ask = (sys.executable, "-m", "syshaxd.cli", "units", "--json", "--socket", self.folder / "control.sock")
        answer = run(*ask, check=False)
        return list(json.loads(answer.stdout)["units"]) if answer.returncode == 0 else []

    def ready(self) -> dict[str, str]:
        """Container ids by unit, once both are ready."""

        def probe() -> dict[str, str]:
            units = self.units()
            good = len(units) == 2 and all(unit["state"] == "ready" for unit in units)
            return {unit["name"]: unit["container"] for unit in units} if good else {}

        return wait_for("both units are ready", probe, timeout=60, pause=0.3)

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(60)


def _unit(name: str, engine: RealEngine, tag: str, ipc: str) -> dict[str, Any]:
    python = Path(sys.executable).resolve()
    mounts = [f"{path}:{path}:ro" for path in dict.fromkeys((Path("/usr"), python.parents[1], Path(sys.prefix), ROOT))]
    site = next(path for path in sys.path if path.endswith("site-packages"))
    return {
        "kind": "vllm",
        "backend": "podman",
        "command": [str(python), "-m", "testbed.fake_unit", "--host", "{host}", "--port", "{port}", "--name", name],
        "env": {"PYTHONPATH": f"{ROOT}:{ROOT}/kernels/python:{site}", "PYTHONDONTWRITEBYTECODE": "1"},
        "cpu": {"affinity": "none"},
        "container": {
            "image": IMAGE, "socket": engine.socket, "name": f"{tag}-{name}", "ipc": ipc, "mounts": mounts,
            "pull": "never",
        },
    }  # fmt: skip


@pytest.fixture
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("syshax-containers")
    engine = RealEngine(EngineKind.PODMAN, folder).start()
    try:
        engine.import_image()
        one = Daemon(folder, engine).start()
        try:
            yield one
        finally:
            one.end(signal.SIGTERM)
            run("rm", "-rf", one.pool)
    finally:
        engine.close()


def test_adopted_after_kill_9_and_joined_again_after_the_donors_death(daemon: Daemon) -> None:
    first = daemon.ready()
    daemon.end(signal.SIGKILL)
    daemon.start()
    assert daemon.ready() == first, "the same containers: no weights were loaded anew"
    gpu = next(unit for unit in daemon.units() if unit["name"] == "gpu")
    os.kill(gpu["pid"], signal.SIGKILL)

    def both_new() -> bool:
        now = {unit["name"]: unit["container"] for unit in daemon.units() if unit["state"] == "ready"}
        return len(now) == 2 and not set(now.values()) & set(first.values())

    wait_for("the donor and then the joined unit are new", both_new, timeout=60, pause=0.3)
    daemon.end(signal.SIGTERM)
    names = run("podman", "ps", "--all", "--format", "{{.Names}}").stdout.split()
    assert not [name for name in names if name.startswith(daemon.folder.name)], "stopped and cleared away"
    daemon.start()
