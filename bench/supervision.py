"""What supervision costs: READY of a daemon that adopts its units, and processor time while they idle.

    python -m bench.supervision [--engines podman,docker] [--rounds 5] [--idle 60] [--out FILE]

Needs root and the engines, as `make test-system` does: private services, an image made here, four sysinfer units in
containers of a real engine. Each round kills the daemon with SIGKILL and starts the next one; READY is the time from
its exec to READY=1. Idle: processor time of the daemon, and of the engine's own service, over the wall clock.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from syshaxd.backends.container_spec import EngineKind
from testbed.container_engines import RealEngine
from testbed.daemon_containers import House
from testbed.processes import run, wait_for
from testbed.unit_image import UNIT_IMAGE, unit_archive

from .origin import RESULTS, origin

RESULT = RESULTS / "supervision.json"
NAMES = ("gpu", "cpu", "cpu2", "cpu3")
READY_GOAL, IDLE_GOAL = 1.0, 0.01  # seconds; share of a core
SETTLE = 10.0  # seconds for the self-check and the first looks, before idleness is measured


class Row(House):
    """Four units, and the service manager's end of the notification socket."""

    def __init__(self, folder: Path, engine: RealEngine) -> None:
        super().__init__(folder, engine)
        role = {name: "accelerator" if name == "gpu" else "cpu" for name in NAMES}
        self.config["units"] = {name: self.unit(name, health={}, role=role[name]) for name in NAMES}
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "notify"))
        self.manager.settimeout(120)

    def timed_start(self) -> float:
        """Seconds from exec to READY=1."""
        os.environ["NOTIFY_SOCKET"] = str(self.folder / "notify")
        began = time.monotonic()
        self.start()
        while b"READY=1" not in self.manager.recv(65536).split(b"\n"):
            pass
        return time.monotonic() - began

    def settled(self) -> dict[str, str]:
        """Container ids once all serve."""

        def probe() -> dict[str, str]:
            units = self.ask_control("units").get("units", [])
            good = len(units) == len(NAMES) and all(unit["state"] == "ready" for unit in units)
            return {unit["name"]: unit["container"] for unit in units} if good else {}

        self.manager.settimeout(0)
        found = wait_for("all units are ready", probe, 120)
        try:
            while True:
                self.manager.recv(65536)
        except BlockingIOError:
            self.manager.settimeout(120)
        return found


def spent(pid: int) -> float:
    """Processor seconds of a process and its children, also those that have ended."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def idle(row: Row, seconds: float) -> dict[str, float]:
    """Share of a core that the daemon and the engine's service take."""
    assert row.engine.process is not None
    pids = {"daemon": row.pid, "engine_service": row.engine.process.pid}
    before, began = {name: spent(pid) for name, pid in pids.items()}, time.monotonic()
    time.sleep(seconds)
    wall = time.monotonic() - began
    return {name: round((spent(pid) - before[name]) / wall, 5) for name, pid in pids.items()}


def measure(engine: RealEngine, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """One engine."""
    row = Row(folder, engine)
    try:
        first = row.timed_start()
        containers = row.settled()
        adopted: list[float] = []
        for _ in range(rounds):
            row.end(signal.SIGKILL)
            adopted.append(row.timed_start())
            assert row.settled() == containers, "the same containers"
        time.sleep(SETTLE)
        shares = idle(row, seconds)
    finally:
        row.close()
        row.manager.close()
    return {
        "first_start_ready_s": round(first, 3),
        "adopted_ready_s": [round(one, 3) for one in adopted],
        "adopted_ready_median_s": round(statistics.median(adopted), 3),
        "idle_seconds": seconds,
        "idle_share_of_a_core": shares,
    }


def bare_start() -> float:
    """Median seconds of the interpreter with all that the daemon imports, as a floor for READY."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        run(sys.executable, "-c", "import syshaxd.__main__")
        times.append(time.monotonic() - began)
    return round(statistics.median(times), 3)


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engines", default="podman,docker")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    command = f"python -m bench.supervision --rounds {options.rounds} --idle {options.idle:g}"
    about = {"units": len(NAMES), "rounds": options.rounds, "imports_s": bare_start()}
    result: dict[str, Any] = {**origin(command), **about}
    with tempfile.TemporaryDirectory(prefix="syshax-bench-") as scratch:
        archive = unit_archive(Path(scratch))
        for name in options.engines.split(","):
            folder = Path(scratch) / name
            (folder / "house").mkdir(parents=True)
            engine = RealEngine(EngineKind(name), folder).start()
            try:
                engine.import_archive(archive, UNIT_IMAGE)
                result[name] = measure(engine, folder / "house", options.rounds, options.idle)
            finally:
                engine.close()
    found = [result[name] for name in options.engines.split(",")]
    result["goals"] = {
        "ready_under_1_s": all(one["adopted_ready_median_s"] < READY_GOAL for one in found),
        "idle_under_1_percent": all(one["idle_share_of_a_core"]["daemon"] < IDLE_GOAL for one in found),
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
