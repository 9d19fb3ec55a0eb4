"""The stats page that the vLLM plugin writes: a step's tokens beside the same step's time, and the unit's limits."""

from __future__ import annotations

import time
from types import SimpleNamespace

from syshax_kernels.pool_types import UnitStats
from syshax_vllm.stats_counts import StatsCounts


def page_of(pages: StatsCounts, tokens: int) -> UnitStats:
    """At the begin of a step of so many tokens."""
    pages.step_begins(tokens)
    return pages.page()


def test_tokens_and_time_are_of_the_same_step() -> None:
    pages = StatsCounts(16, 128, 2048)
    first = page_of(pages, 512)
    assert (first.steps, first.step_tokens, first.step_ns) == (0, 0, 0)
    assert (first.max_num_seqs, first.max_step_tokens) == (128, 2048)
    pages.step_over()
    second = page_of(pages, 3)
    assert (second.steps, second.step_tokens) == (1, 512) and second.step_ns > 0


def test_a_step_scheduled_ahead_begins_when_the_one_before_it_is_over() -> None:
    pages = StatsCounts(16, 128, 2048)
    page_of(pages, 512)
    page_of(pages, 3)
    begins = time.perf_counter_ns()
    pages.step_over()
    pages.step_over()
    page = page_of(pages, 0)
    assert (page.steps, page.step_tokens) == (2, 3)
    assert 0 < page.step_ns <= time.perf_counter_ns() - begins


def test_a_report_without_a_step_changes_nothing() -> None:
    pages = StatsCounts(16, 128, 2048)
    pages.step_over()
    assert page_of(pages, 0).steps == 0


def test_blocks_that_only_wait_for_their_copy_do_not_count() -> None:
    """Who offloads asks whether the unit is full: what has left is told as gone with the abort, not two steps later."""
    pool = SimpleNamespace(num_gpu_blocks=101, get_num_free_blocks=lambda: 10)
    pool.blocks = [SimpleNamespace(ref_cnt=2 if number < 5 else 1) for number in range(101)]  # five are shared
    pages = StatsCounts(16, 128, 2048)
    pages.bind(pool)
    assert pages.page().kv_blocks_used == 90
    pages.ending("r", list(range(30)))
    assert pages.page().kv_blocks_used == 90 - 25
    pages.ended("r")
    assert pages.page().kv_blocks_used == 90
