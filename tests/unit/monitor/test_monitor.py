"""SystemMonitor over a stats page and over a unit's /metrics, on a real socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest
from aiohttp import web

from syshaxd.config.types import MonitorConfig
from syshaxd.model.request import Endpoint, RequestInfo
from syshaxd.model.snapshot import InFlight, PdStatus, UnitLoad
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.monitor import SystemMonitor
from syshaxd.monitor.monitor import page_lags
from syshaxd.monitor.statspage import OFFSET, Page, encode
from syshaxd.topology import read_topology
from syshaxd.unitclient import UnitClient


class World:
    """A unit's page and metrics, and what supervisor, Runner and Engine would say."""

    def __init__(self, folder: Path) -> None:
        self.pool = folder / "cpu.pool"
        self.text: str | None = "vllm:num_requests_running 3\nvllm:gpu_cache_usage_perc 0.5\n"
        self.key = ""
        self.entries: list[InFlight] = []
        self.view = UnitView(
            "cpu", Role.CPU, "sysinfer", BackendKind.PROCESS, UnitState.READY, "", 1, pool_file=str(self.pool)
        )

    def views(self) -> tuple[UnitView, ...]:
        return (self.view,)

    def api_key(self, name: str) -> str:
        return "secret"

    def in_flight(self) -> tuple[InFlight, ...]:
        return tuple(self.entries)

    def pd_status(self) -> PdStatus:
        return PdStatus(False, "because")

    def write(self, **fields: int) -> None:
        empty = Page(*(0,) * 23)._replace(size=120, format=1, time_ns=time.monotonic_ns())
        page = encode(empty._replace(**fields))
        self.pool.write_bytes(bytes(OFFSET) + page + bytes(OFFSET - len(page)))

    async def metrics(self, http: web.Request) -> web.Response:
        self.key = http.headers.get("Authorization", "")
        return web.Response(text=self.text) if self.text is not None else web.Response(status=500)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    app = web.Application()
    app.router.add_get("/metrics", made.metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    made.view = replace(made.view, url=f"http://127.0.0.1:{port}")
    yield made
    await runner.cleanup()


@pytest.fixture
async def monitor(world: World) -> AsyncIterator[SystemMonitor]:
    client = UnitClient()
    await client.start()
    config = MonitorConfig(interval=0.01, metrics_interval=0.02, metrics_timeout=2.0)
    made = SystemMonitor(world, world, world, client, read_topology(), config, queued=lambda: 7)
    made.start()
    yield made
    await made.close()
    await client.close()


async def _load(monitor: SystemMonitor, wanted: Callable[[UnitLoad | None], bool]) -> UnitLoad | None:
    end = time.monotonic() + 10
    while True:
        load = monitor.snapshot().units[0].load
        if wanted(load):
            return load
        assert time.monotonic() < end, load
        await asyncio.sleep(0.005)


async def test_metrics_where_there_is_no_page(world: World, monitor: SystemMonitor) -> None:
    load = await _load(monitor, lambda load: load is not None)
    assert load and (load.source, load.running, load.kv_usage, load.waiting) == ("metrics", 3, 0.5, None)
    assert world.key == "Bearer secret"
    world.text = None
    await _load(monitor, lambda load: load is None)


async def test_the_page_comes_first_and_is_forgotten_with_its_process(world: World, monitor: SystemMonitor) -> None:
    world.write(running=9, kv_blocks_used=1, kv_blocks_total=4)
    load = await _load(monitor, lambda load: load is not None and load.source == "page")
    assert load and (load.running, load.kv_usage) == (9, 0.25)
    world.pool.unlink()
    world.text = None
    world.view = replace(world.view, epoch=2)
    assert monitor.snapshot().units[0].load is None, "numbers of a dead process"
    world.view = replace(world.view, state=UnitState.STARTING)
    assert monitor.snapshot().units[0].load is None


async def test_the_ledgers_counts_are_of_this_moment(world: World, monitor: SystemMonitor) -> None:
    info = RequestInfo("r", Endpoint.CHAT, "m", True, 10, None)
    world.entries = [InFlight(info, "cpu", 0.0, None, 100, 0), InFlight(info, "cpu", 0.0, 1.0, 10, 5)]
    snapshot = monitor.snapshot()
    unit = snapshot.units[0]
    assert (unit.in_flight, unit.in_flight_tokens, unit.queued, unit.queued_prompt_tokens) == (2, 115, 1, 100)
    assert (snapshot.queued, snapshot.pd, len(snapshot.in_flight)) == (7, PdStatus(False, "because"), 2)
    world.entries = [replace(world.entries[0], silent=True), world.entries[1]]
    unit = monitor.snapshot().units[0]
    assert (unit.in_flight, unit.queued) == (2, 0), "an answer that comes whole is not in prefill to its end"


async def test_the_host_is_seen(monitor: SystemMonitor) -> None:
    end = time.monotonic() + 10
    while monitor.snapshot().host.memory_available is None:
        assert time.monotonic() < end
        await asyncio.sleep(0.005)
    assert len(monitor.snapshot().host.cpu_percent_per_node) == len(read_topology().nodes)


def test_a_page_that_stands_still_while_the_metrics_move_is_not_believed() -> None:
    page = UnitLoad(at=10.0, source="page", generation_tokens=50)
    assert page_lags(page, UnitLoad(at=20.0, source="metrics", generation_tokens=80))
    assert not page_lags(page, UnitLoad(at=20.0, source="metrics", generation_tokens=50)), "idle"
    assert not page_lags(page, UnitLoad(at=10.2, source="metrics", generation_tokens=51)), "just a step later"
    assert not page_lags(page, UnitLoad(at=20.0, source="metrics"))
