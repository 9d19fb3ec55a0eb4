"""How many of a unit's lines go into the log: the journal's own limit would hit the daemon's lines as well."""

from __future__ import annotations

BURST = 1000  # lines that may come at once: a start with all its warnings
RATE = 100.0  # lines a second after that; the journal's default takes 333 a second from a service


class LineBudget:
    """A token bucket. Pure: time is an argument."""

    def __init__(self, burst: float = BURST, rate: float = RATE) -> None:
        self._burst, self._rate = burst, rate
        self._left, self._at = burst, 0.0
        self._missed = 0
        self._full = False  # used up: silent until a second's worth is back, so that the note of it is rare

    def take(self, now: float) -> int | None:
        """None: leave this line out. Else log it; the number of lines left out since the last one that was logged."""
        self._left = min(self._burst, self._left + self._rate * max(0.0, now - self._at))
        self._at = now
        if self._left < (min(self._rate, self._burst) if self._full else 1):
            self._full = True
            self._missed += 1
            return None
        self._full = False
        self._left -= 1
        missed, self._missed = self._missed, 0
        return missed
