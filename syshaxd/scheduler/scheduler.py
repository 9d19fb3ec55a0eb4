"""The Scheduler: which decider is in force, and the questions the Runner asks it."""

from __future__ import annotations

from typing import FrozenSet, Optional, Tuple

from syshaxd.config.types import Config
from syshaxd.model.plan import Move, Plan, Whole
from syshaxd.model.request import RequestInfo
from syshaxd.model.snapshot import Snapshot

from . import pressure, threshold
from .candidates import Failed
from .policy import policy_of

__all__ = ["Failed", "Scheduler"]


class Scheduler:
    """Answers from the snapshot given, nothing else. Engine calls `reconfigure` at a reload."""

    def __init__(self, config: Config) -> None:
        self._policy = policy_of(config)

    def reconfigure(self, config: Config) -> None:
        """The next decision follows the new configuration."""
        self._policy = policy_of(config)

    def decide(self, info: RequestInfo, snapshot: Snapshot, failed: FrozenSet[Failed] = frozenset()) -> Plan:
        """Where a request that has no token yet goes; `failed`: units that it has already failed on."""
        return threshold.decide(info, snapshot, self._policy, failed)

    def rescue(self, info: RequestInfo, snapshot: Snapshot, failed: FrozenSet[Failed]) -> Optional[Whole]:
        """Where a running request goes on after its unit failed; None: nowhere at the moment."""
        return pressure.rescue(info, snapshot, self._policy, failed)

    def moves(self, snapshot: Snapshot) -> Tuple[Move, ...]:
        """Running requests to hand over now."""
        return pressure.moves(snapshot, self._policy)
