"""A prefill unit short of KV: what it preempts comes back from the pool, and with auto offload less is preempted.

The same 12 requests three times: with the short cache and no offload (clients that ask for the accelerator keep it),
with offload, and on the decode unit, which has all the KV they want and says what the tokens are.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from testbed.daemon_real_units import Daemon
from tests.vllm.pairs import externals, greedy, ids

pytestmark = [
    pytest.mark.parametrize("running_pair", ["short_of_kv"], indirect=True),
    pytest.mark.timeout(1200),
]
REQUESTS, TOKENS = 12, 300  # each ends with about 14 blocks, of which the unit has 70
LENGTHS = [70 + 9 * number for number in range(REQUESTS)]


class Run(NamedTuple):
    """What all requests at once brought."""

    tokens: list[tuple[int, ...]]
    seconds: float
    preemptions: float
    read_back: float  # tokens that the prefill unit took from a pool
    offloads: float
    returns: float
    handed_over: float  # tokens that the decode unit took from a pool


def all_at_once(daemon: Daemon, headers: dict[str, str]) -> Run:
    """Many requests that together need more KV than the unit has."""

    def ask(length: int) -> tuple[int, ...]:
        return ids(daemon.ask("/v1/completions", greedy(length, 1, TOKENS), headers))

    before, began = counted(daemon), time.monotonic()
    with ThreadPoolExecutor(REQUESTS) as threads:
        tokens = list(threads.map(ask, LENGTHS))
    seconds = time.monotonic() - began
    return Run(tokens, seconds, *(after - count for after, count in zip(counted(daemon), before)))


def counted(daemon: Daemon) -> tuple[float, ...]:
    """The counts of a Run so far, in its order."""
    gpu, own = daemon.metrics("gpu"), daemon.metrics()
    moves = [own.get(f'syshax_handoffs_total{{kind="{kind}",result="ok"}}', 0) for kind in ("offload", "return")]
    loaded = gpu.get("syshax_handoff_loaded_tokens_total", 0)
    return gpu["vllm:num_preemptions_total"], loaded, *moves, externals(daemon)


def test_offload_saves_preemptions_and_changes_no_token(daemon: Daemon) -> None:
    stock = all_at_once(daemon, {"x-syshax-route": "accelerator"})
    moved = all_at_once(daemon, {})
    alone = all_at_once(daemon, {"x-syshax-route": "cpu"})
    for name, run in (("stock", stock), ("offload", moved), ("uncapped", alone)):
        print(
            f"{name:>9}: {run.seconds:6.2f} s, {run.preemptions:.0f} preemptions, {run.offloads:.0f} offloaded, "
            f"{run.returns:.0f} returned, {run.handed_over:.0f} tokens of KV handed over, "
            f"{run.read_back:.0f} taken back"
        )
    assert stock.preemptions > 0, "the cache was not short"
    assert stock.read_back >= 64, "computed again, not read"
    assert stock.offloads == 0
    assert stock.tokens == alone.tokens
    assert moved.offloads >= 4
    assert moved.handed_over >= 4 * min(LENGTHS), "moved without their KV"
    assert moved.preemptions < stock.preemptions
    assert moved.tokens == alone.tokens
