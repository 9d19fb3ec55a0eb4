"""SystemMonitor: looks at every unit and at the host on a beat of its own, never on the path of a request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Callable, Protocol

import psutil

from syshaxd.config.types import MonitorConfig
from syshaxd.errors import UnitError
from syshaxd.log import Log
from syshaxd.model.ports import Ledger, PdGate
from syshaxd.model.snapshot import HostLoad, InFlight, Snapshot, UnitLoad, UnitSnapshot
from syshaxd.model.unit import UnitView
from syshaxd.tasks import TaskSet
from syshaxd.topology import Topology
from syshaxd.unitclient import Target, UnitClient

from .devices import Devices, read_devices, vendor_tool
from .statspage import Page, PageReader
from .vllm_metrics import MetricsError, parse_load

log = Log("monitor")
DEVICES_INTERVAL = 10.0  # seconds between two calls of the vendor's tool, which takes a second itself
PAGELESS_INTERVAL = 1.0  # seconds between two /metrics of a unit that has no page
HOST_INTERVAL = 1.0  # seconds between two looks at the host, which nothing is decided by and which cost the most


class WatchedUnits(Protocol):
    """Part of Units that the monitor needs."""

    def views(self) -> tuple[UnitView, ...]:
        """All units."""

    def api_key(self, name: str) -> str:
        """The unit's secret."""


class SystemMonitor:
    """Publishes snapshots. Owns what was read of each unit; counts of requests come from the ledger at once."""

    def __init__(
        self,
        units: WatchedUnits,
        ledger: Ledger,
        gate: PdGate,
        client: UnitClient,
        topology: Topology,
        config: MonitorConfig,
        queued: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._units = units
        self._ledger = ledger
        self._gate = gate
        self._client = client
        self._topology = topology
        self._config = config
        self._queued = queued
        self._clock = clock
        self._watches: dict[str, _UnitWatch] = {}
        self._host = HostLoad()
        self._host_at = -HOST_INTERVAL
        self._devices: Devices | None = None
        self._tasks = TaskSet("monitor", _report)

    def configure(self, config: MonitorConfig) -> None:
        """New intervals, from the next beat on."""
        self._config = config

    def start(self) -> None:
        """Begin to look."""
        psutil.cpu_percent(percpu=True)  # the first call only sets the mark
        self._tasks.start("beat", self._run())
        tool = vendor_tool()
        if tool is not None:
            self._tasks.start("devices", self._watch_devices(tool))

    async def close(self) -> None:
        """Stop looking."""
        await self._tasks.close()
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()

    def snapshot(self) -> Snapshot:
        """See Snapshots."""
        in_flight = self._ledger.in_flight()
        by_unit: dict[str, list[InFlight]] = {}
        for entry in in_flight:
            by_unit.setdefault(entry.unit, []).append(entry)
        views = self._units.views()
        moving = [entry for entry in in_flight if entry.moving]
        units = tuple(_unit_snapshot(view, self._load(view), by_unit.get(view.name, ()), moving) for view in views)
        return Snapshot(
            at=self._clock(),
            units=units,
            in_flight=in_flight,
            queued=self._queued(),
            pd=self._gate.pd_status(),
            host=self._host,
        )

    def look(self) -> None:
        """One beat: read pages, begin polls that are due, forget units that are gone."""
        views = {view.name: view for view in self._units.views()}
        for name, watch in tuple(self._watches.items()):
            if name not in views or views[name].epoch != watch.epoch:
                self._watches.pop(name).close()
        for view in views.values():
            if view.ready:
                self._look_at(view)
        if self._clock() - self._host_at >= HOST_INTERVAL:
            self._host_at = self._clock()
            self._host = replace(host_load(self._topology), accelerators=self._devices)

    def _look_at(self, view: UnitView) -> None:
        watch = self._watches.get(view.name)
        if watch is None:
            watch = self._watches[view.name] = _UnitWatch(view)
        watch.read_page()
        due = watch.poll_due(self._clock(), self._config.metrics_interval)
        if due and not watch.polling:
            watch.polling = True
            self._tasks.start(f"metrics.{view.name}", self._poll(view, watch))

    def _load(self, view: UnitView) -> UnitLoad | None:
        watch = self._watches.get(view.name)
        return watch.load() if watch is not None and watch.epoch == view.epoch and view.ready else None

    async def _poll(self, view: UnitView, watch: _UnitWatch) -> None:
        target = Target(view.name, view.url, self._units.api_key(view.name))
        try:
            text = await self._client.metrics(target, self._config.metrics_timeout)
            watch.polled(parse_load(text, self._clock()), self._clock())
        except (UnitError, MetricsError) as err:
            watch.poll_failed(str(err), self._clock())
        finally:
            watch.polling = False

    async def _watch_devices(self, tool: Sequence[str]) -> None:
        while True:
            self._devices = await read_devices(tool)
            await asyncio.sleep(DEVICES_INTERVAL)

    async def _run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(self._config.interval)


class _UnitWatch:
    """What is known of one start of one unit."""

    def __init__(self, view: UnitView) -> None:
        self.name = view.name
        self.epoch = view.epoch
        self.polling = False
        self._reader = PageReader(view.pool_file) if view.pool_file else None
        self._seen: Page | None = None
        self._page: UnitLoad | None = None
        self._metrics: UnitLoad | None = None
        self._polled_at: float | None = None
        self._complained = False

    def read_page(self) -> None:
        page = self._reader.read() if self._reader is not None else None
        if page is None or self._reader is None or (page is self._seen and self._page and self._page.kv_token_bytes):
            return
        self._seen, self._page = page, replace(page.load(), kv_token_bytes=self._reader.kv_token_bytes())

    def poll_due(self, now: float, interval: float) -> bool:
        wait = interval if self._page is not None else min(interval, PAGELESS_INTERVAL)
        return self._polled_at is None or now - self._polled_at >= wait

    def polled(self, load: UnitLoad, now: float) -> None:
        self._metrics, self._polled_at = load, now
        missing = [name for name in ("running", "waiting", "kv_usage") if getattr(load, name) is None]
        if missing and self._page is None:
            self._complain("a unit's metrics lack signals", missing=",".join(missing))
        if page_lags(self._page, load):
            self._complain("a unit's stats page lags behind its metrics; using the metrics")

    def poll_failed(self, reason: str, now: float) -> None:
        self._polled_at = now
        if self._page is None:
            self._metrics = None
            self._complain("a unit's metrics can't be read", reason=reason)

    def load(self) -> UnitLoad | None:
        """The page, unless the cross-check found it behind."""
        return self._metrics if self._page is None or page_lags(self._page, self._metrics) else self._page

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _complain(self, message: str, **values: str) -> None:
        """Once a start of the unit."""
        if not self._complained:
            self._complained = True
            log.warning(message, unit=self.name, **values)


def page_lags(page: UnitLoad | None, metrics: UnitLoad | None) -> bool:
    """Whether the metrics, though read later, show work that the page does not."""
    if page is None or metrics is None or metrics.generation_tokens is None or metrics.at <= page.at:
        return False
    return metrics.generation_tokens > (page.generation_tokens or 0) and metrics.at - page.at > PAGELESS_INTERVAL


def host_load(topology: Topology) -> HostLoad:
    """Load of the host since the last call, percent of each node's CPUs."""
    percents: Mapping[int, float] = dict(enumerate(psutil.cpu_percent(percpu=True)))
    nodes = tuple(_mean([percents[cpu] for cpu in node.cpus if cpu in percents]) for node in topology.nodes)
    return HostLoad(
        cpu_percent=_mean(list(percents.values())),
        memory_available=psutil.virtual_memory().available,
        cpu_percent_per_node=nodes,
    )


def _unit_snapshot(
    view: UnitView, load: UnitLoad | None, entries: Sequence[InFlight], moving: Sequence[InFlight]
) -> UnitSnapshot:
    coming = [entry for entry in moving if entry.target == view.name != entry.unit]
    queued = [entry for entry in entries if entry.first_token is None and not entry.silent]
    return UnitSnapshot(
        view=view,
        load=load,
        in_flight=len(entries),
        in_flight_tokens=sum(entry.prompt_tokens + entry.output_tokens for entry in entries),
        queued=len(queued),
        queued_prompt_tokens=sum(entry.prompt_tokens for entry in queued),
        arriving=len(coming),
        arriving_tokens=sum(entry.prompt_tokens + entry.output_tokens for entry in coming),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _report(name: str, error: BaseException) -> None:
    log.error("task failed", task=name, error=error)
