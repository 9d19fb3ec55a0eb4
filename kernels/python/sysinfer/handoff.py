"""Both sides of the KV handoff: chunks saved as a sequence runs, and a ticket of another unit taken up.

Contract: docs/kv-handoff.md. Nothing here ever fails a request: what goes wrong is counted, and tokens are recomputed.
"""

from __future__ import annotations

import logging
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
from syshax_kernels.errors import (
    BusyError, CorruptError, FullError, KernelError, MismatchError, NotFoundError, StaleError,
)  # fmt: skip
from syshax_kernels.pool import CHUNK_TOKENS, Geometry, Inbox, Outbox, Ticket, UnitStats, View

from sysinfer.runner import ModelRunner
from sysinfer.sequence import LoadFrom, Sequence
from sysinfer.stats import EngineStats

log = logging.getLogger("sysinfer.handoff")

READY_LEASE_S = 30.0  # how long a published ticket waits for its consumer
PIN_LEASE_S = 30.0  # how long a pinned one is ours, queueing included
FILLING_WAIT_S = 2.0  # how long a ticket may still be FILLING
_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def reason_of(err: Exception) -> str:
    """The label of a failure in the metrics."""
    kinds = ((NotFoundError, "missing"), (StaleError, "stale"), (CorruptError, "corrupt"), (MismatchError, "mismatch"),
             (BusyError, "busy"), (FullError, "full"))  # fmt: skip
    return next((name for kind, name in kinds if isinstance(err, kind)), "error")


@dataclass
class _Saved:
    """A sequence's ticket. `done`: tokens in it."""

    ticket: Ticket
    private: bool  # only to survive a preemption
    done: int = 0
    back: int = 0  # of them, taken back into new blocks


class Saver:
    """The owner's side: one ticket a saved sequence, filled chunk by chunk. A preempted one takes its KV back there."""

    def __init__(self, outbox: Outbox, runner: ModelRunner, stats: EngineStats) -> None:
        self._outbox, self._runner, self._stats = outbox, runner, stats
        self._wire = outbox.info().geometry.wire_type
        self._tickets: Dict[int, _Saved] = {}  # by sequence key

    def begin(self, seq: Sequence) -> None:
        """Opens the ticket that `seq` asks for, so that a consumer finds it FILLING."""
        if seq.handoff.save is not None:
            self._begin(seq, seq.handoff.save, private=False)

    def _begin(self, seq: Sequence, ticket_id: bytes, private: bool) -> None:
        try:
            self._tickets[seq.key] = _Saved(self._outbox.begin(ticket_id, READY_LEASE_S), private)
        except (KernelError, ValueError) as err:
            self._note(seq, err)

    def save(self, seq: Sequence, tail: bool = False) -> None:
        """Writes the chunks that `seq` has completed since; with `tail` the begun one too. Needs its blocks."""
        saved = self._tickets.get(seq.key)
        if saved is None:
            return
        until = seq.n_computed if tail else seq.n_computed // CHUNK_TOKENS * CHUNK_TOKENS
        if until <= saved.done:
            return
        try:
            saved.ticket.append(seq.tokens[saved.done : until])
            for first in _chunk_starts(saved.done, until):
                self._write(saved.ticket, seq, first, min(until, (first // CHUNK_TOKENS + 1) * CHUNK_TOKENS))
            saved.done = until
        except KernelError as err:
            self._note(seq, err)
            self.drop(seq)

    def _write(self, ticket: Ticket, seq: Sequence, first: int, until: int) -> None:
        index, at = divmod(first, CHUNK_TOKENS)
        chunk = np.frombuffer(ticket.chunk(index), np.uint8)
        crc = self._runner.export_kv(seq.blocks, first, until - first, at, chunk, self._wire)
        ticket.seal(index, n_tokens=at + until - first, crc=None if at else crc)  # a seal is over all tokens

    def keep(self, seq: Sequence) -> bool:
        """Saves all KV of `seq`, which is about to lose its blocks; True when `restore` will find it."""
        if seq.key not in self._tickets and seq.n_computed:
            self._begin(seq, secrets.token_bytes(16), private=True)
        self.save(seq, tail=True)
        saved = self._tickets.get(seq.key)
        if saved is not None:
            saved.back = 0
        return saved is not None and saved.done > 0

    def restore(self, seq: Sequence, budget: int) -> Optional[int]:
        """Copies up to `budget` more tokens of what was kept into the new blocks of `seq`, behind what it has.

        None while it goes on; at its end the number of tokens that are now there (0 where the ticket is not whole).
        """
        saved = self._tickets.get(seq.key)
        if saved is None:
            return 0
        begin = max(saved.back, seq.n_computed)
        saved.back = max(min(saved.done, begin + budget), begin)
        try:
            for first in _chunk_starts(begin, saved.back):
                self._read(saved.ticket, seq, first, min(saved.back, (first // CHUNK_TOKENS + 1) * CHUNK_TOKENS))
        except KernelError as err:
            self._stats.load_failures[reason_of(err)] += 1
            log.warning("preempted request %s can't take its KV back, it is computed: %s", seq.request_id, err)
            self.drop(seq)
            return 0
        if saved.back < saved.done:
            return None
        if saved.private:
            self.drop(seq)
        return saved.back - seq.n_computed

    def _read(self, ticket: Ticket, seq: Sequence, first: int, until: int) -> None:
        index, at = divmod(first, CHUNK_TOKENS)
        chunk = np.frombuffer(ticket.verified(index, at + until - first), np.uint8)
        self._runner.import_kv(seq.blocks, first, until - first, at, chunk, self._wire)

    def publish(self, seq: Sequence) -> None:
        """Hands over what has been saved of `seq`, with its tail while its blocks are there."""
        self.save(seq, tail=True)
        saved = self._tickets.pop(seq.key, None)
        if saved is None:
            return
        try:
            if saved.done and not saved.private:
                saved.ticket.publish(saved.done)
                self._stats.saved_tokens += saved.done
            else:
                saved.ticket.free()
        except KernelError as err:
            self._note(seq, err)
            saved.ticket.free()

    def drop(self, seq: Sequence) -> None:
        """Gives up the ticket of `seq`; a consumer that waits for it recomputes."""
        saved = self._tickets.pop(seq.key, None)
        if saved is not None:
            saved.ticket.free()

    def discard(self, ticket_id: bytes) -> None:
        """Frees a ticket that nobody will come for, or, where a consumer has it by now, once that is done."""
        for key in [key for key, saved in self._tickets.items() if saved.ticket.id == ticket_id]:
            del self._tickets[key]
        ticket = self._outbox.find(ticket_id)
        if ticket is not None:
            ticket.free()

    def _note(self, seq: Sequence, err: Exception) -> None:
        self._stats.save_failures[reason_of(err)] += 1
        log.warning("handoff of request %s not saved: %s", seq.request_id, err)

    def beat(self, page: UnitStats) -> None:
        """Writes the stats page and frees tickets that are over."""
        self._outbox.reap()
        self._outbox.write_stats(page)

    def close(self) -> None:
        self._outbox.close()


def _chunk_starts(first: int, until: int) -> List[int]:
    """Where each piece of first .. until begins that lies in one chunk."""
    if first >= until:
        return []
    boundary = (first // CHUNK_TOKENS + 1) * CHUNK_TOKENS
    return [first, *range(boundary, until, CHUNK_TOKENS)]


@dataclass
class _Pinned:
    """A ticket that is ours for a while. `usable`: tokens of it that match the sequence."""

    view: View
    wire_type: int
    usable: int
    done: int = 0  # tokens of the sequence whose KV is in its blocks


class Loader:
    """The consumer's side. A handoff goes: poll until settled, admitted by the scheduler, then step by step."""

    def __init__(self, folder: Path, expected: Geometry, runner: ModelRunner, stats: EngineStats) -> None:
        self._folder, self._expected, self._runner, self._stats = folder, expected, runner, stats
        self._inboxes: Dict[str, Inbox] = {}
        self._pinned: Dict[int, _Pinned] = {}

    def poll(self, seq: Sequence, now: float) -> bool:
        """Tries to pin the ticket of `seq`; True when that is settled (pinned, or given up and counted)."""
        load = seq.handoff.load
        if load is None:
            return True
        try:
            self._pinned[seq.key] = self._pin(seq, load)
        except BusyError as err:
            if now - seq.arrival < FILLING_WAIT_S:
                return False
            self.fail(seq, err, "timeout")
        except (KernelError, OSError) as err:
            self.fail(seq, err)
        return True

    def holds(self, seq: Sequence) -> bool:
        """Whether a ticket is pinned for `seq`."""
        return seq.key in self._pinned

    def _pin(self, seq: Sequence, load: LoadFrom) -> _Pinned:
        inbox = self._inbox(load.pool)
        view = inbox.pin(load.ticket, load.generation, PIN_LEASE_S)
        usable = min(common_prefix(view.tokens, seq.tokens), len(seq.tokens) - 1)
        return _Pinned(view, inbox.info().geometry.wire_type, usable)

    def _inbox(self, name: str) -> Inbox:
        if not _POOL_NAME.fullmatch(name):
            raise KernelError(f"pool name {name!r}, expected a file name", -1)
        if name not in self._inboxes:
            path = self._folder / name
            if not path.is_file():
                raise NotFoundError(f"{path}: no such pool file", -7)
            self._inboxes[name] = Inbox.open(str(path), self._expected)
        return self._inboxes[name]

    def step(self, seq: Sequence, budget: int) -> Optional[int]:
        """Copies up to `budget` more tokens into the blocks of `seq`, behind what it has computed.

        None while the load goes on; at its end the number of tokens that are now there (0 after a failure).
        """
        pinned = self._pinned.get(seq.key)
        if pinned is None:
            return 0
        begin = max(pinned.done, seq.n_computed)
        pinned.done = max(min(pinned.usable, begin + budget), begin)
        try:
            for first in _chunk_starts(begin, pinned.done):
                self._read(pinned, seq, first, min(pinned.done, (first // CHUNK_TOKENS + 1) * CHUNK_TOKENS))
            if pinned.done < pinned.usable:
                return None
            del self._pinned[seq.key]
            pinned.view.release(consumed=True)
        except KernelError as err:
            self.fail(seq, err)
            return 0
        return pinned.done - seq.n_computed

    def _read(self, pinned: _Pinned, seq: Sequence, first: int, until: int) -> None:
        index, at = divmod(first, CHUNK_TOKENS)
        count, found = until - first, pinned.view.locate(index)
        whole = at == 0 and count == found.n_tokens  # then the checksum is made while copying
        chunk = np.frombuffer(found.memory if whole else pinned.view.chunk(index), np.uint8)
        crc = self._runner.import_kv(seq.blocks, first, count, at, chunk, pinned.wire_type)
        if whole:
            pinned.view.match(index, count, crc)

    def fail(self, seq: Sequence, err: Exception, reason: str = "") -> None:
        """Counts a handoff that can't be taken up; the sequence computes its context itself."""
        self._stats.load_failures[reason or reason_of(err)] += 1
        log.warning("handoff to request %s not loaded, its context is computed: %s", seq.request_id, err)
        self.cancel(seq)

    def cancel(self, seq: Sequence) -> None:
        """Lets go of the ticket, which is then over: each handoff is consumed once."""
        pinned = self._pinned.pop(seq.key, None)
        if pinned is None:
            return
        try:
            pinned.view.release(consumed=True)
        except KernelError as err:
            log.debug("the ticket of request %s was gone already: %s", seq.request_id, err)

    def close(self) -> None:
        for inbox in self._inboxes.values():
            inbox.close()


def common_prefix(left: List[int], right: List[int]) -> int:
    """Length of the longest common beginning."""
    limit = min(len(left), len(right))
    if left[:limit] == right[:limit]:
        return limit
    return next(i for i in range(limit) if left[i] != right[i])


def open_outbox(path: Path, geometry: Geometry, chunks: int, tickets: int, max_tokens: int) -> Optional[Outbox]:
    """The unit's own pool file; None (and a log line) where it can't be had: the unit then serves without saving."""
    try:
        return Outbox.create(str(path), geometry, chunks=chunks, tickets=tickets, max_tokens=max_tokens)
    except (KernelError, OSError) as err:
        log.error("no handoff from this unit: %s", err)
        return None
