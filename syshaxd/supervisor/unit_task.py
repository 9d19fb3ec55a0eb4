"""One supervised unit. Its task is the only writer of its life; everybody else posts events and reads the view."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, Callable

from syshaxd import log as logging
from syshaxd.backends.container_spec import EngineKind, command_line
from syshaxd.config.types import RestartConfig
from syshaxd.errors import BackendError, DeadlineError, UnitError
from syshaxd.model.snapshot import InFlight
from syshaxd.model.unit import Failure, UnitState, UnitView
from syshaxd.tasks import TaskSet, cancelled, within
from syshaxd.units import served_name

from . import recipes
from .binding.shortfalls import shortfalls
from .life import Effect, Life, LifeEvent, What, step
from .log_budget import RATE, LineBudget
from .probe import Activity, Deadline, OwnFailure, WrongModel, await_answer, said
from .start import Desired, Start, Tools, backend_of, begin, surroundings
from .transitions import tell_transition
from .vitals import Pulse, Vitals, pulse

log = logging.Log("supervisor")
unit_log = logging.Log("unit")
KEPT_LINES, SHOWN_LINES = 200, 50
DRAIN_POLL = 0.05
TELL_LINE = 1.0  # seconds between two looks at what a starting unit writes
_COMING = (UnitState.STARTING, UnitState.WARMING)
MAX_EVENTS = 256
KILL_TIMEOUT = 10.0
OWN_PAUSE = 1.0  # seconds after a call that the daemon itself could not make
DYING = 0.2  # a process that dies closes its connections before it is gone; its own end says more than their loss


class Unit:
    """Commands are `post`ed; `view` is what others may know."""

    def __init__(self, desired: Desired, tools: Tools, on_failure: Callable[[str, BaseException], None]) -> None:
        self.name = desired.config.name
        self.desired = desired
        self.lines: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        self._line_count = 0
        self._budget = LineBudget()
        self._line_told = 0.0
        self._failure: Failure | None = None
        self._tools = tools
        self._life = Life(since=tools.clock())
        self._start: Start | None = None
        self._launched = desired
        self._outbox_lost = False
        self._events: asyncio.Queue[LifeEvent] = asyncio.Queue(MAX_EVENTS)
        self._posted = 0
        self.taken = 0  # commands
        self._suspicion = ""
        self._suspected = asyncio.Event()
        self._activity: asyncio.Task[None] | None = None
        self._tasks = TaskSet(f"unit.{self.name}", on_failure)
        self.view = self._make_view()

    def post(self, what: What, reason: str = "") -> int:
        """A command; `taken` reaches the number returned when it has had its effect on the state.

        Raises BackendError when the unit has not taken the last 256 events.
        """
        self._put(LifeEvent(what, reason))
        self._posted += 1
        return self._posted

    def wish(self, desired: Desired) -> None:
        """What is wanted from now on. What runs is not touched: a RESTART brings it there."""
        self.desired = desired
        self.view = self._make_view()

    def suspect(self, epoch: int, reason: str) -> None:
        """Look at it now."""
        if epoch == self._life.epoch and self._life.state is UnitState.READY:
            self._suspicion = reason
            self._suspected.set()

    @property
    def api_key(self) -> str:
        """The secret of the running one; "" where it has none."""
        return self._start.api_key if self._start else ""

    @property
    def wanted(self) -> bool:
        """Whether it should run."""
        return self._life.wanted

    @property
    def outdated(self) -> bool:
        """Whether it runs something else than the configuration wants."""
        return self._life.wanted and self._launched.digest != self.desired.digest

    @property
    def of_other_release(self) -> bool:
        """Whether it was adopted and speaks another contract: it serves until it is its turn to be replaced."""
        return self._life.wanted and self._start is not None and self._start.of_other_release

    @property
    def stale(self) -> bool:
        """Whether it serves, but has to be made anew in its turn."""
        return self.of_other_release or self._outbox_lost

    @property
    def current(self) -> bool:
        """Whether it serves, or rests, as the configuration wants."""
        return not (self.outdated or self.stale) and (self.view.ready or not self._life.wanted)

    @property
    def command(self) -> Sequence[str]:
        """The command line of its start: the last one, or the one to come."""
        config = self.desired.config
        around = surroundings(self.desired, self._tools.environ)
        spec = self._start.spec if self._start else recipes.launch_spec(config, around)
        if spec.container is not None:
            return command_line(spec.container, EngineKind(config.backend.value))
        return spec.argv

    @property
    def donor(self) -> str:
        """The container whose IPC namespace the running one has joined."""
        return self._start.donor if self._start else ""

    async def run(self) -> None:
        """The unit's task. When it is cancelled, the unit is killed."""
        try:
            while True:
                await self._take(await self._events.get())
        finally:
            await self._tasks.close()
            if self._start is not None:
                with contextlib.suppress(DeadlineError):  # stuck in the kernel: nobody can end it
                    await within(KILL_TIMEOUT, f"kill of unit {self.name}", self._start.running.kill())
                self._bury()

    async def release(self) -> None:
        """Let go of a unit that outlives the daemon."""
        if self._start is not None:
            start, self._start = self._start, None
            await self._tasks.close()
            await start.running.release()

    # ---- events in, activities out

    async def _take(self, event: LifeEvent) -> None:
        before = self._life
        life, act = step(before, event, self._tools.clock(), self._restart_policy())
        if event.what is What.EXITED and event.epoch == before.epoch:
            self._bury()
        if act is not None:
            if self._activity is not None:
                await cancelled(self._activity)
            self._life = life
            if act is Effect.LAUNCH:
                self._launched = self.desired
            self._activity = self._tasks.start(act.value, self._activities(act, life))
        self._life = life
        if life.state is UnitState.FAILED and before.state is not UnitState.FAILED:
            self._failure = Failure(life.reason, time.time(), tuple(self.lines)[-SHOWN_LINES:])
        self.taken += event.epoch is None
        if life != before:
            tell_transition(self.name, before, life, event, self._start, self._tools.clock())
        self._publish()

    def _restart_policy(self) -> RestartConfig:
        """Nobody but its owner can bring an external unit back, so we never stop looking for it."""
        config = self.desired.config
        return config.restart if config.backend.starts else replace(config.restart, limit=sys.maxsize)

    def _activities(self, act: Effect, life: Life) -> Coroutine[Any, Any, None]:
        if act is Effect.AWAIT_RETRY:
            return self._await_retry(life)
        return {
            Effect.LAUNCH: self._launch,
            Effect.WARM_UP: self._warm_up,
            Effect.WATCH: self._watch,
            Effect.DRAIN: self._drain,
            Effect.TERMINATE: self._terminate,
            Effect.KILL: self._kill,
            Effect.NOTHING: self._nothing,
        }[act](life.epoch)

    async def _launch(self, epoch: int) -> None:
        try:
            start = self._start = await begin(self._launched, self._tools, self._on_line)
        except BackendError as err:
            return self._put(LifeEvent(What.EXITED, str(err), epoch, passing=err.passing))
        except OSError as err:  # of files and sockets: this unit's trouble, nobody else's
            return self._put(LifeEvent(What.EXITED, f"cannot be started: {err}", epoch))
        self._tasks.start("exit", self._await_exit(start, epoch))
        self._publish()
        config = self.desired.config
        deadline = Deadline(start.began, config.start_timeout, self.desired.idle_start)
        late = await await_answer(start.probe, deadline, self._signs, self._tools.clock)
        self._report(What.BROKEN if late else What.ANSWERS, epoch, late or "")

    async def _await_exit(self, start: Start, epoch: int) -> None:
        ended = await start.running.wait()
        self._put(LifeEvent(What.EXITED, ended.reason, epoch, own=not ended.asked))

    async def _warm_up(self, epoch: int) -> None:
        start, config = self._alive(), self.desired.config
        deadline = Deadline(start.began, config.start_timeout, config.start_timeout)
        error: str | None = None
        while True:
            left = max(deadline.left(self._tools.clock()), config.health.canary_timeout)
            try:
                error = await self._acquaint(start, left)
                break
            except OwnFailure as err:
                self._tell_own_failure(err)
                await asyncio.sleep(OWN_PAUSE)
        if error is None:
            start.see_outbox()
            for words in shortfalls(self._launched.around.binding, start.granted):
                log.warning("the unit is not bound as planned", unit=self.name, reason=words)
        self._report(What.BROKEN if error else What.WARM, epoch, error or "")

    async def _acquaint(self, start: Start, left: float) -> str | None:
        """What it serves and can do, and a real generation; returns why not."""
        kind, timeout = self._launched.kind, self.desired.config.health.timeout
        try:
            card = await start.probe.card(timeout)
            start.abilities, start.granted = await start.probe.abilities(kind.abilities, card, timeout), card.granted
            return await start.probe.warm_up_error(kind.warm_ups, left)
        except WrongModel as err:
            return str(err)
        except UnitError as err:
            return said(err)

    def _tell_own_failure(self, err: OwnFailure) -> None:
        log.warning("the unit could not be asked, which is not its fault", unit=self.name, reason=str(err))

    async def _watch(self, epoch: int) -> None:
        vitals, reason = Vitals(self._tools.clock()), None
        self._suspected.clear()
        while reason is None:
            suspicion = await self._beat()
            try:
                reason = await self._examine(vitals, suspicion)
            except OwnFailure as err:
                self._tell_own_failure(err)
                await asyncio.sleep(OWN_PAUSE)
        self._report(What.BROKEN, epoch, reason)

    async def _beat(self) -> str:
        """Wait for the next look; returns the suspicion that cut it short, or ""."""
        waiter = asyncio.ensure_future(self._suspected.wait())
        try:
            await asyncio.wait({waiter}, timeout=self.desired.config.health.interval)
        finally:
            waiter.cancel()
        suspicion, self._suspicion = self._suspicion, ""
        self._suspected.clear()
        return suspicion

    async def _examine(self, vitals: Vitals, suspicion: str) -> str | None:
        start, health, clock = self._alive(), self.desired.config.health, self._tools.clock
        if suspicion:
            log.warning("unit is under suspicion", unit=self.name, reason=suspicion)
        reason = vitals.saw_pulse(self._pulse(start), clock(), self.desired.stall_timeout)
        self._look_at_outbox(start)
        if reason is None:
            error = await start.probe.health_error(health.timeout)
            reason = vitals.saw_health(error, health, bool(suspicion))
        if reason is None and vitals.answers and vitals.canary_due(clock(), health, bool(suspicion)):
            began = clock()
            error = await start.probe.generation_error(health.canary_timeout)
            vitals.saw_pulse(self._pulse(start), clock(), self.desired.stall_timeout)
            reason = vitals.saw_canary(error, began, clock())
        return f"{reason} (traffic: {suspicion})" if reason and suspicion else reason

    def _look_at_outbox(self, start: Start) -> None:
        if not self._outbox_lost and start.outbox_lost():
            self._outbox_lost = True
            log.warning("the unit's outbox is gone or damaged; it is replaced", unit=self.name, path=start.pool_file)
            self._publish()

    async def _drain(self, epoch: int) -> None:
        """Those who have left may still have to fetch their KV: a vLLM writes it after their streams' end."""
        give_up = self._tools.clock() + self.desired.drain_timeout
        while any(self.name in (e.unit, e.kept_by) for e in self._tools.in_flight()) and self._tools.clock() < give_up:
            await asyncio.sleep(DRAIN_POLL)
        self._report(What.DRAINED, epoch)

    async def _terminate(self, epoch: int) -> None:
        if self._start is None:
            return self._report(What.EXITED, epoch, "stopped before it ran")
        await self._start.running.stop(self.desired.config.stop_timeout)

    async def _kill(self, epoch: int) -> None:
        if self._start is None:
            return self._report(What.EXITED, epoch, "stopped before it ran")
        running = self._start.running
        with contextlib.suppress(DeadlineError):
            await within(DYING, f"end of unit {self.name}", running.wait())
        await running.kill()

    async def _await_retry(self, life: Life) -> None:
        await asyncio.sleep(max(0.0, (life.retry_at or 0.0) - self._tools.clock()))
        self._report(What.RETRY, life.epoch)

    async def _nothing(self, epoch: int) -> None:
        """No process, nothing to do."""

    # ---- what is seen of it

    def _alive(self) -> Start:
        if self._start is None:
            raise RuntimeError(f"unit {self.name} has no process in state {self._life.state.value}")
        return self._start

    def _signs(self) -> Activity:
        return Activity(self._line_count, self._start.running.activity() if self._start else None)

    def _entries(self) -> Sequence[InFlight]:
        return [entry for entry in self._tools.in_flight() if entry.unit == self.name]

    def _pulse(self, start: Start) -> Pulse:
        return pulse(start.page.read() if start.page else None, self._entries())

    def _on_line(self, line: str) -> None:
        self.lines.append(line)
        self._line_count += 1
        now = self._tools.clock()
        if self._life.state in _COMING and now - self._line_told > TELL_LINE:
            self._line_told = now
            self._publish()
        if not backend_of(self._launched.config, self._tools).capabilities.keeps_log:
            self._log_line(line, self._budget.take(now))

    def _log_line(self, line: str, missed: int | None) -> None:
        if missed:
            unit_log.warning(f"lines left out: it writes more than {RATE:g} a second", unit=self.name, lines=missed)
        if missed is not None:
            unit_log.info(line, unit=self.name)

    # ---- state

    def _put(self, event: LifeEvent) -> None:
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull as err:
            raise BackendError(f"unit {self.name} does not take commands; see the log") from err

    def _report(self, what: What, epoch: int, reason: str = "") -> None:
        self._put(LifeEvent(what, reason, epoch))

    def _bury(self) -> None:
        """The process is gone: nobody shall find its outbox."""
        self._outbox_lost = False
        if self._start is not None:
            self._start.bury()
        self._start = None

    def _publish(self) -> None:
        self.view = self._make_view()
        self._tools.changed()

    def _pending(self) -> str:
        if self.of_other_release and self._start is not None:
            return f"replace: version {self._start.contract or '0'} of the handoff contract, wanted {recipes.CONTRACT}"
        if self._outbox_lost:
            return "replace: its outbox is gone or damaged"
        return "replace: the configuration changed" if self.outdated else ""

    def _make_view(self) -> UnitView:
        config, life, start = self._launched.config, self._life, self._start
        return UnitView(
            name=self.name,
            role=config.role,
            kind=config.kind,
            backend=config.backend,
            state=life.state,
            url=start.spec.url if start else "",
            epoch=life.epoch,
            model=start.probe.model if start else served_name(config, self._launched.around.model_name),
            max_num_seqs=config.max_num_seqs,
            max_step_tokens=config.max_num_batched_tokens,
            granted=start.granted if start else None,
            abilities=start.abilities if start else self._launched.kind.abilities,
            pool_file=start.pool_file if start else "",
            nixl=self._launched.kind.uses_nixl(self._launched.around),
            pid=start.running.pid if start else None,
            container=start.running.container if start else "",
            since=life.since,
            restarts=max(0, life.epoch - 1),
            reason=life.reason,
            last_log=self._last_log(),
            last_failure=self._failure,
            digest=self._launched.digest,
            pending=self._pending(),
        )

    def _last_log(self) -> tuple[str, ...]:
        """Evidence of a failed unit; what one on its way up does."""
        shown = {UnitState.FAILED: SHOWN_LINES, UnitState.STARTING: 1, UnitState.WARMING: 1}.get(self._life.state, 0)
        return tuple(self.lines)[-shown:] if shown else ()
