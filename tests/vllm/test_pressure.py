"""A prefill unit short of KV: what it preempts comes back from the pool."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, Tuple

import pytest

from tests.fakes.daemon import Daemon
from tests.vllm.pairs import greedy, ids

pytestmark = [
    pytest.mark.parametrize("running_pair", ["short_of_kv"], indirect=True),
    pytest.mark.timeout(1200),
]
REQUESTS, TOKENS = 12, 400  # each ends with about 16 blocks, of which the unit has 70


def all_at_once(daemon: Daemon, salt: int, headers: Dict[str, str]) -> List[Tuple[int, ...]]:
    """Token ids of many requests that together need more KV than the unit has."""

    def ask(number: int) -> Tuple[int, ...]:
        return ids(daemon.ask("/v1/completions", greedy(70 + 9 * number, salt, TOKENS), headers))

    with ThreadPoolExecutor(REQUESTS) as threads:
        return list(threads.map(ask, range(REQUESTS)))


def preemptions(daemon: Daemon) -> float:
    return daemon.metrics("gpu")["vllm:num_preemptions_total"]


def offloads(daemon: Daemon) -> float:
    return daemon.metrics().get('syshax_handoffs_total{kind="offload",result="ok"}', 0)


def read_back(daemon: Daemon) -> float:
    """Tokens that the prefill unit took from a pool: of its own, for nobody hands over to it here."""
    return daemon.metrics("gpu").get("syshax_handoff_loaded_tokens_total", 0)


def test_what_is_preempted_comes_back_from_the_pool(daemon: Daemon) -> None:
    """A client that asks for the accelerator keeps it, so nothing is offloaded here."""
    before = preemptions(daemon), read_back(daemon), offloads(daemon)
    tokens = all_at_once(daemon, 1, {"x-syshax-route": "accelerator"})
    assert preemptions(daemon) > before[0], "the cache was not short"
    assert read_back(daemon) - before[1] >= 64, "computed again, not read"
    assert offloads(daemon) == before[2]
    assert tokens == all_at_once(daemon, 1, {"x-syshax-route": "cpu"})
