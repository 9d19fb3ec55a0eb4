"""Life of a unit as a pure transition function. What happens outside comes in as events, what to do goes out as an act.

STOPPED -> STARTING -> WARMING -> READY -> DRAINING -> STOPPING -> STOPPED
              any of the first three that breaks -> FAILED -> (backoff) -> STARTING
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from syshaxd.config.types import RestartConfig
from syshaxd.model.unit import UnitState

PASSING = 5.0  # seconds between two starts while the unit is not at fault
STABLE = 60.0  # seconds in READY after which earlier failures are forgotten


class What(enum.Enum):
    """Events. The first three are commands, the others come from the unit's own activities."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    ANSWERS = "answers"  # /health says yes
    WARM = "warm"  # it generated
    BROKEN = "broken"  # start deadline passed, or stalled, or unhealthy
    DRAINED = "drained"
    EXITED = "exited"
    RETRY = "retry"  # the backoff is over


class Effect(enum.Enum):
    """What the unit's task has to do next."""

    LAUNCH = "launch"
    WARM_UP = "warm up"
    WATCH = "watch"
    DRAIN = "drain"
    TERMINATE = "terminate"
    KILL = "kill"
    AWAIT_RETRY = "await retry"
    NOTHING = "nothing"  # no process: cancel whatever still runs


@dataclass(frozen=True)
class LifeEvent:
    """`epoch`: the start it belongs to; None for commands. `own`: it ended by itself, before we ended it.

    `passing`: no fault of the unit, so that there is no limit to its starts.
    """

    what: What
    reason: str = ""
    epoch: int | None = None
    own: bool = False
    passing: bool = False


@dataclass(frozen=True)
class Life:
    """Times are monotonic seconds."""

    state: UnitState = UnitState.STOPPED
    epoch: int = 0
    wanted: bool = False
    failures: int = 0  # in a row
    reason: str = ""
    since: float = 0.0
    retry_at: float | None = None
    broken: bool = False  # in STOPPING: because of a fault


_LIVE = (UnitState.STARTING, UnitState.WARMING, UnitState.READY)
_LEAVING = (UnitState.DRAINING, UnitState.STOPPING)


def step(life: Life, event: LifeEvent, now: float, policy: RestartConfig) -> tuple[Life, Effect | None]:
    """The next life, and the act that replaces the one in progress (None: it goes on)."""
    if event.epoch is not None and event.epoch != life.epoch:
        return life, None
    if event.what is What.START:
        return _start(life, now)
    if event.what is What.STOP:
        return _leave(replace(life, wanted=False), event.reason, now)
    if event.what is What.RESTART:
        return _leave(replace(life, wanted=True, failures=0), event.reason, now)
    if event.what is What.EXITED:
        return _exited(life, event, now, policy)
    if event.what is What.BROKEN:
        return _broken(life, event.reason, now)
    return _onward(life, event.what, now)


def backoff(failures: int, policy: RestartConfig) -> float:
    """Seconds before the next start after that many failures in a row."""
    return min(policy.backoff_max, policy.backoff * 2.0 ** min(failures - 1, 60))


def _onward(life: Life, what: What, now: float) -> tuple[Life, Effect | None]:
    if what is What.ANSWERS and life.state is UnitState.STARTING:
        return _enter(life, UnitState.WARMING, now), Effect.WARM_UP
    if what is What.WARM and life.state is UnitState.WARMING:
        return replace(_enter(life, UnitState.READY, now), reason=""), Effect.WATCH
    if what is What.DRAINED and life.state is UnitState.DRAINING:
        return _enter(life, UnitState.STOPPING, now), Effect.TERMINATE
    if what is What.RETRY and life.state is UnitState.FAILED and life.retry_at is not None:
        return _launch(life, now)
    return life, None


def _start(life: Life, now: float) -> tuple[Life, Effect | None]:
    life = replace(life, wanted=True)
    if life.state in (UnitState.STOPPED, UnitState.FAILED):
        return _launch(replace(life, failures=0), now)
    return life, None


def _leave(life: Life, reason: str, now: float) -> tuple[Life, Effect | None]:
    """Stop it, or, where it is wanted, start it anew after that."""
    life = replace(life, reason=reason or life.reason)
    if life.state is UnitState.READY:
        return _enter(life, UnitState.DRAINING, now), Effect.DRAIN
    if life.state in _LIVE:
        return _enter(life, UnitState.STOPPING, now), Effect.TERMINATE
    if life.state in _LEAVING:
        return replace(life, broken=False), None
    if life.wanted:
        return _launch(life, now)
    return replace(_enter(life, UnitState.STOPPED, now), retry_at=None), Effect.NOTHING


def _broken(life: Life, reason: str, now: float) -> tuple[Life, Effect | None]:
    if life.state in _LIVE:
        ready_for = now - life.since if life.state is UnitState.READY else 0.0
        failures = 0 if ready_for >= STABLE else life.failures
        life = replace(life, failures=failures, reason=reason, broken=True)
        return _enter(life, UnitState.STOPPING, now), Effect.KILL
    if life.state is UnitState.DRAINING:
        return _enter(replace(life, reason=reason), UnitState.STOPPING, now), Effect.KILL
    return life, None


def _exited(life: Life, event: LifeEvent, now: float, policy: RestartConfig) -> tuple[Life, Effect | None]:
    if life.state in _LIVE and event.passing:
        failed = replace(_enter(life, UnitState.FAILED, now), reason=event.reason)
        return replace(failed, retry_at=now + min(PASSING, policy.backoff_max)), Effect.AWAIT_RETRY
    if life.state in _LIVE:
        ready_for = now - life.since if life.state is UnitState.READY else 0.0
        return _failed(replace(life, failures=0 if ready_for >= STABLE else life.failures), event.reason, now, policy)
    if life.state not in _LEAVING:
        return life, None
    if life.broken and life.wanted:
        return _failed(life, event.reason if event.own else life.reason, now, policy)
    if life.wanted:
        return _launch(life, now)
    return replace(_enter(life, UnitState.STOPPED, now), broken=False), Effect.NOTHING


def _failed(life: Life, reason: str, now: float, policy: RestartConfig) -> tuple[Life, Effect | None]:
    failures = life.failures + 1
    retry_at = now + backoff(failures, policy) if failures < policy.limit else None
    life = replace(
        _enter(life, UnitState.FAILED, now), failures=failures, reason=reason, retry_at=retry_at, broken=False
    )
    return life, Effect.NOTHING if retry_at is None else Effect.AWAIT_RETRY


def _launch(life: Life, now: float) -> tuple[Life, Effect | None]:
    life = replace(life, epoch=life.epoch + 1, retry_at=None, broken=False)
    return _enter(life, UnitState.STARTING, now), Effect.LAUNCH


def _enter(life: Life, state: UnitState, now: float) -> Life:
    return replace(life, state=state, since=now)
