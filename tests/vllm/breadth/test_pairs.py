"""Units of other degrees of tensor parallelism under the daemon, one rank to two and two to one; and the models that CI
does not hand over between sysinfer and vLLM.

Of the former the block sizes differ too (128 to 32 tokens, 64 to 128), and prefill goes in steps of 96 tokens, which
end inside of blocks and of handoff chunks.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.fakes.daemon import ROUTES, Daemon
from tests.vllm import pool
from tests.vllm.pairs import complete, externals, failures
from tests.vllm.test_pair import LENGTHS, loaded, saved

OTHER_RANKS = ["one_to_two_ranks", "two_to_one_rank"]
OTHER_MODELS = ["sysinfer_to_vllm_llama", "vllm_to_sysinfer_qwen2"]
pytestmark = [
    pytest.mark.parametrize("running_pair", [*OTHER_RANKS, *OTHER_MODELS], indirect=True),
    pytest.mark.timeout(1200),
]


def test_tokens_are_the_same_over_every_route(daemon: Daemon) -> None:
    before = externals(daemon)
    rows = [[complete(daemon, n, route) for route in reversed(ROUTES)] for n in LENGTHS]
    assert [len(set(row)) for row in rows] == [1] * len(LENGTHS)
    assert len({row[0] for row in rows}) > len(LENGTHS) / 2, "the model repeats itself: this proves nothing"
    assert externals(daemon) - before >= sum(LENGTHS) - len(LENGTHS)


def test_eight_at_once(daemon: Daemon) -> None:
    lengths = [100 + 37 * i for i in range(8)]
    before = externals(daemon)
    with ThreadPoolExecutor(8) as threads:
        rows = [
            [*threads.map(lambda n, route=route: complete(daemon, n, route, 2), lengths)] for route in reversed(ROUTES)
        ]
    assert rows[0] == rows[1] == rows[2]
    assert externals(daemon) - before >= sum(lengths) - 8


def test_a_damaged_handoff_is_computed(daemon: Daemon) -> None:
    before, counted, load = externals(daemon), sum(failures(daemon).values()), saved(daemon, 200, 8)
    pool.spoil(daemon.folder / "pool" / "gpu.pool", str(load["ticket"]))
    assert loaded(daemon, 200, 8, load) == complete(daemon, 200, "accelerator", 8)
    assert externals(daemon) == before
    assert sum(failures(daemon).values()) == counted + 1
