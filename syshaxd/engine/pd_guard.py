"""PdGuard: whether splits are allowed now. Runs the self-check at the start and after every replaced unit."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Callable

from syshaxd import log as logging
from syshaxd.config.types import PdConfig
from syshaxd.errors import UnitError
from syshaxd.model.ports import Units
from syshaxd.model.snapshot import PdStatus
from syshaxd.model.unit import Role, UnitState, UnitView
from syshaxd.tasks import cancelled

from .selfcheck import SelfCheck, Verdict, judge

log = logging.Log("engine")
RETRY, RETRY_MOST = 1.0, 1920.0  # seconds after a check that settled nothing; doubled each time up to the second
CHECK_TIMEOUT = 600.0  # seconds in which a check that was asked for must be over
NO_PAIR = "no pair of units is ready for a split"
Pairs = tuple[tuple[UnitView, UnitView], ...]


def pairs_of(views: Sequence[UnitView], *states: UnitState) -> Pairs:
    """Every READY accelerator unit with every READY CPU unit, where KV can go from one to the other. `states`: those
    that count like READY."""
    able = [view for view in views if (view.ready or view.state in states) and view.can_split]
    accelerators = [view for view in able if view.role is Role.ACCELERATOR]
    return tuple((first, second) for first in accelerators for second in able if second.role is Role.CPU)


def identity(pairs: Pairs) -> tuple[tuple[str, int], ...]:
    """Changes when a unit of some pair is another process than before."""
    return tuple((view.name, view.epoch) for pair in pairs for view in pair)


class PdGuard:
    """Implements PdGate. Its task is the only writer of the status."""

    def __init__(self, units: Units, check: SelfCheck, config: Callable[[], PdConfig], retry: float = RETRY) -> None:
        self._retry = retry
        self._units = units
        self._check = check
        self._config = config
        self._status = PdStatus(False, NO_PAIR)
        self._about: object = None  # the pairs and rules that are judged now, or were judged last
        self._complained: object = None
        self._wake = asyncio.Event()
        self.settled = False  # the newest pairs have been judged

    def pd_status(self) -> PdStatus:
        """See PdGate."""
        if not self._config().enabled:
            return PdStatus(False, "pd.enabled is false")
        return self._status

    def changed(self) -> None:
        """Units or configuration changed: what was judged before may not hold for them."""
        pairs = pairs_of(self._units.views())
        key = self._key(pairs)
        if key == self._about or self._is_leaving():
            return
        self.settled = False
        self._wake.set()
        if not pairs:
            self._status = PdStatus(False, NO_PAIR)
        elif self._config().self_check:
            self._status = PdStatus(False, "self-check under way")

    def _is_leaving(self) -> bool:
        """Whether the units are those that were judged, some of them draining: their streams may still leave."""
        return self.settled and self._key(pairs_of(self._units.views(), UnitState.DRAINING)) == self._about

    async def check_again(self) -> PdStatus:
        """Judges the present pairs anew. Raises TimeoutError when that takes more than CHECK_TIMEOUT."""
        self.settled, self._complained = False, None
        self._wake.set()
        await asyncio.wait_for(self._until_settled(), CHECK_TIMEOUT)
        return self.pd_status()

    async def _until_settled(self) -> None:
        while not self.settled:
            await asyncio.sleep(0.05)

    async def run(self) -> None:
        """Judge whenever the pairs change, and again after a while where that was not possible."""
        pause = 0.0  # before the same pairs are tried again
        while True:
            self._wake.clear()
            pairs = pairs_of(self._units.views())
            key = self._key(pairs)
            pause = min(2 * pause, RETRY_MOST) if key == self._about and pause else self._retry
            self._about = key
            possible = await self._unless_changed(self._judge(pairs, key))
            if possible is None:
                continue
            self.settled = True
            self.changed()
            pause = 0.0 if possible else pause
            await self._sleep(pause or None)

    async def _unless_changed(self, judging: Coroutine[Any, Any, bool]) -> bool | None:
        """Its result; None, and it is given up, where the pairs change meanwhile: a unit may have to go."""
        task = asyncio.ensure_future(judging)
        waiter = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
            if not task.done():
                await cancelled(task)
        return None if task.cancelled() else task.result()

    async def _sleep(self, seconds: float | None) -> None:
        waiter = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({waiter}, timeout=seconds)
        finally:
            waiter.cancel()

    def _key(self, pairs: Pairs) -> object:
        config = self._config()
        rules = (config.enabled, config.self_check, config.precision, config.top1_agreement, config.max_logprob_diff)
        return identity(pairs), rules

    async def _judge(self, pairs: Pairs, key: object) -> bool:
        """Every pair; the first one that fails decides. False where another try may say otherwise."""
        config = self._config()
        if not pairs:
            self._status = PdStatus(False, NO_PAIR)
            return True
        for prefill, decode in pairs:
            try:
                verdict = await self._check.measure(prefill, decode, self._keys((prefill, decode)), config.self_check)
            except UnitError as err:
                self._status = PdStatus(not config.self_check, f"self-check not possible: {err}")
                if self._is_news(key, str(err)):
                    pair = {"prefill": prefill.name, "decode": decode.name}
                    log.warning("the split could not be tried", **pair, reason=str(err))
                return False
            status = judge(verdict, config)
            if self._is_news(key, status.reason):
                tell(verdict, status)
            if not status.enabled:
                self._status = status
                return not verdict.passing
        self._status = PdStatus(True)
        return True

    def _is_news(self, key: object, reason: str) -> bool:
        """Once for the same units and reason, however often it is tried again; what agrees is always told."""
        before, self._complained = self._complained, (key, reason)
        return not reason or before != self._complained

    def _keys(self, views: Sequence[UnitView]) -> Mapping[str, str]:
        return {view.name: self._units.api_key(view.name) for view in views}


def tell(verdict: Verdict, status: PdStatus) -> None:
    """The result of the split in the log."""
    speak = log.info if status.enabled else log.error
    speak(
        "the split was tried: " + ("it agrees" if status.enabled else "PD is off"),
        message_id=logging.PD_CHECKED,
        prefill=verdict.prefill,
        decode=verdict.decode,
        top1=verdict.top1,
        difference=verdict.difference,
        loaded=verdict.loaded,
        prompt=verdict.prompt,
        reason=status.reason or None,
    )
