"""A small handoff for the tests: a geometry, data that follows from a name, a consumer that knows what is right."""

from __future__ import annotations

import hashlib

from syshax_kernels.kernel_errors import BusyError, CorruptError, NotFoundError, StaleError
from syshax_kernels.library import Library
from syshax_kernels.pool import CHUNK_TOKENS, F16, Geometry, Inbox, Outbox, Ticket, View
from tests.crc32c import crc32c

GEOMETRY = Geometry(n_layers=1, n_kv_heads=2, head_size=4, wire_type=F16, model_id=bytes(range(32)))
ROW = 2 * 4 * 2  # bytes of one token in one plane
PLANES = 2  # K and V of one layer
CHUNK_BYTES = PLANES * CHUNK_TOKENS * ROW
CHUNKS, TICKETS, MAX_TOKENS = 6, 3, 256
LEASE_S = 1000.0
FIRST_TOKEN = 0x51A70000  # token ids of the tests lie above it, so that left-overs can be found in a file

REFUSALS = (BusyError, CorruptError, NotFoundError, StaleError)
"""What a consumer may be told; it recomputes then."""


def make_outbox(path: str, library: Library | None = None) -> Outbox:
    return Outbox.create(path, GEOMETRY, chunks=CHUNKS, tickets=TICKETS, max_tokens=MAX_TOKENS, library=library)


def ticket_id(name: str) -> bytes:
    return hashlib.md5(name.encode()).digest()


def token_ids(name: str, n_tokens: int) -> list[int]:
    return [FIRST_TOKEN + name.encode()[0] * 512 + i for i in range(n_tokens)]


def chunk_data(name: str, index: int) -> bytes:
    return hashlib.shake_128(f"{name}/{index}".encode()).digest(CHUNK_BYTES)


def write(ticket: Ticket, name: str, n_tokens: int, already: int = 0) -> None:
    """Appends up to `n_tokens` and writes and seals every chunk that changed."""
    ticket.append(token_ids(name, n_tokens)[already:])
    for index in range(already // CHUNK_TOKENS, -(-n_tokens // CHUNK_TOKENS)):
        ticket.chunk(index)[:] = chunk_data(name, index)
        ticket.seal(index)


def save(outbox: Outbox, name: str, n_tokens: int) -> Ticket:
    """A READY ticket."""
    ticket = outbox.begin(ticket_id(name), LEASE_S)
    write(ticket, name, n_tokens)
    ticket.publish(n_tokens)
    return ticket


def rows(chunk: bytes, n_tokens: int) -> bytes:
    """What a seal over that many tokens covers."""
    return b"".join(chunk[first : first + n_tokens * ROW] for first in range(0, CHUNK_BYTES, CHUNK_TOKENS * ROW))


def read(view: View, index: int) -> bytes:
    """A verified copy of a chunk; of every second one by the checksum that the copy gives."""
    if index % 2 == 0:
        return bytes(view.chunk(index))
    found = view.locate(index)
    copy = bytes(found.memory)
    view.match(index, found.n_tokens, crc32c(rows(copy, found.n_tokens)))
    return copy


def is_right(view: View, name: str, tokens: list[int], chunks: list[bytes]) -> bool:
    """Whether copies of a whole view are what `name` stands for; only rows of valid tokens count."""
    if tokens != token_ids(name, view.n_tokens) or len(chunks) != view.n_chunks:
        return False
    for index, found in enumerate(chunks):
        valid = min(CHUNK_TOKENS, view.n_tokens - index * CHUNK_TOKENS) * ROW
        right = chunk_data(name, index)
        for first in range(0, CHUNK_BYTES, CHUNK_TOKENS * ROW):
            if found[first : first + valid] != right[first : first + valid]:
                return False
    return True


def take(inbox: Inbox, name: str, consumed: bool = True, lease_s: float = LEASE_S) -> str:
    """Consumes a ticket as a unit does: `right`, `wrong`, or the name of the refusal."""
    try:
        view = inbox.pin(ticket_id(name), lease_s=lease_s)
        tokens = view.tokens
        chunks = [read(view, index) for index in range(view.n_chunks)]
        view.release(consumed)
    except REFUSALS as err:
        return type(err).__name__
    return "right" if is_right(view, name, tokens, chunks) else "wrong"


def try_take(path: str, name: str, library: Library | None = None) -> str:
    """The same from scratch; a file that can't be opened is a refusal too."""
    try:
        inbox = Inbox.open(path, GEOMETRY, library=library)
    except REFUSALS as err:
        return type(err).__name__
    with inbox:
        return take(inbox, name)


def assert_empty(outbox: Outbox) -> None:
    info = outbox.info()
    assert (info.chunks_free, info.tickets_free) == (CHUNKS, TICKETS), "chunks or tickets leaked"
