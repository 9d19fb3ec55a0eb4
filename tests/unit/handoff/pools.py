"""Pools in memory that keep the rules of docs/kv-handoff.md section 2 and complain when an owner does not."""

from __future__ import annotations

from collections import Counter
from collections import Counter as CounterOf
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from syshax_kernels.kernel_errors import BusyError, CorruptError, FullError, KernelError, NotFoundError, StaleError
from syshax_kernels.pool import CHUNK_TOKENS

FILLING, READY, LOADING, OVER = "filling", "ready", "loading", "over"


@dataclass
class Counts:
    """HandoffCounts."""

    saved_tokens: int = 0
    load_failures: CounterOf[str] = field(default_factory=Counter)
    save_failures: CounterOf[str] = field(default_factory=Counter)


class MemoryTicket:
    """A ticket whose chunks are lists of KV; KV of a token is its id."""

    def __init__(self, pool: "MemoryPool", ticket_id: bytes) -> None:
        self.pool, self.id = pool, ticket_id
        self.state = FILLING
        self.tokens: list[int] = []
        self.chunks: dict[int, list[int | None]] = {}
        self.seals: dict[int, int] = {}  # chunk: tokens covered
        self.writing = 0  # copies that have not ended

    def append(self, tokens: Sequence[int]) -> None:
        assert self.state == FILLING
        wanted = -(-(len(self.tokens) + len(tokens)) // CHUNK_TOKENS) - len(self.chunks)
        if wanted > self.pool.chunks_free:
            raise FullError("no chunk", -6)
        self.pool.chunks_free -= wanted
        for _ in range(wanted):
            self.chunks[len(self.chunks)] = [None] * CHUNK_TOKENS
        self.tokens += tokens

    def chunk_address(self, index: int) -> int:
        assert self.state == FILLING and index in self.chunks
        return index

    def seal(self, index: int, *, n_tokens: int | None = None, crc: int | None = None) -> None:
        assert self.state == FILLING and n_tokens
        self.seals[index] = n_tokens

    def verify(self, index: int, n_tokens: int) -> None:
        if self.seals.get(index, 0) < n_tokens:
            raise CorruptError("not sealed", -9)

    def publish(self, n_tokens: int) -> None:
        assert self.state == FILLING and 0 < n_tokens <= len(self.tokens)
        for index in range(-(-n_tokens // CHUNK_TOKENS)):
            if self.seals.get(index, 0) < min(CHUNK_TOKENS, n_tokens - index * CHUNK_TOKENS):
                raise KernelError("a rank has not sealed", -4)
        self.tokens, self.state = self.tokens[:n_tokens], READY

    def free(self) -> None:
        assert self.writing == 0, "freed while a copy runs"
        if self.state != OVER:
            self.pool.chunks_free += len(self.chunks)
            self.state = OVER
            self.pool.tickets.pop(self.id, None)

    def kv(self) -> list[int | None]:
        """Of all its tokens."""
        return [kv for index in range(len(self.chunks)) for kv in self.chunks[index]][: len(self.tokens)]


class MemoryPool:
    """An Outbox, and the Inbox of a consumer."""

    def __init__(self, chunks: int, tickets: int) -> None:
        self.chunks_free, self.limit = chunks, tickets
        self.tickets: dict[bytes, MemoryTicket] = {}
        self.pages = 0
        self.beat_at = 0.0
        self.closed = False

    def begin(self, ticket_id: bytes, lease_s: float) -> Any:
        assert lease_s > 0
        if ticket_id in self.tickets:
            raise BusyError("the id lives", -10)
        if len(self.tickets) == self.limit:
            raise FullError("no ticket", -6)
        self.tickets[ticket_id] = MemoryTicket(self, ticket_id)
        return self.tickets[ticket_id]

    def find(self, ticket_id: bytes) -> Any:
        return self.tickets.get(ticket_id)

    def reap(self) -> int:
        return 0

    def write_stats(self, stats: object) -> None:
        self.pages += 1

    def pin(self, ticket_id: bytes, generation: int, lease_s: float) -> Any:
        ticket = self.tickets.get(ticket_id)
        if generation not in (0, 1):
            raise StaleError("another generation", -8)
        if ticket is None:
            raise NotFoundError("no ticket", -7)
        if ticket.state == FILLING:
            raise BusyError("still filled", -10)
        if ticket.state != READY:
            raise StaleError("taken", -8)
        ticket.state = LOADING
        return MemoryView(ticket)

    def last_beat(self) -> float:
        return self.beat_at

    def info(self) -> Any:
        return None

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class MemoryView:
    """A pinned ticket."""

    def __init__(self, ticket: MemoryTicket) -> None:
        self.ticket, self.lost, self.released = ticket, False, 0

    @property
    def tokens(self) -> list[int]:
        return list(self.ticket.tokens)

    def release(self, consumed: bool = True) -> None:
        self.released += 1
        assert self.released == 1, "released twice"
        if self.lost:
            raise StaleError("the owner took it away", -8)
        self.ticket.free()
