"""How many tokens a step may have, so that it ends soon enough for those who wait for their next token."""

from __future__ import annotations

LEAST = 64  # tokens; smaller prefill chunks waste the weights that are read for them
TARGET_S = 0.25  # a prefill chunk holds up decode rows, aborts and stops for no longer than about this


class Pace:
    """Follows the measured speed; the text does not depend on it, since results are the same for any chunking."""

    def __init__(self, limit: int, target_s: float = TARGET_S) -> None:
        """`limit`: the most tokens a step may ever have."""
        self._limit, self._target_s = limit, target_s
        self.budget = min(limit, LEAST)

    def observe(self, tokens: int, seconds: float) -> None:
        """Takes in a step; only one that was filled tells how fast a full step is."""
        if tokens < self.budget or seconds <= 0:
            return
        fitting = int(tokens / seconds * self._target_s)
        self.budget = min(max(min(fitting, 2 * self.budget), LEAST), self._limit)
