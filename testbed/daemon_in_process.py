"""Conductor and Runner of this process over fake units that are processes of their own: real sockets, no supervisor."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from syshaxd.conductor import Conductor
from syshaxd.config.types import ConductorConfig, Config, LimitsConfig, LogConfig, SchedulerConfig, UnitConfig
from syshaxd.metrics import MetricsService
from syshaxd.model.snapshot import PdStatus, Snapshot, UnitLoad, UnitSnapshot
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.runner import InFlightLedger, Runner
from syshaxd.scheduler import Scheduler
from syshaxd.unitclient import UnitClient
from syshaxd.units import SYSINFER
from testbed.fake_unit.tickets import STATS, STATS_OFFSET

MODEL = "fake-model"
LIMITS = LimitsConfig(queue_timeout=5.0, request_timeout=30.0, first_token_timeout=2.0, stall_timeout=1.0)
CONFIG = Config(
    conductor=ConductorConfig(port=0),
    model_name=MODEL,
    limits=LIMITS,
    log=LogConfig(access=False),
    scheduler=SchedulerConfig(decider="threshold"),  # routes here must not depend on how fast this machine is
    units=(UnitConfig("gpu", Role.ACCELERATOR), UnitConfig("cpu", Role.CPU)),
)


@dataclass
class FakeUnit:
    """One process and what the daemon knows of it."""

    view: UnitView
    process: asyncio.subprocess.Process

    def send(self, number: int) -> None:
        """A signal."""
        self.process.send_signal(number)


async def start_unit(name: str, role: Role, pool: str, *options: str, epoch: int = 1) -> FakeUnit:
    """Starts a fake unit on a free port and waits until it listens."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "SYSHAX_POOL_DIR": pool, "SYSHAX_POOL_NAME": f"{name}.pool", "PYTHONPATH": str(root)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "testbed.fake_unit", "--name", name, *options,
        stdout=asyncio.subprocess.PIPE, env=environment, cwd=root,
    )  # fmt: skip
    assert process.stdout is not None
    word, port = (await asyncio.wait_for(process.stdout.readline(), 30)).split()
    assert word == b"READY"
    view = UnitView(
        name, role, "sysinfer", BackendKind.PROCESS, UnitState.READY, f"http://127.0.0.1:{int(port)}", epoch,
        MODEL, f"{pool}/{name}.pool", process.pid, abilities=replace(SYSINFER.abilities, max_context=8192),
    )  # fmt: skip
    return FakeUnit(view, process)


async def stop_unit(unit: FakeUnit) -> None:
    """Ends it, whatever state it is in."""
    if unit.process.returncode is None:
        unit.process.kill()
        unit.process.send_signal(signal.SIGCONT)
    await unit.process.wait()
    # The pipe's transport closes in a later turn of the loop.
    transport = getattr(unit.process, "_transport", None)
    if transport is not None:
        transport.close()


class World:
    """Units and snapshots as supervisor and monitor would give them."""

    def __init__(self, ledger: InFlightLedger) -> None:
        self.ledger = ledger
        self.units: dict[str, FakeUnit] = {}
        self.suspected: list[tuple[str, int, str]] = []
        self.pd = PdStatus()

    def views(self) -> tuple[UnitView, ...]:
        return tuple(unit.view for unit in self.units.values())

    def api_key(self, name: str) -> str:
        return ""

    def suspect(self, name: str, epoch: int, reason: str) -> None:
        self.suspected.append((name, epoch, reason))

    def change(self, name: str, **values: Any) -> None:
        """What the supervisor would publish."""
        self.units[name].view = replace(self.units[name].view, **values)

    def snapshot(self) -> Snapshot:
        entries = self.ledger.in_flight()
        units = tuple(self._unit(view, entries) for view in self.views())
        return Snapshot(time.monotonic(), units, entries, self.ledger.queued, self.pd)

    @staticmethod
    def _unit(view: UnitView, entries: Sequence[Any]) -> UnitSnapshot:
        mine = [entry for entry in entries if entry.unit == view.name]
        tokens = sum(entry.prompt_tokens + entry.output_tokens for entry in mine)
        return UnitSnapshot(view, read_load(view.pool_file), len(mine), tokens)


def read_load(path: str) -> UnitLoad | None:
    """The stats page; None while it is torn or missing."""
    try:
        with open(path, "rb") as file:
            file.seek(STATS_OFFSET)
            page = file.read(STATS.size + 4)
    except OSError:
        return None
    if len(page) < STATS.size + 4 or struct.unpack("<I", page[-4:])[0] != zlib.crc32(page[:-4]):
        return None
    f = STATS.unpack(page[:-4])
    return UnitLoad(
        at=f[4] / 1e9, source="page", running=f[5], waiting=f[6], kv_used=f[7] * f[9], kv_total=f[8] * f[9],
        kv_usage=f[7] / f[8], preemptions=f[12], generation_tokens=f[14], prompt_tokens=f[13], steps=f[15],
        step_tokens=f[10], step_seconds=f[11] / 1e9,
    )  # fmt: skip


class House:
    """`async with House(tmp_path, gpu=(...options), cpu=(...)) as house:`; units named gpu* are accelerators."""

    def __init__(self, folder: Path, config: Config = CONFIG, **units: Sequence[str]) -> None:
        self._folder = str(folder)
        self._options = units or {"gpu": (), "cpu": ()}
        self.config = config
        self.ledger = InFlightLedger()
        self.world = World(self.ledger)
        self.metrics = MetricsService()
        self.client = UnitClient()
        self.scheduler = Scheduler(config)
        self._tick: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "House":
        starting = [self.start(name, *options) for name, options in self._options.items()]
        await asyncio.gather(*starting)
        await self.client.start()
        self.runner = Runner(
            self.client, self.world, self.world, self.scheduler, self.metrics, self.ledger, self.config
        )
        self.conductor = Conductor(
            self.runner, self.client, self.world, self.world, self.metrics, self.ledger, self.config
        )
        await self.conductor.start()
        host, port = self.conductor.addresses[0]
        self.url = f"http://{host}:{port}"
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        self._tick = asyncio.ensure_future(self._cycle())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._tick is not None
        self._tick.cancel()
        await self.http.close()
        await self.conductor.close()
        await self.runner.close()
        await self.client.close()
        await asyncio.gather(*(stop_unit(unit) for unit in self.world.units.values()))

    async def start(self, name: str, *options: str, epoch: int = 1) -> None:
        """(Re)starts a unit under that name."""
        role = Role.ACCELERATOR if name.startswith("gpu") else Role.CPU
        self.world.units[name] = await start_unit(name, role, self._folder, *options, epoch=epoch)

    async def _cycle(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self.runner.tick()

    async def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> "Reply":
        """A request to the daemon, read to its end."""
        async with self.http.post(self.url + path, json=body, headers=headers) as response:
            return Reply(response.status, response.headers.copy(), await response.read())

    async def faults(self, unit: str, **values: Any) -> None:
        """Sets faults of a unit."""
        async with self.http.post(f"{self.world.units[unit].view.url}/fake/faults", json=values) as response:
            assert response.status == 200, await response.text()

    async def state(self, unit: str) -> dict[str, Any]:
        """What a unit did and holds."""
        async with self.http.get(f"{self.world.units[unit].view.url}/fake/state") as response:
            state: dict[str, Any] = await response.json()
            return state

    async def clear(self) -> None:
        """Between two tests: no faults, counters at 0."""
        self.world.suspected.clear()
        for unit in self.world.units.values():
            async with self.http.post(f"{unit.view.url}/fake/clear") as response:
                assert response.status == 200

    async def quiet(self, *units: str) -> None:
        """Waits until nothing is left anywhere: ledger, streams, units' requests and blocks, tickets."""

        async def busy() -> list[str]:
            left = [f"{len(self.runner)} streams"] if len(self.runner) or len(self.ledger) else []
            for name in units or tuple(self.world.units):
                state = await self.state(name)
                keys = ("running", "waiting", "open_streams", "kv_blocks_used", "tickets")
                left += [f"{name} {key} {state[key]}" for key in keys if state[key]]
            return left

        until = time.monotonic() + 3
        while left := await busy():
            assert time.monotonic() < until, left
            await asyncio.sleep(0.02)


@dataclass
class Reply:
    """A whole HTTP answer."""

    status: int
    headers: Any
    data: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body as JSON."""
        body: dict[str, Any] = json.loads(self.data)
        return body

    @property
    def events(self) -> list[dict[str, Any]]:
        """Server-sent events without the `[DONE]` that must be last."""
        lines = [line[6:] for line in self.data.decode().split("\n") if line.startswith("data: ")]
        assert lines and lines[-1] == "[DONE]", self.data[-200:]
        return [json.loads(line) for line in lines[:-1]]

    @property
    def text(self) -> str:
        """Content of the answer in either form, streamed or not."""
        if self.headers["Content-Type"].startswith("application/json"):
            choice = self.json["choices"][0]
            return str(choice["text"] if "text" in choice else choice["message"]["content"])
        return "".join(_piece(event["choices"][0]) for event in self.events if event.get("choices"))

    @property
    def finish(self) -> str | None:
        """finish_reason."""
        if self.headers["Content-Type"].startswith("application/json"):
            return str(self.json["choices"][0]["finish_reason"])
        reasons = [event["choices"][0]["finish_reason"] for event in self.events if event.get("choices")]
        return next((str(reason) for reason in reasons if reason), None)


def _piece(choice: dict[str, Any]) -> str:
    return str((choice["text"] if "text" in choice else choice["delta"].get("content")) or "")
