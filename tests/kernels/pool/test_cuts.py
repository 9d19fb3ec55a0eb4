"""Owner, consumer, worker and daemon, each killed or stopped at every step: right data or a refusal, and nothing leaks.

Children are real processes; a cut point lies between any two effects that another process can see. The time of leases
is an argument of reap, so nothing here waits.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from pathlib import Path
from typing import Callable

import pytest

from syshax_kernels.kernel_errors import KernelError, StaleError
from syshax_kernels.library import Library
from syshax_kernels.pool import CHUNK_TOKENS, Inbox, Outbox, Ticket, TicketState, UnitStats, Worker, read_stats
from tests.kernels.pool.handoff import (
    FIRST_TOKEN,
    GEOMETRY,
    LEASE_S,
    REFUSALS,
    TICKETS,
    assert_empty,
    is_right,
    make_outbox,
    save,
    take,
    ticket_id,
    token_ids,
    try_take,
    write,
)
from tests.kernels.pool.processes import count_from_one, start

pytestmark = pytest.mark.timeout(120)
REFUSED = {error.__name__ for error in REFUSALS}
SAFE = REFUSED | {"right"}


def far_future_ns() -> int:
    """After every lease, but no further than a lease may be."""
    return time.monotonic_ns() + int(2.5 * LEASE_S * 1e9)


def token_ids_left(path: str) -> bool:
    """Whether any token id of the tests is still in the tables (they start on a 4-byte boundary)."""
    with open(path, "rb") as file:
        words = memoryview(file.read()).cast("I")
    return any(FIRST_TOKEN <= word < FIRST_TOKEN + 0x10000 for word in words[2048 : 2048 + 1024])


def owner_life(path: str, library: Library) -> str:
    """All that an owner does, in one life."""
    outbox = make_outbox(path, library)
    first = outbox.begin(ticket_id("a"), LEASE_S)
    write(first, "a", 40)
    write(first, "a", 70, already=40)
    outbox.write_stats(UnitStats(running=1, waiting=1))
    first.publish(69)
    second = outbox.begin(ticket_id("b"), LEASE_S)
    write(second, "b", 65)
    second.fail()
    outbox.reap()
    third = save(outbox, "c", 10)
    outbox.write_stats(UnitStats(running=2, waiting=2))
    third.free()
    return "done"


def test_owner_killed_at_every_step(cut_library: Library, folder: Path) -> None:
    seen: set[str] = set()
    for cut in count_from_one():
        path = str(folder / f"{cut}.pool")
        child = start(cut_library, lambda p=path: owner_life(p, cut_library), cut, signal.SIGKILL)  # type: ignore[misc]
        killed = child.killed()
        child.drop()
        outcomes = {name: try_take(path, name) for name in "abc"}
        assert set(outcomes.values()) <= SAFE, (cut, outcomes)
        seen.update(outcomes.values())
        check_stats(path)
        check_restart(path)
        os.unlink(path)
        if not killed:
            break
    assert cut > 40 and {"right", "BusyError", "NotFoundError"} <= seen


def check_stats(path: str) -> None:
    """What a reader accepts was written in one go."""
    try:
        stats = read_stats(path)
    except REFUSALS:
        return
    assert stats.running == stats.waiting > 0


def check_restart(path: str) -> None:
    """A new owner of the same file starts empty, whatever the old one left."""
    with make_outbox(path) as outbox:
        assert_empty(outbox)
        assert not token_ids_left(path)
        assert {try_take(path, name) for name in "abc"} == {"NotFoundError"}
        save(outbox, "d", 130)
        assert try_take(path, "d") == "right"


def test_owner_killed_while_it_starts_anew(cut_library: Library, folder: Path) -> None:
    """The consumer has pinned a ticket of the life before, and copies while the new owner comes up and dies."""
    for cut in count_from_one():
        path = str(folder / f"{cut}.pool")
        with make_outbox(path) as outbox:
            save(outbox, "a", 100)
        with Inbox.open(path, GEOMETRY) as inbox:
            view = inbox.pin(ticket_id("a"))
            tokens, chunks = view.tokens, [bytes(view.chunk(0))]
            killed = start_and_wait(cut_library, lambda p=path: save_anew(p, cut_library), cut)  # type: ignore[misc]
            try:
                chunks.append(bytes(view.chunk(1)))
                view.release()
            except REFUSALS:
                pass
            else:
                assert is_right(view, "a", tokens, chunks)
        assert try_take(path, "b") in SAFE
        check_restart(path)
        os.unlink(path)
        if not killed:
            break
    assert cut > 8


def save_anew(path: str, library: Library) -> str:
    save(make_outbox(path, library), "b", 100)
    return "done"


def start_and_wait(library: Library, scenario: Callable[[], str], cut: int) -> bool:
    child = start(library, scenario, cut, signal.SIGKILL)
    killed = child.killed()
    child.drop()
    return killed


@pytest.mark.parametrize("consumed", [True, False])
def test_consumer_killed_at_every_step(cut_library: Library, folder: Path, consumed: bool) -> None:
    path = str(folder / "a.pool")

    def consume() -> str:
        with Inbox.open(path, GEOMETRY, library=cut_library) as inbox:
            return take(inbox, "a", consumed)

    states: set[TicketState] = set()
    with make_outbox(path) as outbox:
        for cut in count_from_one():
            ticket = save(outbox, "a", 100)
            killed = start_and_wait(cut_library, consume, cut)
            states.add(ticket.state)
            check_leases(outbox, ticket)
            save(outbox, "b", 200)
            assert try_take(path, "b") == "right"
            outbox.reap()
            assert_empty(outbox)
            if not killed:
                break
    assert cut > 6 and TicketState.LOADING in states


def check_leases(outbox: Outbox, ticket: Ticket) -> None:
    """A living lease is kept, a dead consumer's ends."""
    state = ticket.state
    held = state in (TicketState.READY, TicketState.LOADING)
    assert outbox.reap() == (0 if held else 1), state
    assert outbox.reap(far_future_ns()) == (1 if held else 0), state
    assert ticket.state is TicketState.FREE
    assert_empty(outbox)


def test_consumer_stopped_at_every_step_while_the_owner_goes_on(cut_library: Library, folder: Path) -> None:
    """The worst case for a copy: the ticket's slot and chunks get other content under the consumer."""
    path = str(folder / "a.pool")

    def consume() -> str:
        with Inbox.open(path, GEOMETRY, library=cut_library) as inbox:
            return take(inbox, "a", lease_s=2 * LEASE_S)

    results: set[str] = set()
    with make_outbox(path) as outbox:
        for cut in count_from_one():
            save(outbox, "a", 100)
            child = start(cut_library, consume, cut, signal.SIGSTOP)
            stopped = child.wait_stopped()
            outbox.reap(far_future_ns())
            assert_empty(outbox)
            others = [save(outbox, name, 100) for name in "bcd"]
            result = child.resume() if stopped else child.result()
            assert result in SAFE, (cut, result)
            results.add(result)
            assert {ticket.state for ticket in others} == {TicketState.READY}, cut
            assert_leases_untouched(path)
            assert [try_take(path, name) for name in "bcd"] == ["right"] * 3
            outbox.reap()
            if not stopped:
                break
    assert {"right", "StaleError"} <= results


def assert_leases_untouched(path: str) -> None:
    """No deadline in the ticket table is later than its owner set it."""
    with open(path, "rb") as file:
        tables = file.read()
    for index in range(TICKETS):
        (deadline_ns,) = struct.unpack_from("<Q", tables, 8192 + 128 * index + 8)
        assert deadline_ns <= time.monotonic_ns() + LEASE_S * 1e9


def test_owner_stopped_at_every_step_while_a_consumer_looks(cut_library: Library, folder: Path) -> None:
    for cut in count_from_one():
        path = str(folder / f"{cut}.pool")
        child = start(cut_library, lambda p=path: owner_life(p, cut_library), cut, signal.SIGSTOP)  # type: ignore[misc]
        stopped = child.wait_stopped()
        outcomes = {name: try_take(path, name) for name in "abc"}
        assert set(outcomes.values()) <= SAFE, (cut, outcomes)
        check_stats(path)
        assert (child.resume() if stopped else child.result()) == "done"
        os.unlink(path)
        if not stopped:
            break


def test_owner_stopped_while_it_frees(cut_library: Library, folder: Path) -> None:
    """A READY ticket is taken back step by step; a consumer tries it at each of them."""
    for cut in count_from_one():
        path = str(folder / f"{cut}.pool")
        child = start(cut_library, lambda p=path: reap_late(p, cut_library), cut, signal.SIGSTOP)  # type: ignore[misc]
        stopped = child.wait_stopped()
        outcome = try_take(path, "a")
        assert outcome in SAFE
        assert (child.resume() if stopped else child.result()) == "done"
        os.unlink(path)
        if not stopped:
            break


def reap_late(path: str, library: Library) -> str:
    outbox = make_outbox(path, library)
    save(outbox, "a", 100)
    outbox.reap(far_future_ns())
    save(outbox, "b", 100)
    assert outbox.info().tickets_free == 2
    return "done"


@pytest.mark.parametrize("crc", [None, 7])
def test_worker_killed_at_every_step(cut_library: Library, folder: Path, crc: int | None) -> None:
    """A ticket whose worker died cannot be published, and its chunks come back."""
    path, refused = str(folder / "a.pool"), 0
    with make_outbox(path) as outbox:
        for cut in count_from_one():
            ticket = outbox.begin(ticket_id("a"), LEASE_S)
            ticket.append(token_ids("a", 128))
            ticket.seal(1)

            def work(slot: int = ticket.slot) -> str:
                with Worker.join(path, library=cut_library) as worker:
                    worker.seal(slot, 0, 0, CHUNK_TOKENS, crc)
                return "done"

            killed = start_and_wait(cut_library, work, cut)
            try:
                ticket.publish(128)
            except KernelError as err:
                assert killed and "rank 0 sealed 0 tokens" in str(err)
                refused += 1
            ticket.free()
            assert_empty(outbox)
            if not killed:
                break
        assert cut > 2 and refused > 0


# ---- the daemon, which only unlinks the file of a dead owner and puts an empty one in its place ------------------


def unlink(path: str) -> None:
    os.unlink(path)


def put_empty(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o660))


def in_child(action: Callable[[str], None], path: str) -> None:
    pid = os.fork()
    if pid == 0:
        action(path)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("consumer_at", range(5))
@pytest.mark.parametrize("daemon_at", range(5))
def test_daemon_cut_at_every_step(folder: Path, consumer_at: int, daemon_at: int) -> None:
    """The old owner is dead; the consumer is at some call; then the daemon and the new owner get some way."""
    path = str(folder / "a.pool")
    outbox = make_outbox(path)
    save(outbox, "a", 100)
    outbox.close()
    steps: list[Callable[[], object]] = [
        lambda: in_child(unlink, path),
        lambda: in_child(put_empty, path),
        lambda: fresh.append(make_outbox(path)),
        lambda: save(fresh[0], "b", 100),
    ]
    fresh: list[Outbox] = []

    def daemon() -> None:
        for step in steps[:daemon_at]:
            step()

    if consumer_at == 0:
        daemon()
        assert try_take(path, "a") in (SAFE if daemon_at == 0 else REFUSED)
    else:
        consume_around(path, consumer_at, daemon)
    outcome = try_take(path, "b")
    assert outcome == "right" if daemon_at == 4 else outcome in REFUSED
    for new in fresh:
        new.reap()
        assert_empty(new)
        new.close()


def consume_around(path: str, consumer_at: int, daemon: Callable[[], None]) -> None:
    """Opens, pins, reads and releases, with `daemon` after the given number of calls; then follows to the new file."""
    with Inbox.open(path, GEOMETRY) as inbox:
        if consumer_at == 1:
            daemon()
        try:
            view = inbox.pin(ticket_id("a"))
        except REFUSALS:
            return
        if consumer_at == 2:
            daemon()
        tokens = view.tokens
        if consumer_at == 3:
            daemon()
        chunks = [bytes(view.chunk(index)) for index in range(view.n_chunks)]
        if consumer_at == 4:
            daemon()
        view.release()  # the old file lives on under the mapping: its data is still right
        assert is_right(view, "a", tokens, chunks)
        with pytest.raises(REFUSALS):
            inbox.pin(ticket_id("a"))


def test_inbox_follows_the_owner_to_a_new_file(folder: Path) -> None:
    path = str(folder / "a.pool")
    outbox = make_outbox(path)
    old = save(outbox, "a", 10)
    inbox = Inbox.open(path, GEOMETRY)
    view = inbox.pin(ticket_id("a"))
    generation = inbox.info().generation
    outbox.close()
    os.unlink(path)
    with make_outbox(path) as fresh:
        save(fresh, "b", 10)
        with pytest.raises(StaleError):
            inbox.pin(ticket_id("b"), generation=generation)
        assert take(inbox, "b") == "right"
        assert inbox.info().generation > generation
        view.release()  # in the old file, which nobody owns
        assert old.id == ticket_id("a")
    inbox.close()
