"""The sampler against what the words mean: distributions, limits, penalties, determinism."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysinfer.sampling import SamplingParams, logprob_of, sample, uniform

BASE = SamplingParams(temperature=1.0, seed=5)
LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))


def drawn(params: SamplingParams, count: int = 4000) -> Any:
    """Share of each token over `count` positions."""
    made = [sample(LOGITS, params, [0] * i, 0).token for i in range(count)]
    return np.bincount(made, minlength=len(LOGITS)) / count


def test_frequencies_follow_the_probabilities() -> None:
    assert np.abs(drawn(BASE) - np.exp(LOGITS)).max() < 0.03


def test_temperature_sharpens() -> None:
    expected = np.exp(LOGITS * 2) / np.exp(LOGITS * 2).sum()
    assert np.abs(drawn(replace(BASE, temperature=0.5)) - expected).max() < 0.03


@pytest.mark.parametrize(
    "change, allowed",
    [({"top_k": 2}, {0, 1}), ({"top_p": 0.7}, {0, 1}), ({"top_p": 0.71}, {0, 1, 2}), ({"min_p": 0.3}, {0, 1, 2}),
     ({"top_k": 3, "top_p": 0.4}, {0}), ({"top_k": 4, "min_p": 0.5}, {0, 1})],
)  # fmt: skip
def test_limits_leave_exactly_their_tokens(change: dict[str, float], allowed: set[int]) -> None:
    share = drawn(replace(BASE, **change), 2000)  # type: ignore[arg-type]
    assert {i for i, s in enumerate(share) if s > 0} == allowed


@given(
    seed=st.integers(0, 1 << 62), size=st.integers(1, 700), top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1.0), min_p=st.floats(0, 1.0), temperature=st.floats(0.01, 5.0),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_draw_is_always_allowed_and_repeatable(
    seed: int, size: int, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    """Against a plain definition of top-k, top-p and min-p."""
    logits = np.random.default_rng(seed % 1000).normal(0, 3, size).astype(np.float32)
    params = replace(BASE, seed=seed, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature)
    token = sample(logits, params, [1, 2], 1).token
    assert token == sample(logits, params, [3, 4], 0).token  # position and seed only
    order = np.argsort(-logits, kind="stable")
    rank = int(np.flatnonzero(order == token)[0])
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    assert rank < (top_k or size)
    assert weights[token] >= min_p - 1e-12
    kept = np.where(weights >= min_p, weights, 0)[order][: top_k or size]
    assert kept[:rank].sum() / kept.sum() < top_p + 1e-9


def test_greedy_takes_the_largest_and_the_first_of_equals() -> None:
    logits = np.array([1, 3, 3, 0], np.float32)
    assert sample(logits, replace(BASE, temperature=0.0), [], 0).token == 1


def test_penalties_and_bias() -> None:
    logits = np.array([2.0, 1.0, -1.0, 0.0], np.float32)
    greedy = replace(BASE, temperature=0.0)

    def first(tokens: list[int], n_context: int, **change: object) -> int:
        return sample(logits, replace(greedy, **change), tokens, n_context).token  # type: ignore[arg-type]

    assert first([0], 1, presence_penalty=2.0) == 0  # of the output only
    assert first([0], 0, presence_penalty=1.5) == 1
    assert first([0, 0, 0], 0, frequency_penalty=0.5) == 1
    assert first([0], 1, repetition_penalty=2.5) == 1  # of the prompt too
    assert first([], 0, logit_bias={3: 5.0}) == 3
    assert first([], 0, min_tokens=1, end_ids=(0,)) == 1
    assert list(logits) == [2.0, 1.0, -1.0, 0.0]


def test_logprobs_are_of_the_untouched_logits() -> None:
    params = replace(BASE, temperature=0.0, logprobs=2, logit_bias={4: 100.0})
    found = sample(LOGITS, params, [], 0)
    assert found.token == 4 and found.logprob is not None
    assert found.logprob.logprob == pytest.approx(math.log(0.05), abs=1e-5)
    assert found.logprob.rank == 5
    assert [t for t, _ in found.logprob.top] == [0, 1]
    assert logprob_of(LOGITS, 0, 0).top == ()


def test_uniform_is_uniform_over_seeds_and_positions() -> None:
    for numbers in ([uniform(s, 0) for s in range(5000)], [uniform(7, p) for p in range(5000)]):
        counts = np.histogram(numbers, 10, (0, 1))[0]
        assert 0 <= min(numbers) and max(numbers) < 1
        assert ((counts - 500.0) ** 2 / 500).sum() < 33  # chi-square, 9 degrees, p about 1e-4
