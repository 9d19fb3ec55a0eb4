"""PdGuard: whether splits are allowed now. Runs the self-check at the start and after every replaced unit."""

from __future__ import annotations

import asyncio
from typing import Callable, Mapping, Sequence

from syshaxd import log as logging
from syshaxd.config.types import PdConfig
from syshaxd.errors import UnitError
from syshaxd.model.ports import Units
from syshaxd.model.snapshot import PdStatus
from syshaxd.model.unit import Role, UnitView

from .selfcheck import SelfCheck, Verdict, judge

log = logging.Log("engine")
RETRY = 30.0  # seconds after a check that could not be carried out
Pairs = tuple[tuple[UnitView, UnitView], ...]


def pairs_of(views: Sequence[UnitView]) -> Pairs:
    """Every READY accelerator unit with every READY CPU unit, where KV can go from one to the other."""
    able = [view for view in views if view.ready and view.can_hand_over]
    accelerators = [view for view in able if view.role is Role.ACCELERATOR]
    return tuple((first, second) for first in accelerators for second in able if second.role is Role.CPU)


def identity(pairs: Pairs) -> tuple[tuple[str, int], ...]:
    """Changes when a unit of some pair is another process than before."""
    return tuple((view.name, view.epoch) for pair in pairs for view in pair)


class PdGuard:
    """Implements PdGate. Its task is the only writer of the status."""

    def __init__(self, units: Units, check: SelfCheck, config: Callable[[], PdConfig]) -> None:
        self._units = units
        self._check = check
        self._config = config
        self._status = PdStatus(False, "no pair of units is ready for a split")
        self._checked: object = None
        self._wake = asyncio.Event()
        self.settled = False  # the newest pairs have been judged

    def pd_status(self) -> PdStatus:
        """See PdGate."""
        if not self._config().enabled:
            return PdStatus(False, "pd.enabled is false")
        return self._status

    def changed(self) -> None:
        """Units or configuration changed: look again."""
        pairs = pairs_of(self._units.views())
        if self._key(pairs) != self._checked:
            self.settled = False
            if self._config().self_check or not pairs:
                self._status = PdStatus(False, "self-check under way" if pairs else "no pair of units is ready")
            self._wake.set()

    async def run(self) -> None:
        """Judge whenever the pairs change."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            pairs = pairs_of(self._units.views())
            key = self._key(pairs)
            if pairs and key != self._checked:
                carried_out = await self._judge(pairs)
                self._checked = key if carried_out else None
                if not carried_out:
                    asyncio.get_running_loop().call_later(RETRY, self._wake.set)
            else:
                self._checked = key
            self.settled = True
            self.changed()

    def _key(self, pairs: Pairs) -> object:
        config = self._config()
        rules = (config.enabled, config.self_check, config.precision, config.top1_agreement, config.max_logprob_diff)
        return identity(pairs), rules

    async def _judge(self, pairs: Pairs) -> bool:
        """Every pair; the first one that fails decides. False where a check could not be carried out."""
        for prefill, decode in pairs:
            try:
                verdict = await self._check.measure(prefill, decode, self._keys((prefill, decode)))
            except UnitError as err:
                self._status = PdStatus(not self._config().self_check, f"self-check not possible: {err}")
                log.warning("the split could not be tried", prefill=prefill.name, decode=decode.name, reason=str(err))
                return False
            status = judge(verdict, self._config()) if self._config().self_check else PdStatus(True)
            tell(verdict, status)
            if not status.enabled:
                self._status = status
                return True
        self._status = PdStatus(True)
        return True

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
