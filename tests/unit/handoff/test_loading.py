"""The consumer's side without an engine: every handoff is taken up once or counted, and its pin given back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from syshax_handoff.chunks import common_prefix
from syshax_handoff.loading import FILLING_WAIT_S, SILENCE_S, Loader, Loading
from syshax_kernels.kernel_errors import CorruptError
from tests.unit.handoff.pools import READY, Counts, MemoryPool, MemoryView

log = logging.getLogger("tests.handoff")
KEYS = st.integers(0, 3)


@dataclass(frozen=True)
class Source:
    """TicketSource."""

    ticket: bytes
    pool: str = "other.pool"
    generation: int = 0


@dataclass
class Life:
    """A request that asks for a ticket. `have`: tokens in its blocks."""

    tokens: list[int]
    since: float
    have: int
    polled: bool = False


class ConsumerMachine(RuleBasedStateMachine):
    """Tickets come, go and are taken away; requests wait, copy, fail and leave, as time goes on."""

    @initialize()
    def start(self) -> None:
        self.pool, self.counts, self.now = MemoryPool(40, 9), Counts(), 0.0
        self.loader: Loader[int] = Loader(
            Path(__file__).parent, lambda path: self.pool, self.counts, log, lambda: self.now
        )
        self.lives: dict[int, Life] = {}
        self.views: list[MemoryView] = []
        self.told = 0  # handoffs that must have been counted as failures

    @rule(number=st.integers(1, 4), length=st.sampled_from([1, 64, 100, 200]), ready=st.booleans())
    def a_ticket(self, number: int, length: int, ready: bool) -> None:
        ticket = self.pool.tickets.get(bytes([number] * 16)) or self.pool.begin(bytes([number] * 16), 30.0)
        if ticket.state != "filling":
            return
        if not ticket.tokens:
            ticket.append(list(range(length)))
        if ready:
            ticket.state = READY

    @rule(number=st.integers(1, 4))
    def a_ticket_goes(self, number: int) -> None:
        ticket = self.pool.tickets.get(bytes([number] * 16))
        if ticket is not None and ticket.state != "loading":
            ticket.free()

    @rule(key=KEYS, number=st.integers(1, 4), generation=st.sampled_from([0, 1, 2]), have=st.sampled_from([0, 16, 150]),
          pool=st.sampled_from(["test_loading.py", "none.pool", "../x.pool"]), same=st.integers(0, 250))  # fmt: skip
    def arrives(self, key: int, number: int, generation: int, have: int, pool: str, same: int) -> None:
        if key in self.lives:
            return
        tokens = [*range(same), *range(9000, 9251 - same)]
        self.lives[key] = Life(tokens, self.now, have)
        self.loader.expect(key, f"r{key}", Source(bytes([number] * 16), pool, generation))

    @rule(key=KEYS)
    def asks(self, key: int) -> None:
        life = self.lives.get(key)
        if life is None or life.polled:
            return
        before = sum(self.counts.load_failures.values())
        usable = self.loader.poll(key, life.tokens)
        failed = sum(self.counts.load_failures.values()) - before
        if usable is None:
            heard = max(self.pool.beat_at, life.since)
            assert self.now < life.since + FILLING_WAIT_S and self.now < heard + SILENCE_S and not failed
            return
        life.polled = True
        view = self.loader.view(key)
        assert failed == (view is None)
        if view is None:
            assert usable == 0
            del self.lives[key]
        else:
            assert isinstance(view, MemoryView)
            self.views.append(view)
            assert usable == min(common_prefix(view.tokens, life.tokens), len(life.tokens) - 1)

    @rule(key=KEYS, budget=st.sampled_from([16, 64, 1000]))
    def copies(self, key: int, budget: int) -> None:
        life = self.lives.get(key)
        if life is None or self.loader.view(key) is None:
            return
        tokens = self.loader.next(key, life.have, budget)
        assert len(tokens) <= budget
        assert all(token == life.tokens[token] for token in tokens), "KV of other tokens"
        if self.loader.took(key, tokens):
            view = self.views[[id(v) for v in self.views].index(id(self.loader.view(key)))]
            assert self.loader.done(key) is not view.lost
            del self.lives[key]

    @rule(key=KEYS, leaves=st.booleans())
    def ends(self, key: int, leaves: bool) -> None:
        """The client leaves, or a copy fails."""
        if self.lives.pop(key, None) is None:
            return
        before = sum(self.counts.load_failures.values())
        if leaves:
            self.loader.cancel(key)
        else:
            self.loader.fail(key, CorruptError("damaged", -9))
        assert sum(self.counts.load_failures.values()) - before == (not leaves)
        assert self.loader.poll(key, [1, 2]) == 0 and self.loader.view(key) is None

    @rule(seconds=st.sampled_from([0.1, 1.0, SILENCE_S, 40.0]))
    def time_goes_on(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_owner_beats(self) -> None:
        self.pool.beat_at = self.now

    @rule(which=st.integers(0, 20))
    def a_lease_ends(self, which: int) -> None:
        if which < len(self.views):
            self.views[which].lost = True

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for key in list(self.lives):
            self.loader.cancel(key)
        assert [view.released for view in self.views] == [1] * len(self.views)
        self.loader.close()


TestHandoffsTakenUp = ConsumerMachine.TestCase
TestHandoffsTakenUp.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_common_prefix(left: list[int], right: list[int]) -> None:
    length = common_prefix(left, right)
    assert left[:length] == right[:length]
    assert length in (len(left), len(right)) or left[length] != right[length]


@pytest.mark.parametrize("common, known, usable", [(0, 10, 0), (5, 10, 5), (10, 10, 9), (1, 1, 0), (0, 0, 0)])
def test_the_last_token_is_left_to_compute(common: int, known: int, usable: int) -> None:
    progress = Loading(0.0, 0.0).pinned(common, known).progress
    assert progress is not None and progress.total == usable


@pytest.mark.parametrize("generation, state, reason", [
    (0, "none", "missing"), (2, "ready", "stale"), (0, "loading", "stale"), (0, "filling", "timeout"),
])  # fmt: skip
def test_reasons(generation: int, state: str, reason: str) -> None:
    pool, counts, now = MemoryPool(8, 4), Counts(), [0.0]
    loader: Loader[str] = Loader(Path(__file__).parent, lambda path: pool, counts, log, lambda: now[0])
    if state != "none":
        ticket = pool.begin(bytes(16), 1.0)
        ticket.append([1, 2, 3])
        ticket.state = state
    loader.expect("r", "r", Source(bytes(16), Path(__file__).name, generation))
    if reason == "timeout":
        assert loader.poll("r", [1, 2, 3]) is None
    now[0] = FILLING_WAIT_S
    assert loader.poll("r", [1, 2, 3]) == 0 == loader.poll("r", [1, 2, 3])
    assert counts.load_failures == {reason: 1}


@pytest.mark.parametrize("beats, gives_up_at", [(True, FILLING_WAIT_S), (False, SILENCE_S)])
def test_a_ticket_is_waited_for_while_its_owner_lives(beats: bool, gives_up_at: float) -> None:
    """A step of the owner's may last many seconds; an owner that says nothing any more is not waited for."""
    pool, counts, now = MemoryPool(8, 4), Counts(), [0.0]
    pool.begin(bytes(16), 1.0)
    loader: Loader[str] = Loader(Path(__file__).parent, lambda path: pool, counts, log, lambda: now[0])
    loader.expect("r", "r", Source(bytes(16), Path(__file__).name))
    while loader.poll("r", [1, 2, 3]) is None:
        now[0] += 0.25
        pool.beat_at = now[0] if beats else 0.0
    assert now[0] == gives_up_at and counts.load_failures == {"timeout": 1}


def test_what_is_published_after_a_long_step_is_taken() -> None:
    pool, counts, now = MemoryPool(8, 4), Counts(), [0.0]
    ticket = pool.begin(bytes(16), 1.0)
    ticket.append([1, 2, 3])
    loader: Loader[str] = Loader(Path(__file__).parent, lambda path: pool, counts, log, lambda: now[0])
    loader.expect("r", "r", Source(bytes(16), Path(__file__).name))
    for now[0] in (2.0, 4.0, 6.0, 8.0):
        assert loader.poll("r", [1, 2, 3, 4]) is None
        pool.beat_at = now[0]
    ticket.state = READY
    assert loader.poll("r", [1, 2, 3, 4]) == 3 and not counts.load_failures
