"""Tokens of a request as parts of handoff chunks, and the copy of each part with its checksum.

An engine supplies `copy`: KV between its blocks and the memory of a chunk. What is sealed, verified or compared, and
when, is decided here: a seal is over all tokens of a chunk, so that the checksum of a copy is one only when the copy
began at the chunk's first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, Optional, Protocol

from syshax_kernels.pool import Located, Worker
from syshax_kernels.pool_types import CHUNK_TOKENS


@dataclass(frozen=True)
class ChunkPart:
    """Tokens of a request that lie in one chunk."""

    index: int  # of the chunk
    at: int  # the first of them inside the chunk
    first: int  # the same token in the request
    count: int

    @property
    def until(self) -> int:
        """Tokens of the chunk up to the end of the part."""
        return self.at + self.count


def parts(tokens: range) -> list[ChunkPart]:
    """Cuts consecutive tokens of a request at the borders of chunks."""
    found, first = [], tokens.start
    while first < tokens.stop:
        index, at = divmod(first, CHUNK_TOKENS)
        count = min(tokens.stop - first, CHUNK_TOKENS - at)
        found.append(ChunkPart(index, at, first, count))
        first += count
    return found


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    limit = min(len(left), len(right))
    if list(left[:limit]) == list(right[:limit]):
        return limit
    return next(i for i in range(limit) if left[i] != right[i])


Copy = Callable[[ChunkPart, int], Optional[int]]
"""Copies a part from or to the chunk at an address. Returns the crc32c of these tokens in the chunk's order; None where
the copy tells none, or has only been started."""

Then = Callable[[ChunkPart, Optional[int]], None]
Run = Callable[[Sequence[ChunkPart], Callable[[ChunkPart], Optional[int]], Then], None]
"""How an engine works through parts: calls the second for each part, and the third with what that returned once the
copy has ended. Raises the first error of any, when no copy runs any more."""


def one_by_one(pieces: Sequence[ChunkPart], copy: Callable[[ChunkPart], int | None], then: Then) -> None:
    """The Run of an engine that copies at once, in its own thread."""
    for part in pieces:
        then(part, copy(part))


class OwnChunks(Protocol):
    """Chunks of a FILLING ticket of this unit; Ticket and WorkerTicket are such."""

    def chunk_address(self, index: int) -> int:
        """Where chunk `index` lies."""

    def seal(self, index: int, *, n_tokens: int | None = None, crc: int | None = None) -> None:
        """Checksums its first `n_tokens` tokens."""

    def verify(self, index: int, n_tokens: int) -> None:
        """CorruptError unless they are as they were sealed."""


class WorkerTicket:
    """A FILLING ticket of the owner's, in one of its tensor-parallel workers."""

    def __init__(self, worker: Worker, slot: int, rank: int, writer: int) -> None:
        """`writer`: the rank whose seal covers what this rank reads."""
        self._worker, self._slot, self._rank, self._writer = worker, slot, rank, writer

    def chunk_address(self, index: int) -> int:
        return self._worker.chunk_address(self._slot, index)

    def seal(self, index: int, *, n_tokens: int | None = None, crc: int | None = None) -> None:
        self._worker.seal(self._slot, index, self._rank, n_tokens, crc)

    def verify(self, index: int, n_tokens: int) -> None:
        self._worker.verify(self._slot, index, self._writer, n_tokens)


class PinnedChunks(Protocol):
    """Chunks of another unit's ticket; View is such."""

    def chunk_address(self, index: int) -> int:
        """Where chunk `index` lies, after its checksums matched."""

    def locate(self, index: int) -> Located:
        """The same before they are compared."""

    def match(self, index: int, n_tokens: int, crc: int) -> None:
        """CorruptError unless the chunk was sealed so."""


def save(ticket: OwnChunks, tokens: range, copy: Copy, run: Run = one_by_one) -> None:
    """Copies KV of `tokens` into the chunks of the engine's own ticket, and seals them."""

    def begin(part: ChunkPart) -> int | None:
        return copy(part, ticket.chunk_address(part.index))

    def seal(part: ChunkPart, crc: int | None) -> None:
        ticket.seal(part.index, n_tokens=part.until, crc=None if part.at else crc)

    run(parts(tokens), begin, seal)


def restore(ticket: OwnChunks, tokens: range, copy: Copy, run: Run = one_by_one) -> None:
    """Copies KV of `tokens` back out of the engine's own ticket, after comparing its seals."""

    def begin(part: ChunkPart) -> int | None:
        ticket.verify(part.index, part.until)
        return copy(part, ticket.chunk_address(part.index))

    run(parts(tokens), begin, lambda part, crc: None)


def load(view: PinnedChunks, tokens: range, copy: Copy, run: Run = one_by_one, sums: bool = True) -> None:
    """Copies KV of `tokens` out of another unit's ticket; it counts once View.check() or release() came back.

    `sums`: `copy` tells the checksum of all heads. A chunk that one seal covers is then read once, else twice.
    """

    def whole(part: ChunkPart) -> bool:
        return sums and part.at == 0 and part.count == view.locate(part.index).n_tokens

    def begin(part: ChunkPart) -> int | None:
        address = view.locate(part.index).address if whole(part) else view.chunk_address(part.index)
        return copy(part, address)

    def compare(part: ChunkPart, crc: int | None) -> None:
        if crc is not None and whole(part):
            view.match(part.index, part.count, crc)

    run(parts(tokens), begin, compare)
