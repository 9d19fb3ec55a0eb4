"""Units of other degrees of tensor parallelism under the daemon, one rank to two and two to one; and the models that CI
does not hand over between sysinfer and vLLM.

Of the former the block sizes differ too (128 to 32 tokens, 64 to 128), and prefill goes in steps of 96 tokens, which
end inside of blocks and of handoff chunks.
"""

from __future__ import annotations

import pytest

from testbed.daemon_real_units import Daemon
from tests.vllm import pool
from tests.vllm.pairs import complete, externals, failures
from tests.vllm.test_pair import eight_at_once, loaded, same_over_routes, saved

OTHER_RANKS = ["one_to_two_ranks", "two_to_one_rank"]
OTHER_MODELS = ["sysinfer_to_vllm_llama", "vllm_to_sysinfer_qwen2"]
pytestmark = [
    pytest.mark.parametrize("running_pair", [*OTHER_RANKS, *OTHER_MODELS], indirect=True),
    pytest.mark.timeout(1200),
]


def test_tokens_are_the_same_over_every_route(daemon: Daemon) -> None:
    same_over_routes(daemon, 0)


def test_eight_at_once(daemon: Daemon) -> None:
    eight_at_once(daemon)


def test_a_damaged_handoff_is_computed(daemon: Daemon) -> None:
    before, counted, load = externals(daemon), sum(failures(daemon).values()), saved(daemon, 200, 8)
    pool.spoil(daemon.folder / "pool" / "gpu.pool", str(load["ticket"]))
    assert loaded(daemon, 200, 8, load) == complete(daemon, 200, "accelerator", 8)
    assert externals(daemon) == before
    assert sum(failures(daemon).values()) == counted + 1
