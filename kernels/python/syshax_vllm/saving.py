"""The owner's side of the handoff, in the scheduler's process: tickets that grow as requests run."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from typing import Sequence

from syshax_kernels.errors import KernelError
from syshax_kernels.pool import Outbox, Ticket, UnitStats
from syshax_vllm.counts import Counts, reason_of
from syshax_vllm.meta import Write, blocks_for

log = logging.getLogger("vllm.syshax")

READY_LEASE_S = 30.0  # how long a published ticket waits for its consumer


@dataclass
class Saved:
    """A request's ticket. `done`: tokens in it whose writing has been ordered."""

    ticket: Ticket
    private: bool  # only to survive a preemption
    done: int = 0
    over: bool = False  # found no room; freed at the request's end, since a copy may still run


class Saver:
    """Makes tickets, orders writes, publishes. One thread."""

    def __init__(self, outbox: Outbox, block_size: int, counts: Counts) -> None:
        self._outbox, self._block_size, self._counts = outbox, block_size, counts

    def begin(self, request_id: str, ticket: bytes | None) -> Saved | None:
        """A FILLING ticket; without an id a private one. None (counted) where there is none to be had."""
        try:
            self._outbox.reap()  # an idle engine makes no steps, and does not reap
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
            saved.ticket.append(tokens[start:until])
        except KernelError as err:
            saved.over = True
            self._note(request_id, err)
            return None
        saved.done = until
        return Write(saved.ticket.slot, start, until, blocks_for(blocks, start, until, self._block_size))

    def publish(self, request_id: str, saved: Saved) -> None:
        """FILLING -> READY, once every write has been done."""
        try:
            if saved.done and not saved.over:
                saved.ticket.publish(saved.done)
                self._counts.saved_tokens += saved.done
            else:
                saved.ticket.free()
        except KernelError as err:
            self._note(request_id, err)
            saved.ticket.free()

    def beat(self, page: UnitStats) -> None:
        """Writes the stats page and frees tickets that are over."""
        self._outbox.reap()
        self._outbox.write_stats(page)

    def close(self) -> None:
        self._outbox.close()

    def _note(self, request_id: str, err: Exception) -> None:
        self._counts.save_failures[reason_of(err)] += 1
        log.warning("handoff of request %s not saved: %s", request_id, err)
