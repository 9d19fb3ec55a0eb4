"""The engine without its thread: sequences in, steps, outputs out."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Callable

import numpy as np
from numpy.typing import NDArray

from sysinfer.detok import TokenBytes
from sysinfer.engine_errors import SequenceError
from sysinfer.handoff import SequenceLoader, SequenceSaver
from sysinfer.output import ABORT, ERROR, Generation, Output
from sysinfer.pace import Pace
from sysinfer.runner import ALL_LOGITS, LAST_LOGITS, NO_LOGITS, ModelRunner, Row
from sysinfer.sampling import Sampled, check_finite, logprob_of, sample
from sysinfer.scheduler import Scheduler, Step, Work
from sysinfer.sequence import Sequence, Status
from sysinfer.stats import EngineStats

log = logging.getLogger("sysinfer.engine")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Handoffs:
    """The two sides of the handoff; None where the unit has no pool."""

    saver: SequenceSaver | None = None
    loader: SequenceLoader | None = None
    load_budget: int = 1024  # tokens copied from a ticket in one step, so that others' decode goes on
    exact: bool = True  # chunks hold KV to the bit as the cache does; else a preempted sequence is computed again


class EngineCore:
    """Owns the sequences. One thread calls it; `step` never blocks but for the model."""

    def __init__(
        self, scheduler: Scheduler, runner: ModelRunner, tokens: TokenBytes, stats: EngineStats, handoffs: Handoffs,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._scheduler, self._runner, self._tokens = scheduler, runner, tokens
        self._stats, self._handoffs, self._clock = stats, handoffs, clock
        self._pace = Pace(scheduler.config.max_num_batched_tokens)
        self._sequences: dict[int, Sequence] = {}
        self._generations: dict[int, Generation] = {}
        self._arriving: deque[Sequence] = deque()  # their handoff is not settled yet
        scheduler.before_preempt = self._before_preempt
        stats.blocks_total = scheduler.pool.n_blocks

    @property
    def idle(self) -> bool:
        return not self._sequences

    @property
    def only_arriving(self) -> bool:
        """Whether there is nothing to do but to wait for other units' tickets."""
        return self._scheduler.idle

    def add(self, seq: Sequence) -> None:
        self._sequences[seq.key] = seq
        self._generations[seq.key] = Generation.of(seq, self._tokens)
        if self._handoffs.saver is not None:
            self._handoffs.saver.begin(seq)
        elif seq.handoff.save is not None:
            self._stats.save_failures["no_pool"] += 1
        if self._handoffs.loader is not None:
            self._handoffs.loader.expect(seq)
        self._arriving.append(seq)
        self._settle()

    def _settle(self) -> None:
        """Passes sequences on to the scheduler once their handoff is pinned or given up."""
        for _ in range(len(self._arriving)):
            seq = self._arriving.popleft()
            if self._settled(seq):
                self._scheduler.add(seq)
            else:
                self._arriving.append(seq)

    def _settled(self, seq: Sequence) -> bool:
        if seq.handoff.load is None:
            return True
        if self._handoffs.loader is None:
            self._stats.load_failures["no_pool"] += 1
            seq.lost = "no_pool"
            return True
        if not self._handoffs.loader.poll(seq):
            return False
        seq.load_pending = self._handoffs.loader.holds(seq)
        return True

    def abort(self, request_ids: Iterable[str], publish: bool, keys: Iterable[int] = ()) -> list[Output]:
        """Ends sequences by request id (which clients may share), or by it with `-` and the number of the choice; or by
        their own keys.

        `publish`: hand over their KV where they have a ticket (abort by id); else it is dropped (client gone).
        """
        wanted = set(request_ids)
        found = [self._sequences[key] for key in keys if key in self._sequences]
        if wanted:
            named = (s for s in self._sequences.values() if {s.request_id, f"{s.request_id}-{s.index}"} & wanted)
            found.extend(named)
        return [self._abort(seq, publish) for seq in found]

    def discard(self, tickets: Iterable[bytes]) -> None:
        """Frees tickets that nobody will come for."""
        saver = self._handoffs.saver
        if saver is not None:
            for ticket in tickets:
                saver.discard(ticket)

    def _abort(self, seq: Sequence, publish: bool) -> Output:
        text = self._generations[seq.key].stops.flush()
        self._end(seq, ABORT, publish)
        return Output(seq.key, text=text, finish=ABORT)

    def fail(self) -> list[Output]:
        """Gives up every sequence, after an error that the engine can't go on from."""
        keys, self._sequences = list(self._sequences), {}
        return [Output(key, finish=ERROR) for key in keys]

    def step(self) -> list[Output]:
        """One step; news of the sequences that got tokens."""
        begin = time.perf_counter_ns()
        self._settle()
        step = self._scheduler.plan(self._pace.budget)
        failed = self._continue_loads()
        if not step.work:
            self._measure(step, begin, 0)
            return failed
        rows = [self._row(w) for w in step.work]
        before = time.perf_counter_ns()
        logits = self._runner.forward(rows)
        in_model = time.perf_counter_ns() - before
        outputs = failed + self._take(step, rows, logits)
        self._measure(step, begin, in_model)
        return outputs

    def _row(self, work: Work) -> Row:
        seq = work.seq
        logits = ALL_LOGITS if seq.needs_all_logits else LAST_LOGITS if work.samples else NO_LOGITS
        return Row(seq.tokens[seq.n_computed : seq.n_computed + work.n_tokens], seq.n_computed, seq.blocks, logits)

    def _continue_loads(self) -> list[Output]:
        """Goes on with what sequences load; the ends of those whose load raised."""
        loading = [s for s in self._scheduler.running if s.status is Status.LOADING]
        return [output for seq in loading for output in self._guarded(seq, partial(self._continue_load, seq))]

    def _continue_load(self, seq: Sequence) -> None:
        restored = seq.kept
        loaded = self._load(seq)
        if loaded is None:
            return
        self._scheduler.advance(seq, loaded)
        self._scheduler.loaded(seq)
        if restored:
            self._stats.restored_tokens += loaded
        else:
            seq.n_external = loaded
            self._stats.loaded_tokens += loaded

    def _load(self, seq: Sequence) -> int | None:
        """The next part of what `seq` loads; the number of tokens that came in all when that was the last."""
        saver, loader = self._handoffs.saver, self._handoffs.loader
        if not seq.kept:
            return loader.step(seq, self._handoffs.load_budget) if loader is not None else 0
        restored = saver.restore(seq, self._handoffs.load_budget) if saver is not None else 0
        if restored == 0 and not seq.counted:
            seq.n_local, seq.n_external = seq.n_computed, 0
        return restored

    def _before_preempt(self, seq: Sequence) -> None:
        """Keeps the KV of a sequence that is about to lose its blocks, and lets go of a load it was in."""
        saver, loader = self._handoffs.saver, self._handoffs.loader
        if seq.status is Status.LOADING and not seq.kept and loader is not None:
            self._stats.load_failures["preempted"] += 1
            seq.lost = "preempted"
            loader.cancel(seq)
            seq.load_pending = False
        elif saver is not None and not self._handoffs.exact:
            saver.save(seq, tail=True)  # what it has asked to be saved stays whole
        elif saver is not None and not seq.needs_all_logits:
            seq.kept = seq.load_pending = saver.keep(seq)

    def _take(self, step: Step, rows: list[Row], logits: Floats) -> list[Output]:
        """Samples where a sequence's known tokens are all computed; saves, finishes."""
        plain = all(w.seq.params.plain and row.logits != ALL_LOGITS for w, row in zip(step.work, rows))
        best = logits.argmax(axis=1).tolist() if plain and len(logits) else []
        outputs: list[Output] = []
        at, now = 0, self._clock()
        for work, row in zip(step.work, rows):
            count = len(row.tokens) if row.logits == ALL_LOGITS else int(row.logits == LAST_LOGITS)
            likeliest = best[at] if plain and count else None
            mine = logits[at : at + count]
            outputs += self._guarded(work.seq, partial(self._take_one, work, row, mine, likeliest, now))
            at += count
        return outputs

    def _take_one(self, work: Work, row: Row, logits: Floats, likeliest: int | None, now: float) -> Output | None:
        """One sequence's part of a step; `likeliest`: its next token, where it asks for nothing else."""
        seq = work.seq
        if row.logits == ALL_LOGITS:
            self._note_context(seq, row, logits)
        self._scheduler.advance(seq, work.n_tokens)
        if self._handoffs.saver is not None:
            self._handoffs.saver.save(seq)
        if not work.samples:
            return None
        if likeliest is None:
            history = self._generations[seq.key].history
            return self._emit(seq, sample(logits[-1], seq.params, seq.tokens, seq.n_context, history), now)
        check_finite(float(logits[-1, likeliest]))
        return self._emit(seq, Sampled(likeliest), now)

    def _guarded(self, seq: Sequence, part: Callable[[], Output | None]) -> list[Output]:
        """What `part` says of `seq`; an error in it ends that sequence alone."""
        try:
            output = part()
        except SequenceError as err:
            log.warning("sequence %d of %s ends: %s", seq.index, seq.request_id, err)
            return self._fail_one(seq, err)
        except Exception:  # the top of what is done for one sequence: its neighbours go on
            log.exception("sequence %d of %s has failed", seq.index, seq.request_id)
            return self._fail_one(seq, SequenceError("this sequence has failed; see the log of the unit", 500))
        return [] if output is None else [output]

    def _fail_one(self, seq: Sequence, error: SequenceError) -> list[Output]:
        if seq.key not in self._sequences:
            return []
        self._end(seq, ERROR, publish=False)
        return [Output(seq.key, finish=ERROR, error=error)]

    def _note_context(self, seq: Sequence, row: Row, logits: Floats) -> None:
        found = self._generations[seq.key].prompt_logprobs
        del found[max(row.position, 0) :]  # computed again after a preemption
        following = seq.tokens[row.position + 1 : min(row.position + len(row.tokens), seq.n_context - 1) + 1]
        found.extend(logprob_of(logits[i], token, seq.params.prompt_logprobs or 0) for i, token in enumerate(following))

    def _emit(self, seq: Sequence, sampled: Sampled, now: float) -> Output:
        generation = self._generations[seq.key]
        seq.tokens.append(sampled.token)
        first = not seq.counted
        self._count(seq, generation, now)
        text, finish, reason = generation.push(seq, self._scheduler.config.max_model_len)
        if finish is not None:
            self._end(seq, finish, seq.handoff.publishes(finish))
        return Output(
            seq.key, (sampled.token,), text, (sampled.logprob,) if sampled.logprob else (),
            tuple(generation.prompt_logprobs) if first else (), finish, reason, seq.n_local + seq.n_external,
            lost=seq.lost,
        )  # fmt: skip

    def _count(self, seq: Sequence, generation: Generation, now: float) -> None:
        stats = self._stats
        stats.generation_tokens += 1
        if seq.counted:
            stats.itl.observe(now - generation.last_time)
        else:
            seq.counted = True
            stats.ttft.observe(now - seq.arrival)
            stats.prompt_tokens += seq.n_context
            stats.local_cache_hit += seq.n_local
            stats.external_kv_transfer += seq.n_external
            stats.local_compute += seq.n_context - seq.n_local - seq.n_external
        generation.last_time = now

    def _end(self, seq: Sequence, finish: str, publish: bool) -> None:
        """Takes `seq` out of everything: ticket first, while its blocks still hold the KV."""
        handoffs = self._handoffs
        if handoffs.saver is not None:
            (handoffs.saver.publish if publish else handoffs.saver.drop)(seq)
        if handoffs.loader is not None:
            handoffs.loader.cancel(seq)
        if seq in self._arriving:
            self._arriving.remove(seq)
        else:
            self._scheduler.finish(seq)
        del self._sequences[seq.key], self._generations[seq.key]
        self._stats.finished[finish] += 1
        self._stats.e2e.observe(self._clock() - seq.arrival)

    def _measure(self, step: Step, begin: int, in_model: int) -> None:
        stats, scheduler = self._stats, self._scheduler
        stats.running, stats.waiting = len(scheduler.running), len(scheduler.waiting) + len(self._arriving)
        stats.blocks_used, stats.preemptions = scheduler.pool.n_used, scheduler.n_preemptions
        stats.step_tokens = step.n_tokens
        if step.work:
            stats.steps += 1
            stats.step_ns = time.perf_counter_ns() - begin
            stats.overhead_ns += stats.step_ns - in_model
            self._pace.observe(stats.step_tokens, stats.step_ns / 1e9)

    @property
    def max_num_seqs(self) -> int:
        """Running sequences at most."""
        return self._scheduler.config.max_num_seqs

    @property
    def max_step_tokens(self) -> int:
        """Tokens that the next step may have."""
        return max(self._pace.budget, self.max_num_seqs)

    def queue_sizes(self) -> tuple[int, int]:
        """Context tokens of waiting sequences not computed yet, and tokens in the KV cache of running ones."""
        waiting = sum(len(s.tokens) for s in self._scheduler.waiting) + sum(len(s.tokens) for s in self._arriving)
        return waiting, sum(s.n_computed for s in self._scheduler.running)
