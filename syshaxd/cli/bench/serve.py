"""A serve run: requests at a rate or with bounded concurrency, and the table that `vllm bench serve` prints."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable

from .completions_client import BenchRequest, CompletionsClient, Outcome

WIDTH = 50
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pace:
    """`rate` requests/s with Poisson arrivals (None: all at once); at most `concurrency` at a time (None: no bound)."""

    rate: float | None = None
    concurrency: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """Outcomes and the wall time in seconds."""

    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def good(self) -> list[Outcome]:
        """Those that were answered."""
        return [o for o in self.outcomes if not o.error and o.output_tokens]


async def play(endpoint: CompletionsClient, asks: Sequence[BenchRequest], pace: Pace, progress: Progress) -> Run:
    """Sends all and waits for all; `progress(done, total)` after each."""
    draw = random.Random(pace.seed)
    gate = asyncio.Semaphore(pace.concurrency or len(asks))
    done: list[Outcome] = []

    async def one(ask: BenchRequest) -> Outcome:
        async with gate:
            outcome = await endpoint.generate(ask)
        done.append(outcome)
        progress(len(done), len(asks))
        return outcome

    begin = time.perf_counter()
    tasks = []
    try:
        for number, ask in enumerate(asks):
            tasks.append(asyncio.create_task(one(ask), name=f"bench.{number}"))
            if pace.rate:
                await asyncio.sleep(draw.expovariate(pace.rate))
        outcomes = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return Run(tuple(outcomes), time.perf_counter() - begin)


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between closest ranks, as NumPy does it; 0.0 for an empty list."""
    if not values:
        return 0.0
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(run: Run) -> Mapping[str, float]:
    """Figures of the table; times in milliseconds, rates per second."""
    good = run.good
    prompts, outputs = sum(o.prompt_tokens for o in good), sum(o.output_tokens for o in good)
    figures: dict[str, float] = {
        "completed": len(good),
        "failed": len(run.outcomes) - len(good),
        "duration": run.seconds,
        "total_input_tokens": prompts,
        "total_output_tokens": outputs,
        "request_throughput": len(good) / run.seconds,
        "output_throughput": outputs / run.seconds,
        "total_token_throughput": (prompts + outputs) / run.seconds,
    }
    series = {
        "ttft": [o.ttft for o in good],
        "tpot": [o.tpot for o in good if o.output_tokens > 1],
        "itl": [gap for o in good for gap in o.gaps],
        "e2el": [o.latency for o in good],
    }
    for name, values in series.items():
        figures[f"mean_{name}_ms"] = 1e3 * statistics.fmean(values) if values else 0.0
        figures[f"median_{name}_ms"] = 1e3 * percentile(values, 0.5)
        figures[f"p99_{name}_ms"] = 1e3 * percentile(values, 0.99)
    return figures


def table(figures: Mapping[str, float]) -> str:
    """The layout of `vllm bench serve`, so that scripts that read one read the other."""
    rows = [
        _title("Serving Benchmark Result", "="),
        _row("Successful requests:", f"{figures['completed']:.0f}"),
        _row("Failed requests:", f"{figures['failed']:.0f}"),
        _row("Benchmark duration (s):", f"{figures['duration']:.2f}"),
        _row("Total input tokens:", f"{figures['total_input_tokens']:.0f}"),
        _row("Total generated tokens:", f"{figures['total_output_tokens']:.0f}"),
        _row("Request throughput (req/s):", f"{figures['request_throughput']:.2f}"),
        _row("Output token throughput (tok/s):", f"{figures['output_throughput']:.2f}"),
        _row("Total token throughput (tok/s):", f"{figures['total_token_throughput']:.2f}"),
    ]
    titles = (
        ("ttft", "Time to First Token"),
        ("tpot", "Time per Output Token (excl. 1st token)"),
        ("itl", "Inter-token Latency"),
        ("e2el", "End-to-end Latency"),
    )
    for name, title in titles:
        rows.append(_title(title, "-"))
        for kind in ("mean", "median", "p99"):
            label = f"{kind.capitalize()} {name.upper()} (ms):"
            rows.append(_row(label, f"{figures[f'{kind}_{name}_ms']:.2f}"))
    return "\n".join([*rows, "=" * WIDTH])


def _title(text: str, fill: str) -> str:
    return f" {text} ".center(WIDTH, fill)


def _row(label: str, value: str) -> str:
    return f"{label:<40}{value:<10}".rstrip()
