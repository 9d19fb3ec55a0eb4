"""Batch invariance, bit for bit: a token's logits do not depend on what else is in the batch, on chunking, on block
numbers, on tile height or on the number of threads."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from syshax_kernels.context import Context, available_isas
from syshax_kernels.model import Model, ModelShape, Seq
from syshax_kernels.types import DType
from tests.kernels.reference import build, random_weights

SHAPE = ModelShape(
    n_layers=2,
    d_model=64,
    n_heads=6,
    n_kv_heads=2,
    head_dim=16,
    d_ff=96,
    vocab=67,
    rope_freqs=[1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003],
    norm_eps=1e-5,
    max_context=640,
    kv_blocks=130,
    kv_block_size=16,
    max_batch_tokens=640,
)
LENGTHS = (1, 17, 270, 530)  # within one piece of 256 tokens, over two, over three
KINDS = (DType.Q4_0, DType.Q4_1, DType.Q8_0, DType.F16)
THREADS = (1, 2, 3)

Key = tuple[str, DType, int]


class Bench:
    """Models by (isa, weight type, threads), and each sequence's logits computed whole and alone on one thread."""

    def __init__(self, shape: ModelShape, stack: ExitStack) -> None:
        rng = np.random.default_rng(1)
        self.shape = shape
        self.tokens = [[int(t) for t in rng.integers(0, shape.vocab, n)] for n in LENGTHS]
        self.models: dict[Key, Model] = {}
        self.alone: dict[tuple[str, DType], list[NDArray[Any]]] = {}
        for kind in KINDS:
            weights = random_weights(shape, kind, seed=2)
            for isa in available_isas():
                for threads in THREADS:
                    context = stack.enter_context(Context(threads=threads, isa=isa, nrc=16 * (1 + threads % 2)))
                    self.models[isa, kind, threads] = stack.enter_context(build(context, weights))
                one = self.models[isa, kind, 1]
                self.alone[isa, kind] = [one.forward([Seq(t, 0, range(40), 2)]).copy() for t in self.tokens]


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture(scope="module", params=["plain", "window", "alibi"])
def bench(request: pytest.FixtureRequest, stack: ExitStack) -> Bench:
    changes: dict[str, Any] = {
        "plain": {},
        "window": {"sliding_window": 100},
        "alibi": {"alibi_slopes": [0.5, 0.25, 0.1, 0.05, 0.02, 0.01]},
    }
    return Bench(dataclasses.replace(SHAPE, **changes[request.param]), stack)


@st.composite
def plans(draw: st.DrawFn) -> list[list[tuple[int, int]]]:
    """Steps; each is a list of (sequence, tokens). Decode rows mix with chunks of every size."""
    left = {i: n for i, n in enumerate(LENGTHS) if draw(st.booleans()) or i == 2}
    steps: list[list[tuple[int, int]]] = []
    while left and len(steps) < 12:
        step = []
        for i in draw(st.permutations(sorted(left))):
            n = min(left[i], draw(st.sampled_from([0, 1, 1, 2, 3, 15, 16, 17, 64, 255, 256])))
            if n:
                step.append((i, n))
                left[i] -= n
        left = {i: n for i, n in left.items() if n}
        if step and sum(n for _, n in step) <= SHAPE.max_batch_tokens:
            steps.append(step)
        else:
            break
    return steps


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    plan=plans(),
    isa=st.sampled_from(available_isas()[:2]),
    kind=st.sampled_from(KINDS),
    threads=st.sampled_from(THREADS),
    order=st.randoms(use_true_random=False),
)
def test_any_mix_gives_the_same_bits(
    bench: Bench, plan: list[list[tuple[int, int]]], isa: str, kind: DType, threads: int, order: random.Random
) -> None:
    model, expected = bench.models[isa, kind, threads], bench.alone[isa, kind]
    numbers = list(range(SHAPE.kv_blocks))
    order.shuffle(numbers)
    blocks = {i: [numbers.pop() for _ in range((n + 15) // 16)] for i, n in enumerate(LENGTHS)}
    done = dict.fromkeys(range(len(LENGTHS)), 0)
    for step in plan:
        seqs = [Seq(bench.tokens[i][done[i] : done[i] + n], done[i], blocks[i], logits=2) for i, n in step]
        got = model.forward(seqs)
        row = 0
        for i, n in step:
            assert np.array_equal(got[row : row + n], expected[i][done[i] : done[i] + n]), (i, done[i], n)
            row += n
            done[i] += n


@pytest.mark.parametrize("threads", [2, 3, 8, 16])
def test_oversubscribed_threads_give_the_same_bits(threads: int) -> None:
    weights = random_weights(SHAPE, DType.Q4_0, seed=3)
    tokens = [int(t) for t in np.random.default_rng(4).integers(0, SHAPE.vocab, 300)]
    results = []
    for n in (1, threads):
        with Context(threads=n) as context, build(context, weights) as model:
            prefill = model.forward([Seq(tokens, 0, range(20), logits=2)]).copy()
            decode = model.forward([Seq([7], 300, range(20))]).copy()
            results.append(np.concatenate([prefill, decode]))
    assert np.array_equal(results[0], results[1])


def test_only_the_rows_asked_for_come_back_and_are_the_same() -> None:
    weights = random_weights(SHAPE, DType.Q8_0, seed=5)
    with Context(threads=2) as context, build(context, weights) as model:
        a = Seq(list(range(20)), 0, [0, 1], logits=2)
        b = Seq(list(range(30)), 0, [2, 3], logits=1)
        c = Seq([3], 0, [4], logits=0)
        every = model.forward([a, dataclasses.replace(b, logits=2), dataclasses.replace(c, logits=2)]).copy()
        some = model.forward([c, dataclasses.replace(a, logits=0), b])
        assert some.shape == (1, SHAPE.vocab)
        assert np.array_equal(some[0], every[49])
