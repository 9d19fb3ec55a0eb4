"""The engine's part of the KV handoff: which of its blocks hold a sequence's KV, and the copies (syshax_handoff).

The engine's thread copies at once. Nothing here ever fails a request: what goes wrong is counted, and tokens are
recomputed.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Callable

import numpy as np

from syshax_handoff import chunks
from syshax_handoff.chunks import ChunkPart, Copy
from syshax_handoff.loading import Loader
from syshax_handoff.reasons import reason_of
from syshax_handoff.saving import Progress, Saver
from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.pool import Geometry, Inbox, Outbox, PoolInfo, UnitStats, memory
from sysinfer.runner import Chunk, ModelRunner
from sysinfer.sequence import Sequence
from sysinfer.stats import EngineStats

log = logging.getLogger("sysinfer.handoff")

Move = Callable[[list[int], int, int, int, Chunk, int], int]  # ModelRunner.export_kv or import_kv


def _copy(move: Move, seq: Sequence, wire_type: int, chunk_bytes: int) -> Copy:
    """The runner's copy between the blocks of `seq` and a chunk."""

    def copy(part: ChunkPart, address: int) -> int:
        chunk = np.frombuffer(memory(address, chunk_bytes), np.uint8)
        return move(seq.blocks, part.first, part.count, part.at, chunk, wire_type)

    return copy


class SequenceSaver:
    """The owner's side. A preempted sequence takes its KV back from its ticket."""

    def __init__(self, outbox: Outbox, runner: ModelRunner, stats: EngineStats) -> None:
        info: PoolInfo = outbox.info()
        self._wire, self._chunk_bytes = info.geometry.wire_type, info.chunk_bytes
        self._runner, self._stats = runner, stats
        self._saver: Saver[int] = Saver(outbox, stats, log)
        self._back: dict[int, Progress] = {}  # of preempted sequences that take their KV back

    def begin(self, seq: Sequence) -> None:
        """Opens the ticket that `seq` asks for, so that a consumer finds it FILLING."""
        if seq.handoff.save is not None:
            self._saver.begin(seq.key, seq.request_id, seq.handoff.save)

    def save(self, seq: Sequence, tail: bool = False) -> None:
        """Writes the chunks that `seq` has completed since; with `tail` the begun one too. Needs its blocks."""
        self._write(seq, self._saver.order(seq.key, seq.tokens, seq.n_computed, tail))

    def _write(self, seq: Sequence, tokens: range) -> None:
        ticket = self._saver.ticket(seq.key)
        if ticket is None or not tokens:
            return
        try:
            chunks.save(ticket, tokens, _copy(self._runner.export_kv, seq, self._wire, self._chunk_bytes))
        except KernelError as err:
            self._saver.failed(seq.key, err)

    def keep(self, seq: Sequence) -> bool:
        """Saves all KV of `seq`, which is about to lose its blocks; True when `restore` will find it."""
        self._write(seq, self._saver.keep(seq.key, seq.request_id, seq.tokens, seq.n_computed))
        self._back[seq.key] = Progress(self._saver.readable(seq.key))
        return self._back[seq.key].total > 0

    def restore(self, seq: Sequence, budget: int) -> int | None:
        """Copies up to `budget` more tokens of what was kept into the new blocks of `seq`, behind what it has.

        None while it goes on; at its end the number of tokens that are now there (0 where the ticket is not whole).
        """
        ticket = self._saver.ticket(seq.key)
        if ticket is None:
            return 0
        tokens = self._back[seq.key].next(seq.n_computed, budget)
        try:
            chunks.restore(ticket, tokens, _copy(self._runner.import_kv, seq, self._wire, self._chunk_bytes))
        except KernelError as err:
            self._stats.load_failures[reason_of(err)] += 1
            log.warning("preempted request %s can't take its KV back, it is computed: %s", seq.request_id, err)
            self._restored(seq, whole=False)
            return 0
        self._back[seq.key] = self._back[seq.key].after(tokens)
        if not self._back[seq.key].over:
            return None
        self._restored(seq, whole=True)
        return tokens.stop - seq.n_computed

    def _restored(self, seq: Sequence, whole: bool) -> None:
        del self._back[seq.key]
        self._saver.restored(seq.key, whole)

    def publish(self, seq: Sequence) -> None:
        """Hands over what has been saved of `seq`, with its tail while its blocks are there."""
        self.save(seq, tail=True)
        self._end(seq, publish=True)

    def drop(self, seq: Sequence) -> None:
        """Gives up the ticket of `seq`; a consumer that waits for it recomputes."""
        self._end(seq, publish=False)

    def _end(self, seq: Sequence, publish: bool) -> None:
        self._back.pop(seq.key, None)
        self._saver.end(seq.key, publish)

    def discard(self, ticket_id: bytes) -> None:
        """Frees a ticket that nobody will come for, or, where a consumer has it by now, once that is done."""
        self._saver.discard(ticket_id)

    def beat(self, page: UnitStats) -> None:
        """Writes the stats page and frees tickets that are over."""
        self._saver.beat(page)

    def close(self) -> None:
        self._saver.close()


class SequenceLoader:
    """The consumer's side. A handoff goes: poll until settled, admitted by the scheduler, then step by step."""

    def __init__(self, folder: Path, expected: Geometry, runner: ModelRunner, stats: EngineStats) -> None:
        self._runner = runner
        self._loader: Loader[int] = Loader(folder, lambda path: Inbox.open(path, expected), stats, log, lost=self._note)
        self._expected: dict[int, Sequence] = {}

    def expect(self, seq: Sequence) -> None:
        """Begins to wait for the ticket that `seq` asks for."""
        if seq.handoff.load is not None:
            self._expected[seq.key] = seq
            self._loader.expect(seq.key, seq.request_id, seq.handoff.load)

    def poll(self, seq: Sequence) -> bool:
        """Tries to pin the ticket of `seq`; True when that is settled (pinned, or given up and counted)."""
        return self._loader.poll(seq.key, seq.tokens) is not None

    def _note(self, key: int, reason: str) -> None:
        self._expected[key].lost = reason

    def holds(self, seq: Sequence) -> bool:
        """Whether a ticket is pinned for `seq`."""
        return self._loader.view(seq.key) is not None

    def step(self, seq: Sequence, budget: int) -> int | None:
        """Copies up to `budget` more tokens into the blocks of `seq`, behind what it has computed.

        None while the load goes on; at its end the number of tokens that are now there (0 after a failure).
        """
        view = self._loader.view(seq.key)
        if view is None:
            return 0
        tokens, info = self._loader.next(seq.key, seq.n_computed, budget), self._loader.info(seq.key)
        copy = _copy(self._runner.import_kv, seq, info.geometry.wire_type, info.chunk_bytes)
        try:
            chunks.load(view, tokens, copy)
        except KernelError as err:
            self._loader.fail(seq.key, err)
            return 0
        if not self._loader.took(seq.key, tokens):
            return None
        return tokens.stop - seq.n_computed if self._loader.done(seq.key) else 0

    def cancel(self, seq: Sequence) -> None:
        """Lets go of the ticket, which is then over: each handoff is consumed once."""
        self._loader.cancel(seq.key)
        self._expected.pop(seq.key, None)

    def close(self) -> None:
        self._loader.close()


def open_outbox(path: Path, geometry: Geometry, chunks: int, tickets: int, max_tokens: int) -> Outbox | None:
    """The unit's own pool file; None (and a log line) where it can't be had: the unit then serves without saving."""
    try:
        return Outbox.create(str(path), geometry, chunks=chunks, tickets=tickets, max_tokens=max_tokens)
    except (KernelError, OSError) as err:
        log.error("no handoff from this unit: %s", err)
        return None
