"""Supervisor: all units of the daemon, and the one loop that brings them to what the configuration wants."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Callable

from syshaxd.backends.backend import Backend
from syshaxd.config.types import Config, UnitConfig
from syshaxd.errors import BackendError, ControlError, DeadlineError
from syshaxd.model.snapshot import InFlight
from syshaxd.model.unit import BackendKind, UnitState, UnitView
from syshaxd.tasks import TaskSet, cancelled, within
from syshaxd.unitclient import UnitClient
from syshaxd.units import Surroundings

from .binding.binding_plan import Binding, BindingPlan
from .life import What
from .replacing import Replacements, Standing
from .start import Desired, Tools
from .unit_container import container_name, donor_of
from .unit_task import Unit

RECONCILE = 1.0  # seconds between two looks when nothing happens
STOP_MARGIN = 5.0  # seconds beyond a unit's own timeouts until it is given up


@dataclass(frozen=True)
class Applied:
    """What a new configuration means for the units, by name."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    replaced: tuple[str, ...]


def desired_units(config: Config, planned: BindingPlan) -> tuple[Desired, ...]:
    """What to run. Pure."""
    return tuple(_desired(config, unit, planned.unit(unit.name) or Binding(unit.name)) for unit in config.units)


def _desired(config: Config, unit: UnitConfig, binding: Binding) -> Desired:
    donor = next((container_name(other) for other in config.units if other.name == donor_of(unit)), "")
    around = Surroundings(
        model_name=config.model_name,
        pool_dir=config.pd.pool_dir,
        pool_bytes=config.pd.pool_size,
        binding=binding,
        transport=config.kv.transport,
        side_channel_host=config.kv.side_channel_host,
        donor=donor,
    )
    return Desired(unit, around, config.state_dir, config.lifecycle.drain_timeout, config.limits.stall_timeout)


def _standing(unit: Unit) -> Standing:
    view = unit.view
    return Standing(unit.name, unit.desired.digest, view.ready, view.settled, unit.outdated, unit.stale)


class Supervisor:
    """Implements Units. Owns the set of units; each unit's task owns its state."""

    def __init__(
        self,
        backends: Mapping[BackendKind, Backend],
        client: UnitClient,
        in_flight: Callable[[], Sequence[InFlight]],
        environ: Mapping[str, str],
        on_failure: Callable[[str, BaseException], None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._tools = Tools(backends, client, in_flight, self._on_change, environ, self._donor)
        self._on_failure = on_failure
        self._tell_change = on_change
        self._units: dict[str, Unit] = {}  # configured ones in their order, then those that leave
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[str] = set()
        self._replacements = Replacements()
        self._wake = asyncio.Event()
        self._change = asyncio.Event()
        self._tasks = TaskSet("supervisor", on_failure)
        self.turns = 0  # of the reconcile loop: it lives while this grows

    # ---- Units

    def views(self) -> tuple[UnitView, ...]:
        """See Units."""
        return tuple(unit.view for unit in self._units.values())

    def api_key(self, name: str) -> str:
        """See Units."""
        return self._units[name].api_key if name in self._units else ""

    def suspect(self, name: str, epoch: int, reason: str) -> None:
        """See Units."""
        if name in self._units:
            self._units[name].suspect(epoch, reason)

    # ---- commands

    def start(self) -> None:
        """Begin to reconcile."""
        self._tasks.start("reconcile", self._reconcile())

    def apply(self, desired: Sequence[Desired]) -> Applied:
        """New wishes, in force at once; changed units are replaced one by one in the background."""
        names = [wish.config.name for wish in desired]
        added = tuple(name for name in names if name not in self._units or name in self._leaving)
        removed = tuple(name for name in self._units if name not in names and name not in self._leaving)
        for wish in desired:
            self._wish(wish)
        for name in removed:
            self._leaving.add(name)
            self._units[name].post(What.STOP, "not in the configuration any more")
        self._units = {name: self._units[name] for name in (*names, *(n for n in self._units if n not in names))}
        replaced = tuple(name for name in names if name not in added and self._units[name].outdated)
        self._on_change()
        return Applied(added, removed, replaced)

    async def action(self, name: str, action: str, timeout: float | None = None) -> UnitView:
        """`start`, `stop` or `restart` a unit and wait until that is done. Raises ControlError."""
        unit = self._named(name)
        command = unit.post(What(action), f"{action} asked for")
        goal = UnitState.STOPPED if action == "stop" else UnitState.READY

        def done() -> bool:
            return unit.taken >= command and unit.view.state in (goal, UnitState.FAILED)

        try:
            await within(timeout or self._patience(unit), f"{action} of unit {name}", self.wait_for(done))
        except DeadlineError as err:
            raise ControlError(504, str(err)) from err
        return unit.view

    def logs(self, name: str, lines: int) -> Sequence[str]:
        """The last lines a unit wrote."""
        return tuple(self._named(name).lines)[-lines:] if lines > 0 else ()

    def command(self, name: str) -> Sequence[str]:
        """The command line of a unit."""
        return tuple(self._named(name).command)

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Until a change of some unit makes it true. Use with a deadline."""
        while not condition():
            self._change.clear()
            await self._change.wait()

    async def close(self, keep: bool = False) -> tuple[str, ...]:
        """Stop units in reverse order (or let go of those that outlive us); names those that had to be killed.

        Requests are not waited for: whoever stops the daemon has drained them before.
        """
        await self._tasks.close()
        stuck = []
        for name in reversed(self._start_order()):
            if not await self._close_unit(self._units[name], keep):
                stuck.append(name)
        self._units.clear()
        await self._close_backends()
        return tuple(stuck)

    async def kill(self) -> None:
        """Everything at once, without grace."""
        await self._tasks.close()
        runs, self._runs = tuple(self._runs.values()), {}
        for run in runs:
            run.cancel()
        if runs:
            await asyncio.wait(runs, timeout=STOP_MARGIN)
        self._units.clear()
        await self._close_backends()

    # ---- inside

    async def _close_backends(self) -> None:
        for backend in self._tools.backends.values():
            await backend.close()

    def _wish(self, wish: Desired) -> None:
        name = wish.config.name
        unit = self._units.get(name)
        if unit is None:
            unit = self._units[name] = Unit(wish, self._tools, self._on_failure)
            self._runs[name] = asyncio.get_running_loop().create_task(unit.run(), name=f"unit.{name}")
            self._runs[name].add_done_callback(self._run_ended)
            unit.post(What.START)
        elif name in self._leaving:
            self._leaving.discard(name)
            unit.post(What.START)
        unit.wish(wish)

    async def _reconcile(self) -> None:
        while True:
            self.turns += 1
            self._wake.clear()
            self._forget_gone()
            self._replace_next()
            self._follow_donors()
            waiter = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait({waiter}, timeout=RECONCILE)
            finally:
                waiter.cancel()

    def _replace_next(self) -> None:
        """Bring outdated units to their new configuration."""
        self._replacements.forget(unit.name for unit in self._units.values() if unit.current)
        self._replacements.forget(name for name in self._replacements.names if name not in self._units)
        for name in self._replacements.next(tuple(_standing(unit) for unit in self._units.values())):
            self._units[name].post(What.RESTART, self._units[name].view.pending or "new configuration")

    def _start_order(self) -> tuple[str, ...]:
        """Units in configuration order, but those that join another's IPC namespace behind that one."""
        return tuple(sorted(self._units, key=lambda name: bool(donor_of(self._units[name].desired.config))))

    async def _donor(self, name: str) -> str:
        """The container of a unit once it runs: its IPC namespace exists only then. Raises BackendError."""

        def view() -> UnitView | None:
            return self._units[name].view if name in self._units else None

        def decided() -> bool:
            now = view()
            return now is None or bool(now.container) or now.state in (UnitState.FAILED, UnitState.STOPPED)

        await self.wait_for(decided)
        found = view()
        if found is None or not found.container:
            state = found.state.value if found else "not configured"
            err = BackendError(f"its IPC namespace is that of unit {name}, which is {state}")
            err.passing = name in self._units and self._units[name].wanted  # no fault of who joins
            raise err
        return found.container

    def _follow_donors(self) -> None:
        """A restarted donor has a new /dev/shm; who joined the old one keeps that. Waits until the donor serves, so
        that one of the two always does."""
        for unit in self._units.values():
            donor = self._units.get(donor_of(unit.desired.config)) if unit.donor else None
            if donor is None or not donor.view.ready or donor.view.container == unit.donor:
                continue
            if unit.view.state in (UnitState.STARTING, UnitState.WARMING, UnitState.READY):
                unit.post(What.RESTART, f"unit {donor.name}, whose IPC namespace it had joined, was restarted")

    def _forget_gone(self) -> None:
        for name in tuple(self._leaving):
            if self._units[name].view.state is UnitState.STOPPED:
                self._leaving.discard(name)
                del self._units[name]
                self._tasks.start(f"forget.{name}", cancelled(self._runs.pop(name)))

    async def _close_unit(self, unit: Unit, keep: bool) -> bool:
        run = self._runs.pop(unit.name)
        backend = self._tools.backends.get(unit.desired.config.backend)
        polite = True
        if keep and backend is not None and backend.capabilities.survives_daemon:
            await unit.release()
        elif not run.done():
            unit.wish(replace(unit.desired, drain_timeout=0.0))
            unit.post(What.STOP)
            polite = await self._stopped(unit)
        await cancelled(run)
        return polite

    async def _stopped(self, unit: Unit) -> bool:
        grace = unit.desired.config.stop_timeout + STOP_MARGIN
        try:
            stopped = self.wait_for(lambda: unit.view.state is UnitState.STOPPED)
            await within(grace, f"stop of unit {unit.name}", stopped)
        except DeadlineError:
            return False
        return True

    def _named(self, name: str) -> Unit:
        if name not in self._units:
            known = ", ".join(self._units) or "none"
            raise ControlError(404, f"no unit named {name}; the units are: {known}")
        return self._units[name]

    def _patience(self, unit: Unit) -> float:
        config = unit.desired.config
        return unit.desired.drain_timeout + config.stop_timeout + config.start_timeout + STOP_MARGIN

    def _run_ended(self, run: asyncio.Task[None]) -> None:
        if not run.cancelled() and run.exception() is not None:
            self._on_failure(run.get_name(), run.exception() or BackendError("ended"))

    def _on_change(self) -> None:
        self._wake.set()
        self._change.set()
        self._tell_change()
