"""Counters and histograms of the engine; written by its thread, read for /metrics and the stats page."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections import Counter as CounterOf
from dataclasses import dataclass, field

# vLLM's buckets, seconds
TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
                80.0, 160.0, 640.0, 2560.0)  # fmt: skip
ITL_BUCKETS = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
E2E_BUCKETS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
               960.0, 1920.0, 7680.0)  # fmt: skip


class Histogram:
    """Counts by upper bound, as Prometheus does it."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Pairs of upper bound and count up to it."""
        total, pairs = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts):
            total += count
            pairs.append((bound, float(total)))
        return pairs


@dataclass
class EngineStats:
    """Totals since the start, and the state after the last step."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_total: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    local_compute: int = 0  # prompt tokens by source
    local_cache_hit: int = 0
    external_kv_transfer: int = 0
    saved_tokens: int = 0
    loaded_tokens: int = 0
    restored_tokens: int = 0
    load_failures: CounterOf[str] = field(default_factory=Counter)
    save_failures: CounterOf[str] = field(default_factory=Counter)
    finished: CounterOf[str] = field(default_factory=Counter)
    steps: int = 0
    step_tokens: int = 0
    step_ns: int = 0
    overhead_ns: int = 0  # of all steps: time outside the model
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BUCKETS))
    itl: Histogram = field(default_factory=lambda: Histogram(ITL_BUCKETS))
    e2e: Histogram = field(default_factory=lambda: Histogram(E2E_BUCKETS))
