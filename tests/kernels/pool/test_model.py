"""Property test: any sequence of calls leaves the pool in the state that a simple model of the rules predicts."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from syshax_kernels.kernel_errors import BusyError, FullError, KernelError, NotFoundError, StaleError
from syshax_kernels.pool import CHUNK_TOKENS, Inbox, Ticket, TicketState, View
from tests.kernels.pool.handoff import (
    CHUNKS,
    GEOMETRY,
    LEASE_S,
    MAX_TOKENS,
    TICKETS,
    assert_empty,
    chunk_data,
    is_right,
    make_outbox,
    ticket_id,
    token_ids,
)

NAMES = ["a", "b", "c", "d"]
LATER_NS = {"now": 0, "owner's lease over": int(1.5 * LEASE_S * 1e9), "every lease over": int(2.5 * LEASE_S * 1e9)}
CONSUMER_LEASE_S = 2 * LEASE_S


@dataclass
class Model:
    """What the rules say about one used ticket."""

    ticket: Ticket
    state: TicketState = TicketState.FILLING
    n_tokens: int = 0
    sealed: dict[int, int] = field(default_factory=dict)  # chunk: tokens covered
    doomed: bool = False
    view: View | None = None

    @property
    def n_chunks(self) -> int:
        return -(-self.n_tokens // CHUNK_TOKENS)

    def frees_at(self, later_ns: int) -> bool:
        """Whether a reap that much later frees it."""
        if self.state in (TicketState.CONSUMED, TicketState.FAILED):
            return True
        if self.state is TicketState.READY:
            return self.doomed or later_ns > LEASE_S * 1e9
        return self.state is TicketState.LOADING and later_ns > CONSUMER_LEASE_S * 1e9


class PoolMachine(RuleBasedStateMachine):
    """Owner and consumer in one process; time moves only in reap, which takes it as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="syshax-test-")
        path = f"{self.folder.name}/a.pool"
        self.outbox = make_outbox(path)
        self.inbox = Inbox.open(path, GEOMETRY)
        self.models: dict[str, Model] = {}
        self.gone: list[Ticket] = []
        self.lost: list[View] = []  # pins that the owner took away
        self.published: dict[str, int] = {}  # tokens

    def teardown(self) -> None:
        for model in self.models.values():
            model.ticket.free()
        self.outbox.reap(time.monotonic_ns() + LATER_NS["every lease over"])
        assert_empty(self.outbox)
        self.inbox.close()
        self.outbox.close()
        self.folder.cleanup()

    def chunks_used(self) -> int:
        return sum(model.n_chunks for model in self.models.values())

    def forget(self, name: str) -> None:
        self.gone.append(self.models.pop(name).ticket)

    @rule(name=st.sampled_from(NAMES))
    def begin(self, name: str) -> None:
        old = self.models.get(name)
        if old is not None and old.state in (TicketState.CONSUMED, TicketState.FAILED):
            self.forget(name)
            old = None
        try:
            ticket = self.outbox.begin(ticket_id(name), LEASE_S)
        except BusyError:
            assert old is not None
        except FullError:
            assert old is None and len(self.models) == TICKETS
        else:
            assert old is None
            self.models[name] = Model(ticket)

    @rule(name=st.sampled_from(NAMES), more=st.sampled_from([1, 5, 63, 64, 65, 128]))
    def append(self, name: str, more: int) -> None:
        model = self.models.get(name)
        if model is None or model.state is not TicketState.FILLING:
            return
        total = model.n_tokens + more
        wanted = -(-total // CHUNK_TOKENS) - model.n_chunks
        fits = total <= MAX_TOKENS and self.chunks_used() + wanted <= CHUNKS
        try:
            model.ticket.append(token_ids(name, total)[model.n_tokens :])
        except FullError:
            assert not fits
            return
        assert fits
        model.n_tokens = total
        for index in range(model.n_chunks):
            model.ticket.chunk(index)[:] = chunk_data(name, index)

    @rule(name=st.sampled_from(NAMES), index=st.integers(0, 4))
    def seal(self, name: str, index: int) -> None:
        model = self.models.get(name)
        if model is None or model.state is not TicketState.FILLING or index >= model.n_chunks:
            return
        model.ticket.seal(index)
        model.sealed[index] = min(CHUNK_TOKENS, model.n_tokens - index * CHUNK_TOKENS)

    @rule(name=st.sampled_from(NAMES), fewer=st.integers(0, 70))
    def publish(self, name: str, fewer: int) -> None:
        model = self.models.get(name)
        if model is None or model.state is not TicketState.FILLING:
            return
        n_tokens = model.n_tokens - fewer
        needed = {i: min(CHUNK_TOKENS, n_tokens - i * CHUNK_TOKENS) for i in range(-(-n_tokens // CHUNK_TOKENS))}
        allowed = n_tokens > 0 and all(model.sealed.get(index, 0) >= need for index, need in needed.items())
        try:
            model.ticket.publish(max(0, n_tokens))
        except KernelError:
            assert not allowed
            return
        assert allowed
        model.state = TicketState.READY
        self.published[name] = n_tokens

    @rule(name=st.sampled_from(NAMES))
    def fail(self, name: str) -> None:
        model = self.models.get(name)
        if model is None or model.state not in (TicketState.FILLING, TicketState.READY):
            return
        model.ticket.fail()
        model.state = TicketState.FAILED

    @rule(name=st.sampled_from(NAMES))
    def free(self, name: str) -> None:
        model = self.models.get(name)
        if model is None:
            return
        model.ticket.free()
        if model.state is TicketState.LOADING:
            model.doomed = True
        else:
            self.forget(name)

    @rule(later=st.sampled_from(sorted(LATER_NS)))
    def reap(self, later: str) -> None:
        freed = [name for name, model in self.models.items() if model.frees_at(LATER_NS[later])]
        assert self.outbox.reap(time.monotonic_ns() + LATER_NS[later]) == len(freed)
        for name in freed:
            view = self.models[name].view
            self.forget(name)
            if view is not None:
                self.lost.append(view)

    @rule(name=st.sampled_from(NAMES))
    def pin(self, name: str) -> None:
        model = self.models.get(name)
        state = TicketState.FREE if model is None else model.state
        try:
            view = self.inbox.pin(ticket_id(name), lease_s=CONSUMER_LEASE_S)
        except NotFoundError:
            assert state is TicketState.FREE
        except BusyError:
            assert state is TicketState.FILLING
        except StaleError:
            assert state in (TicketState.LOADING, TicketState.CONSUMED, TicketState.FAILED)
        else:
            assert model is not None and state is TicketState.READY
            model.state, model.view = TicketState.LOADING, view
            chunks = [bytes(view.chunk(index)) for index in range(view.n_chunks)]
            assert view.n_tokens == self.published[name]
            assert is_right(view, name, view.tokens, chunks)

    @rule(name=st.sampled_from(NAMES), consumed=st.booleans())
    def release(self, name: str, consumed: bool) -> None:
        model = self.models.get(name)
        if model is None or model.view is None:
            return
        model.view.release(consumed)
        model.state, model.view = TicketState.CONSUMED if consumed else TicketState.READY, None

    @precondition(lambda self: bool(self.lost))
    @rule()
    def release_what_was_taken_away(self) -> None:
        try:
            self.lost.pop().release()
        except StaleError:
            return
        raise AssertionError("a pin that the owner had taken away was released as if it held")

    @invariant()
    def counts_agree(self) -> None:
        info = self.outbox.info()
        assert info.chunks_free == CHUNKS - self.chunks_used()
        assert info.tickets_free == TICKETS - len(self.models)

    @invariant()
    def states_agree(self) -> None:
        for model in self.models.values():
            assert model.ticket.state is model.state
        for ticket in self.gone[-3:]:
            assert ticket.state is TicketState.FREE

    @invariant()
    def no_chunk_has_two_tickets(self) -> None:
        filling = [m for m in self.models.values() if m.state is TicketState.FILLING]
        addresses = [m.ticket.chunk_address(index) for m in filling for index in range(m.n_chunks)]
        assert len(set(addresses)) == len(addresses)


TestPoolCalls = PoolMachine.TestCase
TestPoolCalls.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
