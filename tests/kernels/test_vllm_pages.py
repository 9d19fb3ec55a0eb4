"""The stats page that the vLLM plugin writes: a step's tokens beside the same step's time, and the unit's limits."""

from __future__ import annotations

import time
from types import SimpleNamespace

from syshax_vllm.pages import Pages


def step(tokens: int) -> SimpleNamespace:
    return SimpleNamespace(total_num_scheduled_tokens=tokens)


def test_tokens_and_time_are_of_the_same_step() -> None:
    pages = Pages(16, 128, 2048)
    first = pages.page(step(512))
    assert (first.steps, first.step_tokens, first.step_ns) == (0, 0, 0)
    assert (first.max_num_seqs, first.max_step_tokens) == (128, 2048)
    pages.step_over()
    second = pages.page(step(3))
    assert (second.steps, second.step_tokens) == (1, 512) and second.step_ns > 0


def test_a_step_scheduled_ahead_begins_when_the_one_before_it_is_over() -> None:
    pages = Pages(16, 128, 2048)
    pages.page(step(512))
    pages.page(step(3))
    begins = time.perf_counter_ns()
    pages.step_over()
    pages.step_over()
    page = pages.page(step(0))
    assert (page.steps, page.step_tokens) == (2, 3)
    assert 0 < page.step_ns <= time.perf_counter_ns() - begins


def test_a_report_without_a_step_changes_nothing() -> None:
    pages = Pages(16, 128, 2048)
    pages.step_over()
    assert pages.page(step(0)).steps == 0
