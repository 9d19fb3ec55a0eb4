"""Scheduler, block pool and engine with a toy model: right text whatever happens, and nothing leaks."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from syshax_kernels.pool import Outbox
from sysinfer.blocks import ROOT, BlockPool, chain
from sysinfer.pace import LEAST, TARGET_S, Pace
from sysinfer.sampling import SamplingParams
from tests.sysinfer.toy import VOCAB, Bench, reference, toy_outbox

GREEDY = SamplingParams(temperature=0.0)


def greedy(count: int) -> SamplingParams:
    return replace(GREEDY, max_tokens=count)


class Pool(RuleBasedStateMachine):
    """The block pool against a plain count of references."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12, 4)
        self.counts: Counter[int] = Counter()

    @rule(target=held, text=st.lists(st.integers(0, 1), min_size=0, max_size=6), extra=st.integers(0, 4))
    def admit(self, text: list[int], extra: int) -> list[int]:
        """A sequence: as many cached blocks as match, the rest new; full ones become known."""
        tokens = [t for t in text for _ in range(4)]
        matched = self.pool.match(tokens, len(tokens))
        if len(text) - len(matched) + extra > self.pool.free_after(matched):
            return []
        self.pool.hold(matched)
        blocks = matched + (self.pool.allocate(len(text) - len(matched) + extra) or [])
        self.counts.update(blocks)
        digest = ROOT
        for i in range(len(text)):
            digest = chain(digest, tokens[4 * i : 4 * i + 4])
            self.pool.remember(blocks[i], digest)
        assert self.pool.match(tokens, len(tokens))[: len(matched)] == matched
        return blocks

    @rule(blocks=consumes(held))
    def release(self, blocks: list[int]) -> None:
        self.pool.release(blocks)
        self.counts.subtract(blocks)

    @rule(count=st.integers(13, 20))
    def refuse(self, count: int) -> None:
        free = self.pool.n_free
        assert self.pool.allocate(count) is None and self.pool.n_free == free

    @invariant()
    def counted(self) -> None:
        assert all(self.pool.references(b) == self.counts[b] for b in range(12))
        assert self.pool.n_used == sum(1 for b in range(12) if self.counts[b])


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@given(
    seed=st.integers(0, 1 << 30), blocks=st.integers(4, 20), size=st.sampled_from([2, 4, 8]), seqs=st.integers(1, 6),
    budget=st.integers(1, 24), caching=st.booleans(), n=st.integers(1, 10), aborts=st.booleans(),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_every_sequence_says_what_it_would_alone(
    seed: int, blocks: int, size: int, seqs: int, budget: int, caching: bool, n: int, aborts: bool
) -> None:
    """Any arrivals, aborts, chunk sizes, cache sizes: the reference's text, one end each, no block left."""
    rng = random.Random(seed)
    bench = Bench(blocks, size, seqs, max(budget, seqs), 200, caching)
    limit = bench.scheduler.config.max_model_len
    prefix = [rng.randrange(VOCAB) for _ in range(limit // 2)]
    jobs = {}
    for key in range(n):
        shared = rng.randrange(len(prefix) + 1)
        context = prefix[:shared] + [
            rng.randrange(VOCAB) for _ in range(rng.randint(1, max(1, limit - 1 - shared) // 2 or 1))
        ]
        context = context[: limit - 1]
        jobs[key] = (context, rng.randint(1, limit - len(context)))
    waiting = list(jobs)
    while waiting or not bench.core.idle:
        if waiting and rng.random() < 0.4:
            key = waiting.pop()
            bench.add(key, jobs[key][0], greedy(jobs[key][1]))
        if aborts and rng.random() < 0.05:
            bench.abort(rng.randrange(n))
        assert max([0, *bench.runner.steps[-1:]]) <= bench.scheduler.config.max_num_batched_tokens
        bench.step()
    for key, (context, count) in jobs.items():
        assert len(bench.finish[key]) == 1
        expected = reference(context, count)
        if bench.finish[key] == ["length"]:
            assert bench.made[key] == expected
        else:
            assert bench.made[key] == expected[: len(bench.made[key])]
    assert bench.pool.n_used == 0 and not bench.scheduler.running and not bench.scheduler.waiting


def test_few_blocks_preempt_the_newest_and_count_it() -> None:
    bench = Bench(blocks=8, size=4, seqs=4, budget=32)
    for key in range(4):
        bench.add(key, [key] * 5, greedy(20))
    bench.drain()
    assert bench.stats.preemptions > 0
    assert [bench.made[k] for k in range(4)] == [reference([k] * 5, 20) for k in range(4)]


@pytest.mark.parametrize("saves", [False, True])
def test_a_preempted_sequence_takes_its_kv_back(tmp_path: Path, saves: bool) -> None:
    """From its own ticket, or from one made for that: the same text, no token computed twice, nothing left."""
    plain = few_blocks(None, saves)
    with toy_outbox(tmp_path) as outbox:
        bench = few_blocks(outbox, saves)
        assert bench.stats.restored_tokens > 100 and not bench.stats.load_failures
        assert sum(bench.runner.steps) == 4 * 119 < sum(plain.runner.steps)  # no token twice
        for key in range(4):
            outbox_ticket = outbox.find(ticket_of(key))
            assert (outbox_ticket is not None) == saves
            bench.core.discard([ticket_of(key)])
        assert outbox.info().chunks_free == 64


def few_blocks(outbox: Outbox | None, saves: bool) -> Bench:
    """Four sequences that do not fit, to their ends."""
    bench = Bench(blocks=24, size=8, seqs=4, budget=32, caching=False, outbox=outbox)
    for key in range(4):
        bench.add(key, [key] * 30, greedy(90), ticket_of(key) if saves else None)
    bench.drain()
    assert bench.stats.preemptions > 0
    assert [bench.made[k] for k in range(4)] == [reference([k] * 30, 90) for k in range(4)]
    return bench


def ticket_of(key: int) -> bytes:
    return bytes([key + 1] * 16)


@pytest.mark.parametrize("room, damage", [(64, True), (1, False), (3, False)])
def test_kv_that_was_not_kept_whole_is_computed(tmp_path: Path, room: int, damage: bool) -> None:
    """A damaged ticket, or no room for one: counted, and the same text."""
    with toy_outbox(tmp_path, room) as outbox:
        bench = Bench(blocks=24, size=8, seqs=4, budget=32, caching=False, outbox=outbox)
        for key in range(4):
            bench.add(key, [key] * 30, greedy(90))
        while not bench.core.idle:
            bench.step()
            if damage and any(seq.kept for seq in bench.scheduler.waiting):
                scribble(tmp_path / "toy.pool", outbox)
        assert [bench.made[k] for k in range(4)] == [reference([k] * 30, 90) for k in range(4)]
        assert bench.stats.load_failures["corrupt"] > 0 if damage else bench.stats.save_failures["full"] > 0
        assert not (damage and bench.stats.restored_tokens)
        assert outbox.info().chunks_free == room


def scribble(path: Path, outbox: Outbox) -> None:
    """Other bytes in every chunk."""
    info = outbox.info()
    with open(path, "r+b") as file:
        file.seek(-info.chunks_size, 2)
        file.write(b"\x5a" * info.chunks_size)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), caching=st.booleans(), room=st.integers(1, 24))
def test_preemptions_aborts_and_a_small_pool_change_no_text(seed: int, caching: bool, room: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, toy_outbox(Path(folder), room) as outbox:
        bench = Bench(blocks=rng.randint(20, 40), size=8, budget=24, caching=caching, outbox=outbox)
        jobs = {key: ([rng.randrange(3)] * rng.randint(1, 60), rng.randint(1, 90)) for key in range(8)}
        for key, (context, count) in jobs.items():
            bench.add(key, context, greedy(count), ticket_of(key) if rng.random() < 0.5 else None)
            for _ in range(rng.randrange(20)):
                bench.step()
            if rng.random() < 0.3:
                bench.abort(rng.randrange(key + 1), publish=rng.random() < 0.5)
        bench.drain()
        for key, (context, count) in jobs.items():
            expected = reference(context, count)
            assert bench.made[key] == (
                expected if bench.finish[key] == ["length"] else expected[: len(bench.made[key])]
            )
            assert len(bench.finish[key]) == 1
        bench.core.discard([ticket_of(key) for key in jobs])
        assert outbox.info().chunks_free == room and bench.pool.n_used == 0


def test_a_long_prompt_does_not_stop_decoding() -> None:
    """Decode rows come first: a running sequence gets a token in every step of another's prefill."""
    bench = Bench(blocks=64, size=8, budget=16)
    bench.add(0, [1], greedy(30))
    bench.step()
    bench.add(1, list(range(60)) * 2, greedy(1))
    before = len(bench.made[0])
    for _ in range(5):
        bench.step()
    assert len(bench.made[0]) == before + 5 and not bench.made[1]
    assert set(bench.runner.steps[1:6]) == {16}


@given(
    limit=st.integers(1, 2048), rates=st.lists(st.floats(10, 1e6), min_size=1, max_size=30)
)  # fmt: skip
def test_steps_stay_short_and_within_the_limit(limit: int, rates: list[float]) -> None:
    pace = Pace(limit)
    for rate in rates:
        pace.observe(pace.budget, pace.budget / rate)
        assert min(limit, LEAST) <= pace.budget <= limit
        assert pace.budget in (LEAST, limit) or pace.budget / rate <= TARGET_S
    before = pace.budget
    pace.observe(before - 1, 100.0)
    assert pace.budget == before


def test_prompt_tokens_are_counted_once_and_by_source() -> None:
    bench = Bench(blocks=8, size=4, seqs=3, budget=32)
    context = list(range(12))
    bench.add(0, context, greedy(4))
    bench.drain()
    bench.add(1, context, greedy(4))
    bench.drain()
    stats = bench.stats
    assert (stats.prompt_tokens, stats.local_compute, stats.local_cache_hit) == (24, 12 + 4, 8)
    assert stats.generation_tokens == 8


def test_abort_in_every_state_leaks_nothing() -> None:
    """Waiting, prefilling, decoding, preempted: the blocks come back and the end is told once."""
    bench = Bench(blocks=10, size=4, seqs=2, budget=8, longest=40)
    for key, length in enumerate((5, 30, 9, 9)):
        bench.add(key, list(range(length)), greedy(8))
    bench.step()  # 0 decodes, 1 prefills, 2 and 3 wait
    for key in (3, 1, 0, 2):
        bench.abort(key)
        assert bench.finish[key] == ["abort"]
        bench.abort(key)
        assert bench.finish[key] == ["abort"]
    assert bench.core.idle and bench.pool.n_used == 0


def test_context_logprobs_cover_every_token_after_the_first() -> None:
    bench = Bench(budget=8)
    params = replace(greedy(2), logprobs=0, prompt_logprobs=1)
    context = [1, *reference([1], 9)]
    seen = []
    bench.add(0, context, params)
    while not bench.core.idle:
        outputs = bench.core.step()
        seen.extend(outputs)
    assert [e.token for e in seen[0].prompt_logprobs] == context[1:]
    assert all(e.rank == 1 and e.logprob > -1 for e in seen[0].prompt_logprobs)
