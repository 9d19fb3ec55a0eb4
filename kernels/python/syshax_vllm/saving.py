"""The owner's side of the handoff, in the scheduler's process: tickets that grow as requests run."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from syshax_kernels.errors import KernelError
from syshax_kernels.pool import Outbox, Ticket, UnitStats
from syshax_vllm.counts import Counts, reason_of
from syshax_vllm.meta import Write, blocks_for

log = logging.getLogger("vllm.syshax")

IDLE_BEAT_S = 0.25  # an idle engine makes no steps; somebody must free tickets that are over, and say we are alive
READY_LEASE_S = 30.0  # how long a published ticket waits for its consumer


@dataclass
class Saved:
    """A request's ticket. `done`: tokens in it whose writing has been ordered."""

    ticket: Ticket
    private: bool  # only to survive a preemption
    done: int = 0
    over: bool = False  # found no room; freed at the request's end, since a copy may still run


class Saver:
    """Makes tickets, orders writes, publishes. Called by the engine's thread; one of its own beats while that idles."""

    def __init__(self, outbox: Outbox, block_size: int, counts: Counts) -> None:
        self._outbox, self._block_size, self._counts = outbox, block_size, counts
        self._lock = threading.Lock()  # of the outbox
        self._page = UnitStats()
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat_on, name="syshax-beat", daemon=True)
        self._heart.start()

    def begin(self, request_id: str, ticket: bytes | None) -> Saved | None:
        """A FILLING ticket; without an id a private one. None (counted) where there is none to be had."""
        try:
            with self._lock:
                return Saved(self._outbox.begin(ticket or secrets.token_bytes(16), READY_LEASE_S), ticket is None)
        except (KernelError, ValueError) as err:
            self._note(request_id, err)
            return None

    def extend(
        self, request_id: str, saved: Saved, tokens: Sequence[int], until: int, blocks: list[int]
    ) -> Write | None:
        """Takes tokens up to `until` into the ticket and orders their KV written. None: nothing to do, or no room."""
        start = saved.done
        if until <= start or saved.over:
            return None
        try:
            with self._lock:
                saved.ticket.append(tokens[start:until])
        except KernelError as err:
            saved.over = True
            self._note(request_id, err)
            return None
        saved.done = until
        return Write(saved.ticket.slot, start, until, blocks_for(blocks, start, until, self._block_size))

    def publish(self, request_id: str, saved: Saved) -> None:
        """FILLING -> READY, once every write has been done."""
        if not saved.done or saved.over:
            return self.drop(saved)
        try:
            with self._lock:
                saved.ticket.publish(saved.done)
            self._counts.saved_tokens += saved.done
        except KernelError as err:
            self._note(request_id, err)
            self.drop(saved)

    def drop(self, saved: Saved) -> None:
        """Frees the ticket. Nothing may be writing into it."""
        with self._lock:
            saved.ticket.free()

    def beat(self, page: UnitStats) -> None:
        """Writes the stats page and frees tickets that are over."""
        with self._lock:
            self._page = page
            self._write()

    def _write(self) -> None:
        self._outbox.reap()
        self._outbox.write_stats(self._page)

    def _beat_on(self) -> None:
        while not self._closed.wait(IDLE_BEAT_S):
            try:
                with self._lock:
                    self._write()
            except KernelError as err:
                log.error("no stats page and no freed tickets while this unit idles: %s", err)
                return

    def close(self) -> None:
        self._closed.set()
        self._heart.join()
        self._outbox.close()

    def _note(self, request_id: str, err: Exception) -> None:
        self._counts.save_failures[reason_of(err)] += 1
        log.warning("handoff of request %s not saved: %s", request_id, err)
