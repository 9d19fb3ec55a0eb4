"""How a step of a case is timed, the same for every contender."""

from __future__ import annotations

import statistics
import time
from typing import Callable

from .shapes import MIN_STEPS, SECONDS


def step_seconds(step: Callable[[int], None], least: int = MIN_STEPS) -> float:
    """Median seconds of `least` or more of step(0), step(1), ...; the first one warms up and does not count."""
    seconds: list[float] = []
    begin = time.perf_counter()
    while len(seconds) <= least or time.perf_counter() - begin < SECONDS:
        start = time.perf_counter()
        step(len(seconds))
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= 64:
            break
    return statistics.median(seconds[1:])
