"""The owner's side without an engine: any life of requests leaves whole tickets or none."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from syshax_contract.transfer import HandoffParams, SaveOn
from syshax_handoff import chunks
from syshax_handoff.chunks import ChunkPart
from syshax_handoff.saving import Progress, Saver, Saving
from syshax_kernels.kernel_errors import KernelError
from syshax_kernels.pool import CHUNK_TOKENS
from tests.unit.handoff.pools import FILLING, READY, Counts, MemoryPool, MemoryTicket

log = logging.getLogger("tests.handoff")
CHUNKS, TICKETS = 8, 4
KEYS = st.integers(0, 5)
ENDS = ["length", "stop", "abort", "error"]


@dataclass
class Life:
    """One request. `known`: tokens whose KV is in its blocks."""

    name: int
    tokens: list[int]
    known: int = 0
    ended: bool = False
    failed: bool = False

    @property
    def ticket_id(self) -> bytes:
        return self.name.to_bytes(16, "little")


class OwnerMachine(RuleBasedStateMachine):
    """An engine that copies late or at once, and is told that copies fail."""

    @initialize(at_once=st.booleans())
    def start(self, at_once: bool) -> None:
        self.pool, self.counts, self.at_once = MemoryPool(CHUNKS, TICKETS), Counts(), at_once
        self.saver: Saver[int] = Saver(self.pool, self.counts, log, at_once)
        self.lives: dict[int, Life] = {}
        self.orders: dict[int, list[range]] = {}  # copies that have not been made
        self.published: dict[bytes, list[int]] = {}
        self.numbers = 0

    @rule(key=KEYS, private=st.booleans())
    def arrives(self, key: int, private: bool) -> None:
        if key in self.lives:
            return
        self.numbers += 1
        life = self.lives[key] = Life(self.numbers, [self.numbers * 1000 + i for i in range(400)])
        full = len(self.pool.tickets) == TICKETS
        assert private or self.saver.begin(key, str(key), life.ticket_id) is not full

    @rule(key=KEYS, more=st.sampled_from([1, 63, 64, 65, 200]), tail=st.booleans(), fails=st.booleans())
    def runs(self, key: int, more: int, tail: bool, fails: bool) -> None:
        life = self.lives.get(key)
        if life is None or life.ended:
            return
        life.known = min(life.known + more, len(life.tokens))
        ordered = self.saver.order(key, life.tokens, life.known, tail)
        assert tail or ordered.stop % CHUNK_TOKENS == 0
        self.ordered(key, ordered, fails)

    @rule(key=KEYS)
    def is_preempted(self, key: int) -> None:
        """Its KV is copied before its blocks go, then it has none; what it finds again is a beginning of it."""
        life = self.lives.get(key)
        if life is None or life.ended:
            return
        self.ordered(key, self.saver.keep(key, str(key), life.tokens, life.known), fails=False)
        self.copies(key)
        assert 0 <= self.saver.readable(key) <= life.known
        if self.saver.readable(key):
            ticket = self.ticket(key)
            assert ticket is not None and ticket.kv()[: life.known] == life.tokens[: self.saver.readable(key)]
        life.known = self.saver.readable(key)

    @rule(key=KEYS, whole=st.booleans())
    def has_its_kv_back(self, key: int, whole: bool) -> None:
        life = self.lives.get(key)
        if life is not None and not life.ended and not self.orders.get(key):
            self.saver.restored(key, whole)
            assert whole or self.saver.ticket(key) is None

    @rule(key=KEYS)
    def copies(self, key: int) -> None:
        """All copies of a request are made, in order."""
        ticket = self.ticket(key)
        for tokens in self.orders.pop(key, []):
            assert ticket is not None and ticket.state == FILLING
            ticket.writing -= 1
            self.copy(key, ticket, tokens)

    @rule(key=KEYS, save_on=st.sampled_from(list(SaveOn)), how=st.sampled_from(ENDS))
    def ends(self, key: int, save_on: SaveOn, how: str) -> None:
        life = self.lives.get(key)
        if life is None or life.ended:
            return
        publish = HandoffParams(None, save_on).publishes(how)
        if publish:
            self.ordered(key, self.saver.order(key, life.tokens, life.known, tail=True), fails=False)
        life.ended = True
        ticket, before = self.ticket(key), self.counts.saved_tokens
        if not self.saver.end(key, publish):
            assert not self.orders.get(key), "blocks are given back while a copy reads them"
            self.is_over(key, ticket, before)
        else:
            assert not self.at_once

    @rule()
    def copies_are_looked_for(self) -> None:
        """Between steps: what is sealed is published, and nothing else."""
        waits = self.saver.publish_sealed()
        assert waits == self.saver.ending.is_set() or not waits
        for key, life in self.lives.items():
            ticket = self.ticket(key)
            assert ticket is None or ticket.state == FILLING or (life.ended and not self.orders.get(key))

    @rule(key=KEYS)
    def is_settled(self, key: int) -> None:
        """The copies of an ended request are over."""
        life = self.lives.get(key)
        if life is None or not life.ended:
            return
        self.copies(key)
        ticket, before = self.ticket(key), self.counts.saved_tokens
        self.saver.settle(key)
        self.is_over(key, ticket, before)

    def is_over(self, key: int, ticket: MemoryTicket | None, before: int) -> None:
        """READY as it should be, or gone."""
        life = self.lives[key]
        if ticket is not None and ticket.state == READY:
            assert ticket.id == life.ticket_id, "a private ticket was published"
            assert not life.failed and ticket.kv() == ticket.tokens == life.tokens[: len(ticket.tokens)]
            assert self.counts.saved_tokens - before == len(ticket.tokens)
        else:
            assert self.counts.saved_tokens == before
        del self.lives[key]

    @rule(key=KEYS)
    def is_discarded(self, key: int) -> None:
        life = self.lives.get(key)
        if life is not None and not self.orders.get(key):
            self.saver.discard(life.ticket_id)
            assert life.ticket_id not in self.pool.tickets

    def ordered(self, key: int, tokens: range, fails: bool) -> None:
        """Copies at once, or notes what is to be copied later."""
        ticket = self.ticket(key)
        if not tokens or ticket is None:
            return
        if fails:
            self.saver.failed(key, KernelError("the copy failed", -2))
            self.lives[key].failed = True
        elif self.at_once:
            self.copy(key, ticket, tokens)
        else:
            ticket.writing += 1
            self.orders.setdefault(key, []).append(tokens)

    def copy(self, key: int, ticket: MemoryTicket, tokens: range) -> None:
        def copy(part: ChunkPart, address: int) -> int | None:
            rows = ticket.chunks[address]
            rows[part.at : part.until] = self.lives[key].tokens[part.first : part.first + part.count]
            return None

        chunks.save(ticket, tokens, copy)

    def ticket(self, key: int) -> MemoryTicket | None:
        found = self.saver.ticket(key)
        return found  # type: ignore[return-value]

    @invariant()
    def chunks_add_up(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.chunks_free + sum(len(t.chunks) for t in self.pool.tickets.values()) == CHUNKS

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for key, life in list(self.lives.items()):
            if not life.ended:
                self.ends(key, SaveOn.ABORT, "error")
            self.is_settled(key)
        assert not self.saver.keys
        assert {ticket.state for ticket in self.pool.tickets.values()} <= {READY}
        self.saver.close()


TestLivesOfRequests = OwnerMachine.TestCase
TestLivesOfRequests.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.integers(0, 300), st.integers(0, 300), st.booleans())
def test_whole_chunks_are_taken_in_and_the_tail_only_at_the_end(ordered: int, known: int, tail: bool) -> None:
    wanted = Saving(private=False, ordered=ordered).next(known, tail)
    assert wanted.start == ordered
    if tail:
        assert wanted.stop == max(known, ordered)
    else:
        assert not wanted or (wanted.stop % CHUNK_TOKENS == 0 and known - wanted.stop < CHUNK_TOKENS)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 100))
def test_progress_covers_every_token_once(total: int, have: int, budget: int) -> None:
    progress, copied = Progress(total), list[int]()
    for _ in range(400):
        tokens = progress.next(have, budget)
        assert len(tokens) <= budget
        copied += tokens
        progress = progress.after(tokens)
        if progress.over:
            break
    assert progress.over and copied == list(range(have, total))


@given(st.integers(0, 500), st.integers(0, 300))
def test_parts_lie_in_one_chunk_each_and_follow_each_other(start: int, count: int) -> None:
    found = chunks.parts(range(start, start + count))
    assert [part.first + i for part in found for i in range(part.count)] == list(range(start, start + count))
    for part in found:
        assert part.index * CHUNK_TOKENS + part.at == part.first and 0 < part.until <= CHUNK_TOKENS


def test_without_a_pool_only_a_wish_is_counted() -> None:
    counts = Counts()
    saver: Saver[int] = Saver(None, counts, log)
    assert not saver.begin(1, "r", bytes(16))
    assert not saver.keep(2, "s", [1, 2, 3], 2) and saver.readable(2) == 0
    assert counts.save_failures == {"no_pool": 1}


def test_an_unsealed_ticket_is_not_published() -> None:
    """A rank that did not write what it was told to."""
    pool, counts = MemoryPool(CHUNKS, TICKETS), Counts()
    saver: Saver[int] = Saver(pool, counts, log, at_once=False)
    saver.begin(1, "r", bytes(16))
    assert saver.order(1, list(range(100)), 100) == range(64)
    assert saver.end(1, publish=True)
    saver.settle(1)
    assert counts.saved_tokens == 0 and counts.save_failures == {"error": 1} and not pool.tickets


@pytest.mark.parametrize("save_on, ends", [
    ("finish", {"length", "stop", "abort"}), ("length", {"length", "abort"}), ("abort", {"abort"}),
])  # fmt: skip
def test_which_ends_leave_a_ticket(save_on: str, ends: "set[str]") -> None:
    params = HandoffParams(None, SaveOn(save_on))
    assert {how for how in ENDS if params.publishes(how)} == ends
