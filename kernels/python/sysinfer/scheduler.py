"""Continuous batching: which sequences compute how many tokens in the next step. Pure: no clock, no I/O.

Decode rows come first, then prefill chunks in order of arrival within a token budget. When blocks run out the newest
running sequence is preempted: its blocks go, its tokens stay; its KV is loaded again later where it was kept, else
computed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Callable

from sysinfer.blocks import ROOT, BlockPool, chain
from sysinfer.sequence import Sequence, Status

ALL_LOGITS_CHUNK = 64  # tokens of a chunk whose every token needs logits; bounds the logits buffer


@dataclass(frozen=True)
class SchedulerConfig:
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512
    max_model_len: int = 2048


@dataclass(frozen=True)
class Work:
    """The next `n_tokens` of a sequence, from its `n_computed`. `samples`: the last of them yields a token."""

    seq: Sequence
    n_tokens: int
    samples: bool


@dataclass
class Step:
    """What one step does. `preempted`: in the order it happened; their blocks are gone."""

    work: list[Work] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        return sum(w.n_tokens for w in self.work)


class Scheduler:
    """Owns the waiting queue, the running list and the block pool."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        self.config, self.pool = config, pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission
        self.n_preemptions = 0
        self.before_preempt: Callable[[Sequence], None] = lambda seq: None  # called while its blocks still hold its KV

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def plan(self, budget: int | None = None) -> Step:
        """Chooses the work of the next step, of at most `budget` tokens, and gives it blocks."""
        step = Step()
        budget = max(budget or self.config.max_num_batched_tokens, self.config.max_num_seqs)
        decoding = [s for s in self.running if s.status is Status.RUNNING and s.n_pending == 1]
        filling = [s for s in self.running if s.status is Status.RUNNING and s.n_pending > 1]
        for seq in decoding + filling:
            # An earlier one may have pushed this one out, or the budget may be spent.
            if seq.status is Status.RUNNING and budget > 0:
                budget -= self._advance(seq, budget, step)
        if not step.preempted:
            self._admit(budget, step)
        return step

    def _advance(self, seq: Sequence, budget: int, step: Step) -> int:
        """Plans the next tokens of a running sequence, preempting newer ones for blocks; returns how many."""
        count = self._chunk(seq, budget)
        if not self._make_room(seq, count, step):
            return 0
        step.work.append(Work(seq, count, count == seq.n_pending))
        return count

    def _chunk(self, seq: Sequence, budget: int) -> int:
        limit = min(budget, ALL_LOGITS_CHUNK) if seq.needs_all_logits else budget
        return min(seq.n_pending, limit)

    def _make_room(self, seq: Sequence, count: int, step: Step) -> bool:
        """Blocks for `count` more tokens of `seq`; False when `seq` itself had to give way."""
        while not self._grow(seq, seq.n_computed + count):
            victim = self._newest(step)
            if victim is None:
                return False
            self._preempt(victim, step)
            if victim is seq:
                return False
        return True

    def _newest(self, step: Step) -> Sequence | None:
        """The last admitted running sequence that is not in this step yet (LOADING ones hold what others wait for)."""
        planned = {w.seq.key for w in step.work}
        return next((s for s in reversed(self.running) if s.key not in planned), None)

    def _grow(self, seq: Sequence, n_tokens: int) -> bool:
        missing = -(-n_tokens // self.pool.block_size) - len(seq.blocks)
        if missing <= 0:
            return True
        blocks = self.pool.allocate(missing)
        if blocks is None:
            return False
        seq.blocks.extend(blocks)
        return True

    def _preempt(self, seq: Sequence, step: Step) -> None:
        self.before_preempt(seq)
        self.running.remove(seq)
        step.preempted.append(seq)
        self.n_preemptions += 1
        self._drop_blocks(seq)
        seq.status = Status.WAITING
        self.waiting.appendleft(seq)

    def _drop_blocks(self, seq: Sequence) -> None:
        self.pool.release(seq.blocks)
        seq.blocks, seq.n_computed, seq.n_hashed, seq.digest = [], 0, 0, ROOT

    def _admit(self, budget: int, step: Step) -> None:
        """Moves waiting sequences to running while seats, tokens and blocks last, in order."""
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            seq = self.waiting[0]
            if not self._seat(seq):
                return
            self.waiting.popleft()
            self.running.append(seq)
            step.admitted.append(seq)
            if seq.load_pending:
                seq.status = Status.LOADING
            else:
                seq.status = Status.RUNNING
                budget -= self._advance(seq, budget, step)

    def _seat(self, seq: Sequence) -> bool:
        """Blocks, cached and new, for all known tokens of `seq` and one more; False for lack of free ones."""
        limit = 0 if seq.needs_all_logits else len(seq.tokens) - 1
        matched = self.pool.match(seq.tokens, limit)
        size = self.pool.block_size
        total = min(-(-(len(seq.tokens) + 1) // size), self.pool.n_blocks)
        if total - len(matched) > self.pool.free_after(matched):
            return False
        self.pool.hold(matched)
        seq.blocks = list(matched)
        seq.n_computed = len(matched) * size
        seq.n_hashed = 0
        self._hash(seq)
        if not seq.counted and not seq.kept:
            seq.n_local, seq.n_external = seq.n_computed, 0
        return self._grow(seq, total * size)

    def _hash(self, seq: Sequence) -> None:
        """Makes the full blocks of `seq` known to the prefix cache."""
        size = self.pool.block_size
        while (seq.n_hashed + 1) * size <= seq.n_computed:
            start = seq.n_hashed * size
            seq.digest = chain(seq.digest, seq.tokens[start : start + size])
            self.pool.remember(seq.blocks[seq.n_hashed], seq.digest)
            seq.n_hashed += 1

    def advance(self, seq: Sequence, n_tokens: int) -> None:
        """Notes that the KV of `n_tokens` more tokens of `seq` is there (computed or loaded)."""
        seq.n_computed += n_tokens
        self._hash(seq)

    def loaded(self, seq: Sequence) -> None:
        """What a LOADING sequence loads has come, with or without success."""
        seq.load_pending = seq.kept = False
        seq.status = Status.RUNNING

    def finish(self, seq: Sequence) -> None:
        """Takes `seq` out, wherever it is; its blocks stay cached until they are needed."""
        if seq.status is Status.WAITING:
            self.waiting.remove(seq)
        elif seq.status is not Status.FINISHED:
            self.running.remove(seq)
        self._drop_blocks(seq)
        seq.status = Status.FINISHED
