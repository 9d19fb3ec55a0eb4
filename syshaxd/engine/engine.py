"""**Engine**: composition root of the daemon. Starts the parts in order, runs the cycles, reloads, stops in reverse."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from syshaxd import __version__
from syshaxd import log as logging
from syshaxd.backends.backend import Backend
from syshaxd.backends.container import ContainerBackend
from syshaxd.backends.container_spec import EngineKind
from syshaxd.backends.external import ExternalBackend
from syshaxd.backends.process import ProcessBackend
from syshaxd.backends.systemd import Systemctl, SystemdBackend
from syshaxd.conductor import Conductor
from syshaxd.conductor.control import ControlServer
from syshaxd.config import Source, diff, effective
from syshaxd.config.types import Config
from syshaxd.errors import BackendError, ControlError, SysHaxError
from syshaxd.metrics import MetricsService
from syshaxd.model.snapshot import PdStatus, UnitSnapshot
from syshaxd.model.unit import BackendKind
from syshaxd.monitor import SystemMonitor
from syshaxd.runner import InFlightLedger, Runner
from syshaxd.scheduler import Scheduler
from syshaxd.sdnotify import Notifier
from syshaxd.supervisor import Supervisor, desired_units
from syshaxd.supervisor.binding.apply import plan_json
from syshaxd.supervisor.binding.configured import binding_plan
from syshaxd.supervisor.binding.host_tree import HostTree
from syshaxd.supervisor.binding.shortfalls import binding_json
from syshaxd.tasks import TaskSet
from syshaxd.topology import read_topology
from syshaxd.unitclient import UnitClient

from .calibration import Calibrations
from .cleanup import Cleanup
from .folder_locks import FolderLocks
from .pd_guard import PdGuard
from .reload import Reloader
from .selfcheck import SelfCheck
from .service_manager import INTERVAL, Patience, Watchdog
from .status import host_json, status_line, unit_json

log = logging.Log("engine")
TICK = 0.05  # seconds between two scheduling cycles
STOP_PART = 15.0  # seconds for a part to stop
LEFT_OVER = 2.0  # seconds for streams that outlast the drain to get their error event
OK, FAILED = 0, 1


@dataclass(frozen=True)
class EngineSurroundings:
    """What Engine gets from outside, besides the configuration."""

    source: Source
    notifier: Notifier
    environ: Mapping[str, str]
    look_at_host: Callable[[], HostTree]  # at start, and again at each reload: CPUs go offline, cpusets change
    sockets: Sequence[Any] = ()
    systemctl: Systemctl | None = None  # where units are services of their own (docs/adr/0005)
    on_settled: Callable[["Engine"], None] = lambda engine: None  # once, when the first start is over
    on_level: Callable[[str], None] = lambda level: None  # log.level after a reload


class Engine:
    """Implements Control and PdGate. Owns the configuration in force, and the life of every part."""

    def __init__(self, config: Config, around: EngineSurroundings) -> None:
        self._config = config
        self._around = around
        self._host = around.look_at_host()
        self._plan = binding_plan(config, self._host)
        self._desired = desired_units(config, self._plan)
        self._began = time.monotonic()
        self._state = "starting"
        self._last_reload: Mapping[str, Any] = {}
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._exit_code = OK
        self._cleanup = Cleanup()
        self._tasks = TaskSet("engine", self._part_failed)
        self._reloader = Reloader(self._reload_once)
        self._compose()

    def _compose(self) -> None:
        config, around = self._config, self._around
        self._client = UnitClient(config.limits.connect_timeout)
        self._ledger = InFlightLedger()
        self._metrics = MetricsService()
        self.supervisor = Supervisor(
            backends_for(config, around.systemctl),
            self._client,
            self._ledger.in_flight,
            around.environ,
            self._part_failed,
            self._units_changed,
        )
        self._guard = PdGuard(self.supervisor, SelfCheck(self._client), lambda: self._config.pd)
        self._monitor = SystemMonitor(
            self.supervisor,
            self._ledger,
            self._guard,
            self._client,
            read_topology(),
            config.monitor,
            lambda: self._ledger.queued,
        )
        self._scheduler = Scheduler(config)
        self._calibrations = Calibrations(self._scheduler.calibrate)
        self._runner = Runner(
            self._client, self.supervisor, self._monitor, self._scheduler, self._metrics, self._ledger, config
        )
        self.conductor = Conductor(
            self._runner, self._client, self.supervisor, self._monitor, self._metrics, self._ledger, config
        )
        self._control = ControlServer(self)

    # ---- life

    async def run(self) -> int:
        """Start, serve until asked to stop, stop; the exit code. Raises SysHaxError when the start fails."""
        try:
            await self._start()
            await self._stop.wait()
            await self._drain_for_stop()
        finally:
            self._around.notifier.stopping("stopping")
            failed = await self._cleanup.run()
            log.info("stopped", message_id=logging.DAEMON_STOPPED, failed=",".join(failed) or None)
        return self._exit_code

    def stop(self) -> None:
        """Drain and stop; the second call: at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def request_reload(self) -> None:
        """SIGHUP."""
        self._reloader.request()

    async def _start(self) -> None:
        add = self._cleanup.add
        locks = FolderLocks()
        locks.take({"state_dir": self._config.state_dir, "pd.pool_dir": self._config.pd.pool_dir})
        add("folders", locks.release, STOP_PART)
        add("tasks", self._tasks.close, STOP_PART)
        await self._client.start()
        add("client", self._client.close, STOP_PART)
        self.supervisor.start()
        add("units", self._stop_units, self._patience())
        self._monitor.start()
        add("monitor", self._monitor.close, STOP_PART)
        add("runner", self._runner.close, STOP_PART)
        await self.conductor.start(self._around.sockets)
        add("conductor", self.conductor.close, STOP_PART)
        await self._control.start(self._config.control_socket)
        add("control", self._control.stop, STOP_PART)
        add("streams", self._end_streams, self._patience())
        self.supervisor.apply(self._desired)
        for name, work in (
            ("cycle", self._cycle()), ("pulse", self._pulse()), ("reload", self._reloader.run()),
            ("pd", self._guard.run()), ("ready", self._announce()),
        ):  # fmt: skip
            self._tasks.start(name, work)

    async def _announce(self) -> None:
        """READY when the API is up and one unit generates; the person at the terminal hears when all is settled."""
        views = self.supervisor.views
        await self.supervisor.wait_for(lambda: any(view.ready for view in views()))
        self._state = "running"
        self._around.notifier.ready(self._status_line())
        seconds = time.monotonic() - self._began
        log.info("ready", message_id=logging.DAEMON_READY, seconds=seconds, url=self.url)
        await self.supervisor.wait_for(lambda: all(view.settled for view in views()))
        while not self._guard.settled:
            await asyncio.sleep(TICK)
        self._around.on_settled(self)

    async def _drain_for_stop(self) -> None:
        self._state = "draining"
        self._around.notifier.stopping(f"draining {len(self._runner)} requests")
        if self._around.sockets:
            self.conductor.stop_listening()  # who connects now waits in the socket for the next daemon
        self.conductor.stop_admitting()
        timeout = self._config.lifecycle.drain_timeout
        self._around.notifier.extend_timeout(timeout + STOP_PART)
        drain = asyncio.ensure_future(self._runner.drain(timeout))
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        for waiter in (drain, hurry):
            waiter.cancel()
        await asyncio.wait({drain, hurry})

    async def _end_streams(self) -> None:
        """Streams that outlast the drain get an error event; those that still wait get theirs as room appears."""
        if len(self._runner):
            log.warning("ending requests that outlast the drain", requests=len(self._runner))
            self._runner.go_down()
            await self._runner.drain(LEFT_OVER)

    async def _stop_units(self) -> None:
        if self._hurry.is_set():
            await self.supervisor.kill()
        else:
            await self.supervisor.close(keep=await self._units_stay())

    async def _units_stay(self) -> bool:
        """Units that outlive the daemon stay when the configuration says so, or when it is only being restarted."""
        if self._config.lifecycle.on_stop == "keep" or self._around.systemctl is None:
            return self._config.lifecycle.on_stop == "keep"
        try:
            return await self._around.systemctl.restarting()
        except BackendError as err:
            log.warning("cannot tell a restart from a stop; stopping the units", reason=str(err))
            return False

    def _patience(self) -> float:
        return STOP_PART + sum(unit.stop_timeout + STOP_PART for unit in self._config.units)

    def _part_failed(self, name: str, error: BaseException) -> None:
        """A task that should not end did: better a clean restart than half a daemon."""
        log.error("a part of the daemon failed; stopping", part=name, error=error)
        self._exit_code = FAILED
        self._stop.set()

    # ---- cycles

    async def _cycle(self) -> None:
        while True:
            await self._runner.busy()
            self._runner.tick()
            await asyncio.sleep(TICK)

    async def _pulse(self) -> None:
        notifier = self._around.notifier
        watchdog, patience = Watchdog(notifier, time.monotonic()), Patience(notifier)
        while True:
            watchdog.beat(self.supervisor.turns, time.monotonic())
            if self._state == "starting":
                patience.beat(self.supervisor.views(), time.monotonic())
            notifier.status(self._status_line())
            await asyncio.sleep(INTERVAL)

    def _units_changed(self) -> None:
        self._guard.changed()
        self._calibrations.look(self._config.state_dir, self.supervisor.views())

    def _status_line(self) -> str:
        note = {"starting": "starting", "draining": "draining"}.get(self._state, "")
        if self._last_reload.get("error"):
            note = "reload rejected"
        return status_line(self._monitor.snapshot(), self._config.limits.max_queue, note)

    # ---- reload

    async def _reload_once(self) -> Mapping[str, Any]:
        notifier = self._around.notifier
        notifier.reloading()
        try:
            result = await self.load_and_apply()
            self._last_reload = {**result, "at": time.time()}
            log.info("configuration reloaded", message_id=logging.CONFIG_RELOADED, **_summary(result))
            return result
        except SysHaxError as err:
            self._last_reload = {"error": str(err), "at": time.time()}
            log.error("configuration rejected", message_id=logging.CONFIG_REJECTED, reason=str(err))
            raise
        finally:
            notifier.ready(self._status_line())

    async def load_and_apply(self) -> Mapping[str, Any]:
        """The configuration as the files have it now, in force as a whole, or an error and nothing changed.

        Whoever cuts it off finds the old one or the new one: between the last step that can fail or wait and the
        last assignment the loop does not run.
        """
        loop = asyncio.get_running_loop()
        wanted = await loop.run_in_executor(None, self._around.source.load)
        plan, config = diff(self._config, wanted), effective(self._config, wanted)
        host = await loop.run_in_executor(None, self._around.look_at_host)
        binding = await loop.run_in_executor(None, binding_plan, config, host)
        desired = desired_units(config, binding)
        await self.conductor.reconfigure(config)  # opens new listeners; the last step that can fail
        self._config, self._desired, self._plan, self._host = config, desired, binding, host
        self._client.reconfigure(config.limits.connect_timeout)
        self._scheduler.reconfigure(config)
        self._runner.reconfigure(config)
        self._monitor.configure(config.monitor)
        self._around.on_level(config.log.level)
        applied = self.supervisor.apply(desired)
        self._units_changed()
        return {
            **plan.to_json(),
            "added": list(applied.added),
            "removed": list(applied.removed),
            "replaced": list(applied.replaced),
        }

    # ---- Control

    @property
    def url(self) -> str:
        """Where clients find the API."""
        host, port = next(iter(self.conductor.addresses), (self._config.conductor.host, self._config.conductor.port))
        host = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def pd_status(self) -> PdStatus:
        """See PdGate."""
        return self._guard.pd_status()

    def status(self) -> Mapping[str, Any]:
        """See Control."""
        snapshot = self._monitor.snapshot()
        return {
            "version": __version__,
            "state": self._state,
            "uptime": round(time.monotonic() - self._began, 3),
            "url": self.url,
            "model": self._config.model_name,
            "config": str(self._around.source),
            "in_flight": len(self._runner),
            "queued": snapshot.queued,
            "pd": {"enabled": snapshot.pd.enabled, "reason": snapshot.pd.reason},
            "reload": dict(self._last_reload),
            "host": host_json(snapshot.host),
            "units": [self._unit_json(unit, snapshot.at) for unit in snapshot.units],
            "binding": plan_json(self._plan, self._host),
        }

    def _unit_json(self, unit: UnitSnapshot, now: float) -> Mapping[str, Any]:
        binding = self._plan.unit(unit.view.name)
        bound = binding_json(unit.view, binding, self._host) if binding is not None else None
        return {**unit_json(unit, now), "binding": bound}

    async def reload(self) -> Mapping[str, Any]:
        """See Control."""
        return await self._reloader.wait()

    async def drain(self, timeout: float | None) -> Mapping[str, Any]:
        """See Control."""
        self.conductor.stop_admitting()
        self._state = "draining"
        left = await self._runner.drain(self._config.lifecycle.drain_timeout if timeout is None else timeout)
        return {"in_flight": left}

    async def pd_check(self) -> Mapping[str, Any]:
        """See Control."""
        try:
            status = await self._guard.check_again()
        except asyncio.TimeoutError as err:
            raise ControlError(504, "the self-check is still under way; `syshax status` tells when it is over") from err
        return {"enabled": status.enabled, "reason": status.reason}

    async def unit_action(self, name: str, action: str) -> Mapping[str, Any]:
        """See Control."""
        await self.supervisor.action(name, action)
        snapshot = self._monitor.snapshot()
        unit = snapshot.unit(name)
        if unit is None:
            raise ControlError(404, f"unit {name} is not in the configuration any more")
        return self._unit_json(unit, snapshot.at)

    def unit_logs(self, name: str, lines: int) -> Sequence[str]:
        """See Control."""
        return self.supervisor.logs(name, lines)

    def unit_command(self, name: str) -> Sequence[str]:
        """See Control."""
        return self.supervisor.command(name)

    def explain(self, request_id: str) -> Mapping[str, Any]:
        """See Control."""
        return self._runner.explain(request_id)


def backends_for(config: Config, systemctl: Systemctl | None) -> Mapping[BackendKind, Backend]:
    """How each kind of unit is run here. Engines are reached when a unit needs them, not before."""
    process: Backend = ProcessBackend() if systemctl is None else SystemdBackend(config.state_dir, systemctl)
    return {
        BackendKind.PROCESS: process,
        BackendKind.EXTERNAL: ExternalBackend(),
        BackendKind.PODMAN: ContainerBackend(EngineKind.PODMAN, config.state_dir),
        BackendKind.DOCKER: ContainerBackend(EngineKind.DOCKER, config.state_dir),
    }


def _summary(result: Mapping[str, Any]) -> Mapping[str, str]:
    """The lists of a ReloadPlan in one word each."""
    return {name: ", ".join(str(item) for item in items) for name, items in result.items() if items}
