"""Judges a READY unit by what is seen of it. No I/O, time is an argument.

/health alone is no witness: servers keep answering it while their engine is dead or stuck. So requests that are held
without any progress count, and a real generation (the canary) where nothing else has shown that it still computes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from syshaxd.config.types import HealthConfig
from syshaxd.model.snapshot import InFlight
from syshaxd.monitor import Page


@dataclass(frozen=True)
class Pulse:
    """One look: how many requests the unit holds, and a value that changes whenever it computed something."""

    held: int
    progress: Hashable
    certain: bool  # the unit itself tells of its progress (stats page)


def pulse(page: Page | None, entries: Sequence[InFlight]) -> Pulse:
    """From the unit's page and the ledger's entries on this unit.

    An entry that has its first token may wait for a slow client, so only the others count as held by the unit.
    """
    waiting = sum(entry.first_token is None for entry in entries)
    tokens = tuple((entry.info.request_id, entry.output_tokens) for entry in entries)
    if page is None:
        return Pulse(waiting, tokens, certain=False)
    return Pulse(max(waiting, page.running + page.waiting), (page.progress, tokens), certain=True)


class Vitals:
    """Owned by the unit's watching activity; each method returns the reason to give the unit up, or None."""

    def __init__(self, now: float) -> None:
        self._progress: Hashable = None
        self._moved_at = now
        self._worked_at = now  # last proof that it generates
        self._failures = 0

    def saw_pulse(self, seen: Pulse, now: float, stall_timeout: float) -> str | None:
        """Progress, or the lack of it."""
        if seen.progress != self._progress:
            if self._progress is not None and seen.held:
                self._worked_at = now
            self._progress = seen.progress
            self._moved_at = now
        if not seen.held:
            self._moved_at = now
        if seen.certain and now - self._moved_at > stall_timeout:
            return f"stalled: it holds {seen.held} requests and has made no token for {now - self._moved_at:.0f} s"
        return None

    def saw_health(self, error: str | None, config: HealthConfig, suspected: bool) -> str | None:
        """Result of /health; None: it said yes. A suspected unit gets no second chance."""
        self._failures = 0 if error is None else self._failures + 1
        if error is not None and (suspected or self._failures >= config.failures):
            return f"unhealthy: {error}"
        return None

    @property
    def answers(self) -> bool:
        """Whether the last /health said yes."""
        return self._failures == 0

    def canary_due(self, now: float, config: HealthConfig, suspected: bool) -> bool:
        """Whether a generation is needed as proof."""
        return suspected or 0 < config.canary_interval <= now - self._worked_at

    def saw_canary(self, error: str | None, began: float, now: float) -> str | None:
        """Result of a generation. A busy unit may be late with it: progress since `began` speaks for it."""
        if error is None:
            self._worked_at = now
            return None
        return None if self._worked_at > began else f"does not generate: {error}"
