"""The KV handoff pool from Python: one file per unit, tickets that hold token ids and KV chunks.

Format and rules: docs/kv-handoff.md sections 2 and 3. The owner of a file has an `Outbox`, its tensor-parallel
workers a `Worker`, the unit that takes a request over an `Inbox`. Every word that two processes share is touched by
the native core only. Addresses and memoryviews point into the mapping: they end with `close()` of the handle.
"""

from __future__ import annotations

import ctypes
import os
import time
from array import array
from collections.abc import Sequence
from dataclasses import fields
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from syshax_kernels.kernel_errors import KernelError, NotFoundError, StaleError
from syshax_kernels.library import Library
from syshax_kernels.pool_abi import PROTOTYPES, CreateArgs, GeometryStruct, InfoStruct, StatsStruct, ViewStruct
from syshax_kernels.pool_types import (
    BF16,
    CHUNK_TOKENS,
    F16,
    F32,
    Geometry,
    PinnedTicket,
    PoolInfo,
    TicketState,
    UnitStats,
    model_id,
)

__all__ = [
    "BF16",
    "CHUNK_TOKENS",
    "F16",
    "F32",
    "Geometry",
    "Inbox",
    "Located",
    "Outbox",
    "PinnedTicket",
    "PoolInfo",
    "Ticket",
    "TicketState",
    "UnitStats",
    "View",
    "Worker",
    "chunks_that_fit",
    "memory",
    "model_id",
    "pool_library",
    "read_stats",
]

_Self = TypeVar("_Self", bound="_Handle")


def pool_library(path: os.PathLike[str] | None = None) -> Library:
    """The native core with the calls of the pool declared."""
    library = Library(path)
    library.declare(PROTOTYPES)
    return library


def chunks_that_fit(
    pool_bytes: int, geometry: Geometry, *, tickets: int, max_tokens: int, library: Library | None = None
) -> int:
    """The largest number of chunks whose file has at most `pool_bytes` bytes; 0 where not even one fits."""
    calls = library or pool_library()

    def file_bytes(chunks: int) -> int:
        total = ctypes.c_uint64()
        args = _create_args(geometry, chunks, tickets, max_tokens)
        calls.check(calls.calls.sx_pool_file_bytes(ctypes.byref(args), ctypes.byref(total)))
        return total.value

    one = file_bytes(1)
    chunks = max(0, 1 + (pool_bytes - one) // max(1, file_bytes(2) - one))
    while chunks > 0 and file_bytes(chunks) > pool_bytes:  # the tables are rounded up to whole pages
        chunks -= 1
    return chunks


class _Handle:
    """An sx_pool; closed once, by close(), the end of a `with`, or when nothing refers to it any more."""

    def __init__(self, library: Library, pool: ctypes.c_void_p) -> None:
        self._library = library
        self._pool: ctypes.c_void_p | None = pool
        library.calls.sx_pool_close.argtypes = [ctypes.c_void_p]
        library.calls.sx_pool_close.restype = None

    def call(self, name: str, *arguments: Any) -> None:
        """Calls `name` on the pool; raises the exception of a failing status."""
        self._library.check(getattr(self._library.calls, name)(self._pool, *arguments))

    def info(self) -> PoolInfo:
        """Raises KernelError on a closed handle."""
        out = InfoStruct()
        self.call("sx_pool_describe", ctypes.byref(out))
        values = {f.name: getattr(out, f.name) for f in fields(PoolInfo)}
        shape = {f.name: getattr(out.geometry, f.name) for f in fields(Geometry)}
        values["geometry"] = Geometry(**{**shape, "model_id": bytes(out.geometry.model_id)})
        return PoolInfo(**values)

    def close(self) -> None:
        """Unmaps the file; every address and memoryview of this handle ends here."""
        pool, self._pool = self._pool, None
        if pool is not None:
            self._library.calls.sx_pool_close(pool)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Outbox(_Handle):
    """A unit's own pool file. One thread at a time."""

    @classmethod
    def create(
        cls,
        path: str,
        geometry: Geometry,
        *,
        chunks: int,
        tickets: int,
        max_tokens: int,
        library: Library | None = None,
    ) -> Outbox:
        """Makes the file (or starts anew in the one that is there): generation bumped, every ticket free.

        `max_tokens`: of one ticket. Raises FullError with the bytes needed and left, BusyError when a living process
        owns the file, KernelError for arguments out of range.
        """
        calls = library or pool_library()
        pool = ctypes.c_void_p()
        args = _create_args(geometry, chunks, tickets, max_tokens)
        args.path = os.fsencode(path)
        calls.check(calls.calls.sx_pool_create(ctypes.byref(args), ctypes.byref(pool)))
        return cls(calls, pool)

    def begin(self, ticket_id: bytes, lease_s: float) -> Ticket:
        """A FILLING ticket under this id (16 bytes). `lease_s`: how long it stays READY, from publish.

        Raises FullError without a free ticket, BusyError when a living ticket has the id.
        """
        slot = ctypes.c_uint32()
        self.call("sx_pool_begin", _checked_id(ticket_id), _nanoseconds(lease_s), ctypes.byref(slot))
        return Ticket(self, ticket_id, slot.value)

    def find(self, ticket_id: bytes) -> Ticket | None:
        """The ticket with this id in whatever state, or None."""
        try:
            slot, _ = self._find(ticket_id)
        except NotFoundError:
            return None
        return Ticket(self, ticket_id, slot)

    def reap(self, now_ns: int | None = None) -> int:
        """Frees consumed, failed and expired tickets; returns how many. Call it every step."""
        freed = ctypes.c_uint32()
        self.call("sx_pool_reap", time.monotonic_ns() if now_ns is None else now_ns, ctypes.byref(freed))
        return freed.value

    def write_stats(self, stats: UnitStats) -> None:
        """Rewrites the stats page; sequence, generation, time and pool numbers are filled in."""
        values = {f.name: getattr(stats, f.name) for f in fields(stats)}
        values.update({name: min(values[name], 0xFFFF) for name in ("max_num_seqs", "max_step_tokens")})
        self.call("sx_pool_write_stats", ctypes.byref(StatsStruct(**values)))

    def _find(self, ticket_id: bytes) -> tuple[int, TicketState]:
        slot, state = ctypes.c_uint32(), ctypes.c_uint32()
        self.call("sx_pool_find", _checked_id(ticket_id), ctypes.byref(slot), ctypes.byref(state))
        return slot.value, TicketState(state.value)


def _chunk_at(handle: _Handle, name: str, *arguments: Any) -> tuple[int, int]:
    data, size = ctypes.c_void_p(), ctypes.c_uint64()
    handle.call(name, *arguments, ctypes.byref(data), ctypes.byref(size))
    return data.value or 0, size.value


def _seal(handle: _Handle, slot: int, index: int, rank: int, n_tokens: int, crc: int | None) -> None:
    if crc is None:
        handle.call("sx_pool_seal", slot, index, rank, n_tokens)
    else:
        handle.call("sx_pool_seal_as", slot, index, rank, n_tokens, crc)


def memory(address: int, size: int) -> memoryview:
    """The bytes at an address inside the mapping, writable."""
    return memoryview((ctypes.c_uint8 * size).from_address(address)).cast("B")


class Ticket:
    """One use of a ticket, on the owner's side. After it was freed every call raises StaleError (but free)."""

    def __init__(self, outbox: Outbox, ticket_id: bytes, slot: int) -> None:
        self._outbox = outbox
        self.id = ticket_id
        self.slot = slot  # for Worker

    @property
    def state(self) -> TicketState:
        """FREE once this use of the ticket is over."""
        try:
            slot, state = self._outbox._find(self.id)
        except NotFoundError:
            return TicketState.FREE
        return state if slot == self.slot else TicketState.FREE

    def append(self, token_ids: Sequence[int]) -> None:
        """Adds tokens, reserving chunks for them. FullError changes nothing."""
        tokens = array("i", token_ids)
        self._outbox.call("sx_pool_append", self.slot, tokens.buffer_info()[0], len(tokens))

    def chunk_address(self, index: int) -> int:
        """Where chunk `index` lies: [layer][K,V][token][kv head][head size] in the wire type."""
        return _chunk_at(self._outbox, "sx_pool_chunk", self.slot, index)[0]

    def chunk(self, index: int) -> memoryview:
        """The bytes of chunk `index`, writable."""
        return memory(*_chunk_at(self._outbox, "sx_pool_chunk", self.slot, index))

    def seal(self, index: int, rank: int = 0, n_tokens: int | None = None, crc: int | None = None) -> None:
        """Checksums what `rank` wrote of the first `n_tokens` tokens (None: all appended so far) of chunk `index`.

        `crc`: what the copy of exactly these tokens told of itself; the chunk is then not read again.
        """
        _seal(self._outbox, self.slot, index, rank, n_tokens or 0, crc)

    def verify(self, index: int, n_tokens: int) -> None:
        """CorruptError unless the first `n_tokens` tokens of chunk `index` (FILLING, one rank) are as sealed."""
        self._outbox.call("sx_pool_verify", self.slot, index, 0, n_tokens)

    def publish(self, n_tokens: int) -> None:
        """FILLING -> READY with the first `n_tokens` tokens. KernelError names a rank that has not sealed."""
        self._outbox.call("sx_pool_publish", self.slot, n_tokens)

    def fail(self) -> None:
        """FILLING or READY -> FAILED: a waiting consumer recomputes at once. BusyError: a consumer holds it."""
        self._outbox.call("sx_pool_fail", self.slot)

    def free(self) -> None:
        """Frees now, or when the consumer that holds it is done or late. Freeing twice is fine.

        Nothing may still be writing into the ticket's chunks.
        """
        try:
            self._outbox.call("sx_pool_free_ticket", self.slot)
        except StaleError:
            return


class Worker(_Handle):
    """A tensor-parallel worker of the owner: writes and seals its slice of the owner's chunks."""

    @classmethod
    def join(cls, path: str, *, library: Library | None = None) -> Worker:
        """Opens the file its owner has made. BusyError: not yet."""
        calls = library or pool_library()
        pool = ctypes.c_void_p()
        calls.check(calls.calls.sx_pool_join(os.fsencode(path), ctypes.byref(pool)))
        return cls(calls, pool)

    def chunk_address(self, slot: int, index: int) -> int:
        """Address, in this process, of chunk `index` of the owner's `Ticket.slot`."""
        return _chunk_at(self, "sx_pool_chunk", slot, index)[0]

    def chunk(self, slot: int, index: int) -> memoryview:
        """The bytes of chunk `index`, writable."""
        return memory(*_chunk_at(self, "sx_pool_chunk", slot, index))

    def seal(self, slot: int, index: int, rank: int, n_tokens: int | None = None, crc: int | None = None) -> None:
        """As Ticket.seal. Give `n_tokens` when the owner may append beside it."""
        _seal(self, slot, index, rank, n_tokens or 0, crc)

    def verify(self, slot: int, index: int, rank: int, n_tokens: int) -> None:
        """Raises CorruptError unless `rank` has sealed that many tokens of the chunk and they are unchanged."""
        self.call("sx_pool_verify", slot, index, rank, n_tokens)


class Located(NamedTuple):
    """A chunk of a view, not verified."""

    address: int
    size: int  # bytes
    n_tokens: int  # that the chunk's one seal covers; 0: it has those of several ranks, only chunk() verifies them

    @property
    def memory(self) -> memoryview:
        """Read-only."""
        return memory(self.address, self.size).toreadonly()


class View:
    """A pinned ticket. What is read from it counts only once check() or release() came back without StaleError."""

    def __init__(self, handle: _Handle, pinned: ViewStruct) -> None:
        self._handle = handle
        self._struct = pinned
        self._released = False
        self.n_tokens = int(pinned.n_tokens)
        self.n_chunks = int(pinned.n_chunks)
        self.generation = int(pinned.generation)

    @property
    def pinned(self) -> PinnedTicket:
        """The pin as plain data, for Inbox.attach in another process."""
        return PinnedTicket(**{f.name: getattr(self._struct, f.name) for f in fields(PinnedTicket)})

    @property
    def tokens(self) -> list[int]:
        """The token ids whose KV the chunks hold."""
        out = (ctypes.c_int32 * self.n_tokens)()
        self._handle.call("sx_pool_tokens", ctypes.byref(self._struct), 0, self.n_tokens, out)
        return list(out)

    def chunk_address(self, index: int) -> int:
        """Where chunk `index` lies, after its checksums matched. Raises CorruptError, StaleError."""
        return _chunk_at(self._handle, "sx_pool_read", ctypes.byref(self._struct), index)[0]

    def chunk(self, index: int) -> memoryview:
        """The bytes of chunk `index`, verified, read-only. The last chunk holds n_tokens % 64 tokens (if not 0)."""
        return memory(*_chunk_at(self._handle, "sx_pool_read", ctypes.byref(self._struct), index)).toreadonly()

    def locate(self, index: int) -> Located:
        """Chunk `index` with its checksum still to be compared: match(), with what the copy tells of itself."""
        data, size, tokens = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_uint32()
        out = ctypes.byref(data), ctypes.byref(size), ctypes.byref(tokens)
        self._handle.call("sx_pool_locate", ctypes.byref(self._struct), index, *out)
        return Located(data.value or 0, size.value, tokens.value)

    def match(self, index: int, n_tokens: int, crc: int) -> None:
        """Raises CorruptError unless chunk `index` was sealed over `n_tokens` tokens as `crc`: throw the copy away."""
        self._handle.call("sx_pool_match", ctypes.byref(self._struct), index, n_tokens, crc)

    def check(self) -> None:
        """Raises StaleError when the pin did not hold up to now: throw away what was copied."""
        self._handle.call("sx_pool_check", ctypes.byref(self._struct))

    def release(self, consumed: bool = True) -> None:
        """Gives the ticket back: consumed, or READY again. StaleError: throw away what was copied."""
        if self._released:
            raise KernelError("release: this view was released before", -4)
        self._released = True
        self._handle.call("sx_pool_release", ctypes.byref(self._struct), int(consumed))


class Inbox:
    """Another unit's pool file, seen by the unit that takes over. Follows the owner through restarts."""

    def __init__(self, library: Library, path: str, expected: Geometry) -> None:
        self._library = library
        self._path = path
        self._expected = expected
        self._handle = self._open()

    @classmethod
    def open(cls, path: str, expected: Geometry, *, library: Library | None = None) -> Inbox:
        """Raises MismatchError naming the field, BusyError while the owner makes the file, CorruptError."""
        return cls(library or pool_library(), path, expected)

    def pin(self, ticket_id: bytes, generation: int = 0, lease_s: float = 10.0) -> View:
        """READY -> LOADING. `generation` 0: any. `lease_s`: how long the owner keeps it for us.

        Raises BusyError while it is FILLING (ask again, bounded), NotFoundError, StaleError (consumed, failed, held
        by another consumer, other generation), CorruptError.
        """
        try:
            return self._pin(ticket_id, generation, lease_s)
        except (StaleError, NotFoundError):
            if not self._follow():
                raise
        return self._pin(ticket_id, generation, lease_s)

    def attach(self, pinned: PinnedTicket) -> View:
        """A view on what another process of this consumer pinned; one of them releases."""
        view = View(self._handle, ViewStruct(**{f.name: getattr(pinned, f.name) for f in fields(pinned)}))
        try:
            view.check()
        except StaleError:
            if not self._follow():
                raise
            view = View(self._handle, view._struct)
            view.check()
        return view

    def info(self) -> PoolInfo:
        """Numbers of the file as it is mapped now."""
        return self._handle.info()

    def last_beat(self) -> float:
        """When the owner last wrote its stats page (seconds of CLOCK_MONOTONIC); 0.0: never, or it can't be read."""
        try:
            return _stats(self._handle).time_ns / 1e9
        except KernelError:
            return 0.0

    def close(self) -> None:
        """Ends every view of the present mapping."""
        self._handle.close()

    def __enter__(self) -> Inbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> _Handle:
        pool = ctypes.c_void_p()
        calls = self._library.calls
        expected = _geometry_struct(self._expected)
        self._library.check(calls.sx_pool_open(os.fsencode(self._path), ctypes.byref(expected), ctypes.byref(pool)))
        return _Handle(self._library, pool)

    def _pin(self, ticket_id: bytes, generation: int, lease_s: float) -> View:
        out = ViewStruct()
        self._handle.call("sx_pool_pin", _checked_id(ticket_id), generation, _nanoseconds(lease_s), ctypes.byref(out))
        return View(self._handle, out)

    def _follow(self) -> bool:
        """Opens the file anew if the owner started anew since; views of the old mapping stay usable."""
        fresh = self._open()
        if fresh.info().generation == self._handle.info().generation:
            fresh.close()
            return False
        self._handle = fresh
        return True


def read_stats(path: str, *, library: Library | None = None) -> UnitStats:
    """The stats page of any pool file. Raises NotFoundError (never written), BusyError (torn), CorruptError."""
    calls = library or pool_library()
    pool = ctypes.c_void_p()
    calls.check(calls.calls.sx_pool_open(os.fsencode(path), None, ctypes.byref(pool)))
    with _Handle(calls, pool) as handle:
        return _stats(handle)


def _stats(handle: _Handle) -> UnitStats:
    out = StatsStruct()
    handle.call("sx_pool_read_stats", ctypes.byref(out))
    return UnitStats(**{f.name: getattr(out, f.name) for f in fields(UnitStats)})


def _geometry_struct(geometry: Geometry) -> GeometryStruct:
    values = {f.name: getattr(geometry, f.name) for f in fields(geometry)}
    values["model_id"] = (ctypes.c_uint8 * 32)(*geometry.model_id)
    return GeometryStruct(**values)


def _create_args(geometry: Geometry, chunks: int, tickets: int, max_tokens: int) -> CreateArgs:
    shape = _geometry_struct(geometry)
    return CreateArgs(n_chunks=chunks, n_tickets=tickets, max_tokens=max_tokens, geometry=shape)


def _checked_id(ticket_id: bytes) -> bytes:
    if len(ticket_id) != 16:
        raise ValueError(f"ticket id has {len(ticket_id)} bytes, expected 16")
    return ticket_id


def _nanoseconds(seconds: float) -> int:
    return max(0, int(seconds * 1e9))
