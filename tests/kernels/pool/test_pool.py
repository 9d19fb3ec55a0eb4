"""What the calls of the pool promise, one by one, through the Python binding."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest

from syshax_kernels.kernel_errors import (
    BusyError,
    CorruptError,
    FullError,
    KernelError,
    MismatchError,
    NotFoundError,
    StaleError,
)
from syshax_kernels.library import Library
from syshax_kernels.pool import (
    BF16,
    F32,
    Geometry,
    Inbox,
    Outbox,
    PoolInfo,
    TicketState,
    UnitStats,
    Worker,
    chunks_that_fit,
    model_id,
    read_stats,
)
from tests.crc32c import crc32c
from tests.kernels.pool.handoff import (
    CHUNK_BYTES,
    CHUNKS,
    GEOMETRY,
    LEASE_S,
    MAX_TOKENS,
    TICKETS,
    assert_empty,
    chunk_data,
    make_outbox,
    rows,
    save,
    take,
    ticket_id,
    token_ids,
    try_take,
    write,
)


@pytest.fixture
def path(folder: Path) -> str:
    return str(folder / "a.pool")


def test_append_goes_on_after_seals_and_publish_moves_only_the_tail(path: str) -> None:
    with make_outbox(path) as outbox:
        ticket = outbox.begin(ticket_id("a"), LEASE_S)
        for already, total in ((0, 10), (10, 64), (64, 65), (65, 150)):
            write(ticket, "a", total, already)
        ticket.append(token_ids("a", 151)[150:])  # its KV was never written, as that of a last sampled token
        ticket.publish(150)
        assert try_take(path, "a") == "right"


def test_publish_wants_every_chunk_sealed(path: str) -> None:
    """The last one too: where its copy failed, nobody has written it."""
    with make_outbox(path) as outbox:
        ticket = outbox.begin(ticket_id("a"), LEASE_S)
        ticket.append(token_ids("a", 100))
        for index in range(2):
            ticket.chunk(index)[:] = chunk_data("a", index)
        with pytest.raises(KernelError, match="chunk 0 .* rank 0 sealed 0 tokens, 64 are to be published"):
            ticket.publish(100)
        ticket.seal(0)
        with pytest.raises(KernelError, match="chunk 1 .* rank 0 sealed 0 tokens, 36 are to be published"):
            ticket.publish(100)
        ticket.seal(1)
        ticket.publish(100)
        assert try_take(path, "a") == "right"


def test_chunks_keep_their_addresses_and_start_on_pages(path: str) -> None:
    with make_outbox(path) as outbox:
        info = outbox.info()
        ticket = outbox.begin(ticket_id("a"), LEASE_S)
        ticket.append(token_ids("a", 200))
        addresses = [ticket.chunk_address(index) for index in range(4)]
        assert all(address % 4096 == 0 for address in addresses)
        assert all(info.chunks <= address < info.chunks + info.chunks_size for address in addresses)
        assert info.chunk_bytes == CHUNK_BYTES == len(ticket.chunk(0))


def test_full_says_the_numbers_and_changes_nothing(path: str) -> None:
    with make_outbox(path) as outbox:
        big = outbox.begin(ticket_id("a"), LEASE_S)
        big.append(token_ids("a", 250))
        with pytest.raises(FullError, match="250 \\+ 7 tokens, a ticket of this pool holds 256"):
            big.append([1] * 7)
        small = outbox.begin(ticket_id("b"), LEASE_S)
        with pytest.raises(FullError, match="needs 3 chunks, 2 of 6 are free"):
            small.append([1] * 129)
        assert outbox.info().chunks_free == 2
        small.append([1] * 128)
        outbox.begin(ticket_id("c"), LEASE_S)
        with pytest.raises(FullError, match="all 3 tickets are in use"):
            outbox.begin(ticket_id("d"), LEASE_S)


def test_no_room_for_the_file_says_bytes_needed_and_left(path: str) -> None:
    huge = replace(GEOMETRY, n_layers=1000, head_size=256)
    with pytest.raises(FullError, match=r"needs \d+ bytes, its file system has \d+ left"):
        Outbox.create(path, huge, chunks=1 << 16, tickets=1, max_tokens=64)


@pytest.mark.parametrize(
    "change",
    [{"chunks": 0}, {"tickets": 0}, {"tickets": 70000}, {"max_tokens": 0}, {"chunks": 1 << 31}],
)
def test_sizes_out_of_range_are_named(path: str, change: dict[str, int]) -> None:
    size = {"chunks": CHUNKS, "tickets": TICKETS, "max_tokens": MAX_TOKENS, **change}
    with pytest.raises(KernelError, match=f"{next(iter(change))} is .*, expected 1 to"):
        Outbox.create(path, GEOMETRY, chunks=size["chunks"], tickets=size["tickets"], max_tokens=size["max_tokens"])


@pytest.mark.parametrize("field", ["n_layers", "n_kv_heads", "head_size", "model_id"])
def test_geometry_must_match(path: str, field: str) -> None:
    other: Any = bytes(32) if field == "model_id" else 3
    with make_outbox(path), pytest.raises(MismatchError, match=field):
        Inbox.open(path, replace(GEOMETRY, **{field: other}))


def test_fields_beside_the_match_are_for_information(path: str) -> None:
    with make_outbox(path) as outbox:
        save(outbox, "a", 10)
        with Inbox.open(path, replace(GEOMETRY, wire_type=F32, block_size=99, tp_size=4, kv_type=BF16)) as inbox:
            assert inbox.info().geometry == GEOMETRY
            assert take(inbox, "a") == "right"


def test_an_id_lives_once(path: str) -> None:
    with make_outbox(path) as outbox:
        ticket = outbox.begin(ticket_id("a"), LEASE_S)
        with pytest.raises(BusyError, match="FILLING"):
            outbox.begin(ticket_id("a"), LEASE_S)
        ticket.fail()
        again = outbox.begin(ticket_id("a"), LEASE_S)  # what is over gives way
        assert ticket.state is TicketState.FREE
        assert again.state is TicketState.FILLING
        found = outbox.find(ticket_id("a"))
        assert found is not None and found.slot == again.slot
        assert outbox.find(ticket_id("b")) is None


def test_a_freed_slot_is_recognised(path: str) -> None:
    with make_outbox(path) as outbox, Worker.join(path) as worker:
        old = save(outbox, "a", 10)
        old.free()
        for name in "bcd":
            save(outbox, name, 10)
        calls: list[Callable[[], None]] = [
            lambda: old.append([1]),
            lambda: old.publish(1),
            old.fail,
            lambda: worker.seal(old.slot, 0, 0),
        ]
        for call in calls:
            with pytest.raises(StaleError, match="freed"):
                call()
        old.free()
        assert [try_take(path, name) for name in "bcd"] == ["right"] * 3


def test_free_waits_for_the_consumer(path: str) -> None:
    with make_outbox(path) as outbox, Inbox.open(path, GEOMETRY) as inbox:
        ticket = save(outbox, "a", 100)
        view = inbox.pin(ticket_id("a"))
        ticket.free()
        assert outbox.reap() == 0 and ticket.state is TicketState.LOADING
        view.check()
        view.release(consumed=False)
        assert outbox.reap() == 1
        assert_empty(outbox)


def test_a_handoff_is_consumed_once(path: str) -> None:
    with make_outbox(path) as outbox, Inbox.open(path, GEOMETRY) as inbox:
        save(outbox, "a", 100)
        view = inbox.pin(ticket_id("a"))
        with pytest.raises(StaleError, match="LOADING"):
            inbox.pin(ticket_id("a"))
        view.release()
        with pytest.raises(StaleError, match="CONSUMED"):
            inbox.pin(ticket_id("a"))
        with pytest.raises(KernelError, match="released before"):
            view.release()


def test_expired_tickets_are_refused_before_they_are_reaped(path: str) -> None:
    with make_outbox(path) as outbox:
        ticket = outbox.begin(ticket_id("a"), 1e-9)
        ticket.append([1])
        ticket.seal(0)
        ticket.publish(1)
        with Inbox.open(path, GEOMETRY) as inbox, pytest.raises(StaleError, match="lease is over"):
            inbox.pin(ticket_id("a"))
        assert outbox.reap() == 1


def test_a_deadline_that_no_lease_can_have_is_damage(path: str) -> None:
    """Owner and consumer agree: the ticket is refused, and reaped. Just inside an hour it is a lease."""
    with make_outbox(path) as outbox, Inbox.open(path, GEOMETRY) as inbox:
        save(outbox, "a", 10)
        with open(path, "r+b") as file:
            for ahead_ns in (2**63, 3_700_000_000_000):
                file.seek(8192 + 8)  # of the first ticket: docs/kv-handoff.md section 2.2
                file.write(struct.pack("<Q", time.monotonic_ns() + ahead_ns))
                file.flush()
                with pytest.raises(StaleError, match="lease is over"):
                    inbox.pin(ticket_id("a"))
            file.seek(8192 + 8)
            file.write(struct.pack("<Q", time.monotonic_ns() + 3_500_000_000_000))
        inbox.pin(ticket_id("a")).release(consumed=False)
        with open(path, "r+b") as file:
            file.seek(8192 + 8)
            file.write(b"\xff" * 8)
        assert outbox.reap() == 1
        assert_empty(outbox)


@pytest.mark.parametrize("lease_s", [0.0, -1.0, 3601.0])
def test_leases_are_bounded(path: str, lease_s: float) -> None:
    with make_outbox(path) as outbox, Inbox.open(path, GEOMETRY) as inbox:
        save(outbox, "a", 10)
        with pytest.raises(KernelError, match="lease"):
            outbox.begin(ticket_id("b"), lease_s)
        with pytest.raises(KernelError, match="lease"):
            inbox.pin(ticket_id("a"), lease_s=lease_s)


def test_ranks_of_the_owner_seal_their_own_heads(path: str) -> None:
    """Three heads over two ranks: one and two heads; publish waits for both."""
    geometry = replace(GEOMETRY, n_kv_heads=3, tp_size=2)
    with Outbox.create(path, geometry, chunks=4, tickets=2, max_tokens=256) as outbox:
        with Worker.join(path) as one, Worker.join(path) as two:
            ticket = outbox.begin(ticket_id("a"), LEASE_S)
            ticket.append(range(100))
            data = os.urandom(outbox.info().chunk_bytes)
            for index in range(2):
                one.chunk(ticket.slot, index)[:] = data
                one.seal(ticket.slot, index, 0)
            with pytest.raises(KernelError, match="rank 1 sealed 0 tokens, 64"):
                ticket.publish(100)
            two.seal(ticket.slot, 0, 1)
            two.seal(ticket.slot, 1, 1, n_tokens=30)
            with pytest.raises(KernelError, match="rank 1 sealed 30 tokens, 36"):
                ticket.publish(100)
            ticket.publish(94)
        with Inbox.open(path, geometry) as inbox:
            view = inbox.pin(ticket_id("a"))
            assert view.n_tokens == 94
            assert [bytes(view.chunk(index)) for index in range(2)] == [data, data]


def test_a_seal_and_a_consumer_may_take_the_copy_s_checksum(path: str) -> None:
    with make_outbox(path) as outbox, Inbox.open(path, GEOMETRY) as inbox:
        for given, right in ((0, True), (1, False)):
            ticket = outbox.begin(ticket_id("a"), LEASE_S)
            ticket.append(token_ids("a", 100))
            for index, n in ((0, 64), (1, 36)):
                ticket.chunk(index)[:] = chunk_data("a", index)
                ticket.seal(index, 0, n, crc32c(rows(chunk_data("a", index), n)) ^ given)
            with pytest.raises(KernelError, match="0 tokens of chunk 1"):
                ticket.seal(1, crc=3)
            ticket.publish(100)
            view = inbox.pin(ticket_id("a"))
            for index, n in ((0, 64), (1, 36)):
                found = view.locate(index)
                assert found.n_tokens == n and bytes(found.memory) == chunk_data("a", index)
                crc = crc32c(rows(bytes(found.memory), n))
                view.match(index, n, crc ^ given)
                with pytest.raises(CorruptError, match="checksum"):
                    view.match(index, n, crc ^ given ^ 1)
                with pytest.raises(KernelError, match="not over those"):
                    view.match(index, n - 1, crc)
                if right:
                    view.chunk(index)
                else:
                    with pytest.raises(CorruptError):
                        view.chunk(index)
            with pytest.raises(KernelError, match="chunk 2 of 2"):
                view.locate(2)
            view.release()
            assert outbox.reap() == 1
            with pytest.raises(StaleError):
                view.locate(0)


def test_a_chunk_of_several_ranks_has_no_one_checksum(path: str) -> None:
    geometry = replace(GEOMETRY, tp_size=2)
    with Outbox.create(path, geometry, chunks=4, tickets=2, max_tokens=256) as outbox:
        ticket = outbox.begin(ticket_id("a"), LEASE_S)
        ticket.append(range(64))
        for rank in range(2):
            ticket.seal(0, rank)
        ticket.publish(64)
        with Inbox.open(path, geometry) as inbox:
            view = inbox.pin(ticket_id("a"))
            assert view.locate(0).n_tokens == 0
            for n_tokens in (0, 64):
                with pytest.raises(KernelError, match="not over those"):
                    view.match(0, n_tokens, 0)
            view.chunk(0)


def test_ranks_of_a_consumer_share_a_pin(path: str) -> None:
    with make_outbox(path) as outbox, Inbox.open(path, GEOMETRY) as first, Inbox.open(path, GEOMETRY) as second:
        save(outbox, "a", 100)
        view = first.pin(ticket_id("a"))
        other = second.attach(view.pinned)
        assert bytes(other.chunk(1)) == bytes(view.chunk(1))
        view.release()
        with pytest.raises(StaleError):
            other.check()


@pytest.mark.parametrize("where", ["K of the first token", "V of the last valid token", "token ids"])
def test_one_changed_bit_is_noticed(path: str, where: str) -> None:
    with make_outbox(path) as outbox, Inbox.open(path, GEOMETRY) as inbox:
        ticket = outbox.begin(ticket_id("a"), LEASE_S)
        write(ticket, "a", 100)
        memory = ticket.chunk(1)
        ticket.publish(100)
        if where == "token ids":
            flip(path, token_ids("a", 100)[99].to_bytes(4, "little"))
        else:
            memory[0 if where.startswith("K") else CHUNK_BYTES // 2 + 36 * 16 - 1] ^= 1
        with pytest.raises(CorruptError):
            view = inbox.pin(ticket_id("a"))
            view.chunk(1)
        outbox.reap()
        assert try_take(path, "a") in ("NotFoundError", "StaleError")


def flip(path: str, pattern: bytes) -> None:
    """One bit of the only place where `pattern` stands in the file."""
    with open(path, "r+b") as file:
        at = file.read().index(pattern)
        file.seek(at)
        file.write(bytes([pattern[0] ^ 4]))


def test_rows_behind_the_valid_tokens_do_not_matter(path: str) -> None:
    with make_outbox(path) as outbox:
        ticket = outbox.begin(ticket_id("a"), LEASE_S)
        write(ticket, "a", 100)
        memory = ticket.chunk(1)
        ticket.publish(100)
        memory[36 * 16] ^= 1
        assert try_take(path, "a") == "right"


def test_one_owner_at_a_time(path: str) -> None:
    with make_outbox(path), pytest.raises(BusyError, match="owned by a living process"):
        make_outbox(path)
    make_outbox(path).close()


def test_only_regular_files(folder: Path) -> None:
    (folder / "target").touch()
    (folder / "link").symlink_to(folder / "target")
    os.mkfifo(folder / "fifo")
    for name in ("link", "fifo"):
        with pytest.raises(KernelError):
            make_outbox(str(folder / name))
        with pytest.raises(KernelError):
            Inbox.open(str(folder / name), GEOMETRY)


def test_what_a_consumer_hears_before_the_owner_is_there(folder: Path) -> None:
    with pytest.raises(NotFoundError):
        Inbox.open(str(folder / "missing"), GEOMETRY)
    (folder / "empty").touch()
    with pytest.raises(BusyError, match="not made it yet"):
        Inbox.open(str(folder / "empty"), GEOMETRY)
    (folder / "short").write_bytes(b"x" * 100)
    with pytest.raises(CorruptError):
        Inbox.open(str(folder / "short"), GEOMETRY)
    (folder / "foreign").write_bytes(b"x" * 100000)
    with pytest.raises(CorruptError, match="SXPOOL1"):
        Inbox.open(str(folder / "foreign"), GEOMETRY)


def test_a_format_of_the_future_is_named(path: str) -> None:
    make_outbox(path).close()
    with open(path, "r+b") as file:
        header = bytearray(file.read(180))
        header[8] = 9
        file.seek(0)
        file.write(header + struct.pack("<I", zlib.crc32(header)))
    with pytest.raises(MismatchError, match="format 9, expected 1"):
        Inbox.open(path, GEOMETRY)


def test_the_file_is_private_to_its_group_and_never_shrinks(path: str) -> None:
    with Outbox.create(path, GEOMETRY, chunks=50, tickets=TICKETS, max_tokens=MAX_TOKENS) as outbox:
        big, first = os.stat(path), outbox.info().generation
    with make_outbox(path) as outbox:
        small = os.stat(path)
        assert outbox.info().generation > first
    assert stat.S_IMODE(big.st_mode) & 0o007 == 0
    assert small.st_size == big.st_size and small.st_ino == big.st_ino
    assert small.st_blocks * 512 >= small.st_size  # allocated, so that no page can be missing later


def test_sizing_by_bytes(path: str) -> None:
    with make_outbox(path):
        size = os.stat(path).st_size
    for budget, chunks in ((size, CHUNKS), (size - 1, CHUNKS - 1), (size + 4096, CHUNKS + 1), (100, 0)):
        assert chunks_that_fit(budget, GEOMETRY, tickets=TICKETS, max_tokens=MAX_TOKENS) == chunks


def test_stats_read_without_native_code(path: str) -> None:
    """As docs/kv-handoff.md section 2.5 tells the daemon to."""
    with make_outbox(path) as outbox:
        with pytest.raises(NotFoundError):
            read_stats(path)
        for running in (1, 2, 3):
            outbox.write_stats(UnitStats(running=running, step_ns=1 << 40, kv_tokens=7))
        info = outbox.info()
        with open(path, "rb") as file:
            page = file.read()[4096 : 4096 + 128]
    values = struct.Struct("<II3Q6I5Q6IQ").unpack(page)
    assert values[:4] == (120, 1, 3, info.generation)
    assert values[5:7] == (3, 0) and values[11] == 1 << 40 and values[17] == 7
    assert values[18:20] == (CHUNKS, CHUNKS)
    assert values[21] == zlib.crc32(page[:116]) and values[22] == 3
    assert read_stats(path).running == 3


def test_model_id_is_what_the_document_says() -> None:
    tokens = ["a", "\u0120b", ""]
    vocabulary = hashlib.sha256(b"\x01\0\0\0a" + b"\x03\0\0\0\xc4\xa0b" + b"\0\0\0\0").hexdigest()
    text = f"llama|2|8|4|16|128|500000|llama3:8|3|{vocabulary}"
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    assert model_id("llama", 2, 8, 4, 16, 128, 5e5, scaling, tokens) == hashlib.sha256(text.encode()).digest()
    plain = model_id("llama", 2, 8, 4, 16, 128, 5e5, None, tokens)
    assert plain == model_id("llama", 2, 8, 4, 16, 128, 500000, {"rope_type": "default"}, tokens)
    assert plain != model_id("llama", 2, 8, 4, 16, 128, 5e5, scaling, tokens)


def test_closed_handles_and_wrong_arguments_are_errors(path: str) -> None:
    outbox = make_outbox(path)
    outbox.close()
    outbox.close()
    with pytest.raises(KernelError):
        outbox.info()
    with pytest.raises(ValueError, match="expected 16"):
        outbox.begin(b"short", 1.0)
    with pytest.raises(ValueError, match="expected 32"):
        Geometry(1, 1, 1, F32, b"short")


def test_a_missing_library_says_what_to_do(folder: Path) -> None:
    with pytest.raises(KernelError, match="make native"):
        Library(folder / "libsyshax_kernels.so")


def test_info_of_a_fresh_pool(path: str) -> None:
    with make_outbox(path) as outbox:
        info = outbox.info()
    sizes = (1, CHUNKS, TICKETS, MAX_TOKENS, CHUNKS, TICKETS, info.generation, CHUNK_BYTES)
    assert info == PoolInfo(*sizes, info.chunks, CHUNKS * 4096, GEOMETRY)
