"""What the service manager hears while the daemon lives: watchdog, status line, more time while weights load."""

from __future__ import annotations

from syshaxd.model.unit import UnitState, UnitView
from syshaxd.sdnotify import Notifier

INTERVAL = 1.0  # seconds between two beats
EXTENSION = 30.0  # seconds asked for at a time
COMING = (UnitState.STARTING, UnitState.WARMING)


class Watchdog:
    """Feeds the watchdog only while the counter of the reconcile loop advances. Pure but for the notifier."""

    def __init__(self, notifier: Notifier, now: float) -> None:
        self._notifier = notifier
        self._period = notifier.watchdog_seconds
        self._turns = -1
        self._advanced_at = now
        self._fed_at: float | None = None

    def beat(self, turns: int, now: float) -> bool:
        """Called every INTERVAL by a task of the loop; returns whether it fed."""
        if turns != self._turns:
            self._turns, self._advanced_at = turns, now
        if self._period is None or now - self._advanced_at > max(self._period / 2, 3 * INTERVAL):
            return False
        if self._fed_at is not None and now - self._fed_at < self._period / 3:
            return False
        self._fed_at = now
        self._notifier.watchdog()
        return True


class Patience:
    """Asks for more time for the start as long as a unit is on its way up."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._until: float | None = None

    def beat(self, views: tuple[UnitView, ...], now: float) -> None:
        """Called every INTERVAL until the daemon is ready."""
        coming = any(view.state in COMING for view in views)
        if coming and (self._until is None or self._until - now < EXTENSION / 2):
            self._until = now + EXTENSION
            self._notifier.extend_timeout(EXTENSION)
