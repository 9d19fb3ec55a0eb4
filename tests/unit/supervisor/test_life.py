"""The state machine of a unit: the normal life step by step, and any order of events as a property."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from syshaxd.config.types import RestartConfig
from syshaxd.model.unit import UnitState as S
from syshaxd.supervisor.life import STABLE, Effect, Life, LifeEvent, What, backoff, step

POLICY = RestartConfig(backoff=1.0, backoff_max=8.0, limit=3)


def _run(life: Life, *events: LifeEvent, now: float = 0.0) -> Life:
    for event in events:
        life, _ = step(life, event, now, POLICY)
    return life


def _own(what: What, epoch: int = 1, reason: str = "") -> LifeEvent:
    return LifeEvent(what, reason, epoch)


READY = _run(Life(), LifeEvent(What.START), _own(What.ANSWERS), _own(What.WARM))


def test_the_way_up_and_down() -> None:
    life, act = step(Life(), LifeEvent(What.START), 1.0, POLICY)
    assert (life.state, act, life.epoch, life.since) == (S.STARTING, Effect.LAUNCH, 1, 1.0)
    life, act = step(life, _own(What.ANSWERS), 2.0, POLICY)
    assert (life.state, act) == (S.WARMING, Effect.WARM_UP)
    life, act = step(life, _own(What.WARM), 3.0, POLICY)
    assert (life.state, act) == (S.READY, Effect.WATCH)
    life, act = step(life, LifeEvent(What.STOP), 4.0, POLICY)
    assert (life.state, act) == (S.DRAINING, Effect.DRAIN)
    life, act = step(life, _own(What.DRAINED), 5.0, POLICY)
    assert (life.state, act) == (S.STOPPING, Effect.TERMINATE)
    life, act = step(life, _own(What.EXITED), 6.0, POLICY)
    assert (life.state, act) == (S.STOPPED, Effect.NOTHING)


def test_failed_starts_back_off_until_the_limit_and_keep_the_reason() -> None:
    life, waits = _run(Life(), LifeEvent(What.START)), []
    for epoch in (1, 2, 3):
        life, act = step(life, _own(What.EXITED, epoch, "exited with status 1"), 10.0, POLICY)
        waits.append(life.retry_at)
        if act is Effect.AWAIT_RETRY:
            life, _ = step(life, _own(What.RETRY, epoch), 10.0, POLICY)
    assert waits == [11.0, 12.0, None]
    assert (life.state, life.failures, life.reason) == (S.FAILED, 3, "exited with status 1")


def test_an_operator_starts_a_failed_unit_anew() -> None:
    life = _run(Life(state=S.FAILED, epoch=3, failures=3, reason="x"), LifeEvent(What.START))
    assert (life.state, life.failures, life.epoch) == (S.STARTING, 0, 4)


def test_a_long_good_time_forgives() -> None:
    tired = Life(state=S.READY, epoch=9, wanted=True, failures=2)
    soon, _ = step(tired, _own(What.EXITED, 9, "x"), STABLE - 1, POLICY)
    late, _ = step(tired, _own(What.EXITED, 9, "x"), STABLE, POLICY)
    assert (soon.failures, soon.retry_at) == (3, None)
    assert (late.failures, late.retry_at) == (1, STABLE + 1.0)


def test_a_stalled_unit_is_killed_and_comes_back() -> None:
    life, act = step(READY, _own(What.BROKEN, 1, "stalled"), 1.0, POLICY)
    assert (life.state, act) == (S.STOPPING, Effect.KILL)
    life, act = step(life, _own(What.EXITED, 1, "killed by SIGKILL"), 2.0, POLICY)
    assert (life.state, act, life.reason) == (S.FAILED, Effect.AWAIT_RETRY, "stalled")


def test_what_ended_by_itself_tells_more_than_what_was_noticed_of_it() -> None:
    broken = _run(READY, _own(What.BROKEN, reason="unhealthy: connection refused"), now=5.0)
    killed = _run(broken, _own(What.EXITED, reason="killed by SIGKILL"))
    assert killed.reason == "unhealthy: connection refused", "by us"
    ended = _run(broken, LifeEvent(What.EXITED, "exited with status 3", 1, own=True))
    assert (ended.state, ended.reason) == (S.FAILED, "exited with status 3")


def test_an_engine_that_is_away_counts_for_no_limit() -> None:
    life = _run(Life(), LifeEvent(What.START))
    for epoch in range(1, 9):
        life, act = step(life, LifeEvent(What.EXITED, "no engine", epoch, passing=True), 10.0, POLICY)
        assert (life.state, life.failures, life.retry_at, act) == (S.FAILED, 0, 15.0, Effect.AWAIT_RETRY)
        life, _ = step(life, _own(What.RETRY, epoch), 15.0, POLICY)
    assert life.state is S.STARTING


def test_restart_drains_first() -> None:
    life = _run(READY, LifeEvent(What.RESTART, "new configuration"), _own(What.DRAINED))
    life, act = step(life, _own(What.EXITED), 1.0, POLICY)
    assert (life.state, act, life.epoch) == (S.STARTING, Effect.LAUNCH, 2)


def test_news_of_an_older_start_is_ignored() -> None:
    assert step(READY, _own(What.EXITED, 0, "late"), 1.0, POLICY) == (READY, None)


@pytest.mark.parametrize("failures", [1, 4, 5, 100, 10**6])
def test_backoff_is_bounded(failures: int) -> None:
    assert backoff(failures, POLICY) == min(8.0, 2.0 ** min(failures - 1, 60))


class AnyOrder(RuleBasedStateMachine):
    """A world with at most one process, in which everything may happen at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.life = Life()
        self.now = 0.0
        self.process: int | None = None  # epoch of the one that lives
        self.generated = False
        self.activity = Effect.NOTHING

    def send(self, event: LifeEvent) -> None:
        before = self.life
        self.life, act = step(before, event, self.now, POLICY)
        assert self.life.epoch == before.epoch + (act is Effect.LAUNCH)
        if act is not None:
            self.activity = act
        if act is Effect.LAUNCH:
            assert self.process is None, "a second process beside the first"
            self.process, self.generated = self.life.epoch, False

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(what=st.sampled_from((What.START, What.STOP, What.RESTART)))
    def command(self, what: What) -> None:
        self.send(LifeEvent(what, "asked"))

    @rule(what=st.sampled_from((What.ANSWERS, What.DRAINED, What.BROKEN, What.RETRY)), late=st.booleans())
    def news(self, what: What, late: bool) -> None:
        if late or self.process is not None or what is What.RETRY:
            self.send(LifeEvent(what, "news", self.life.epoch - late))

    @rule()
    def warm(self) -> None:
        if self.process is not None:
            self.generated = True
            self.send(LifeEvent(What.WARM, "", self.process))

    @precondition(lambda self: self.process is not None)
    @rule()
    def process_ends(self) -> None:
        epoch, self.process = self.process, None
        self.send(LifeEvent(What.EXITED, "exited with status 1", epoch))

    @invariant()
    def states_tell_the_truth(self) -> None:
        life = self.life
        assert (self.process is not None) == (life.state not in (S.STOPPED, S.FAILED))
        if life.state is S.READY:
            assert self.generated and self.activity is Effect.WATCH
        if life.state is S.FAILED:
            assert life.reason and life.wanted
            assert (life.retry_at is None) == (life.failures >= POLICY.limit)
        if life.state is S.STOPPED:
            assert not life.wanted

    @invariant()
    def something_leads_on(self) -> None:
        leads_on = {
            S.STARTING: {Effect.LAUNCH},
            S.WARMING: {Effect.WARM_UP},
            S.READY: {Effect.WATCH},
            S.DRAINING: {Effect.DRAIN},
            S.STOPPING: {Effect.TERMINATE, Effect.KILL},
            S.STOPPED: {Effect.NOTHING},
            S.FAILED: {Effect.AWAIT_RETRY} if self.life.retry_at is not None else {Effect.NOTHING},
        }
        assert self.activity in leads_on[self.life.state]


AnyOrder.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
