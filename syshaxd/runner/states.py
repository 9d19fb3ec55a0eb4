"""Where a request goes on after a leg, as a pure transition function: how the leg ended comes in, what to do goes out.

(new) -> leg -> END                     the answer is complete
           |-> DECODE -> leg            a prefill is done, another unit goes on
           |-> MOVE -> leg              the daemon ended it, to hand it over
           |-> ANEW -> leg              it failed before the client saw anything
           |-> RESCUE -> leg            it failed after that: another unit goes on from the tokens sent
           `-> FAIL                     the client is told
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from syshaxd.errors import UnitError, UnitErrorKind

from .request import RequestError
from .steps import Step

MAX_FAILURES = 8  # of one request, over all units


class Act(enum.Enum):
    """What the stream has to do next."""

    END = "end"
    DECODE = "decode"
    MOVE = "move"
    ANEW = "anew"
    RESCUE = "rescue"
    FAIL = "fail"


@dataclass(frozen=True)
class State:
    """Of one request, replaced whole. `legs`: calls to units begun; `delivered`: the client has seen something of the
    answer; `doom`: whatever happens, the request ends with this error at its next change of leg."""

    legs: int = 0
    failures: int = 0
    delivered: bool = False
    doom: RequestError | None = None


@dataclass(frozen=True)
class Ending:
    """How a leg ended. `finish`: what its unit gave as the reason, None: it gave none; `stop`: the client's stop string
    that ended it here; `left`: output tokens that may still come; `stuck`: why no other unit could go on from here;
    `moving`: the daemon has ordered its end."""

    finish: str | None = None
    stop_reason: Any = None
    stop: str | None = None
    error: UnitError | None = None
    left: float = float("inf")
    stuck: str | None = None
    moving: bool = False


class Transition(NamedTuple):
    """`fault`: what its unit is blamed for; `refusal`: what the client is told (FAIL); `finish`, `stop_reason`: how the
    answer ends (END); `left`: the unit has published the leg's ticket."""

    state: State
    act: Act
    fault: UnitError | None = None
    refusal: RequestError | None = None
    finish: str = ""
    stop_reason: Any = None
    left: bool = False


def next_step(state: State, step: Step, ending: Ending) -> Transition:
    """What follows a leg that was to do `step`."""
    if ending.error is not None:
        if _complete(step, ending):  # it broke after its finish
            return _end(state, ending)
        return _after_failure(state, step, ending, ending.error)
    if ending.stop is not None or not (step.owned or step.prefill_only):
        return _end(state, ending)
    if ending.finish is None:
        error = UnitError(step.unit.name, UnitErrorKind.GARBAGE, "ended its stream without a finish_reason")
        return _after_failure(state, step, ending, error)
    if step.prefill_only and (step.k == 0 or ending.finish == "length") and ending.left > 0:
        return Transition(state, Act.DECODE, left=True)
    if ending.finish != "abort":
        return _end(state, ending)
    if ending.moving:
        return Transition(state, Act.MOVE, left=True)
    error = UnitError(step.unit.name, UnitErrorKind.ABORTED, "ended the request unasked")
    return _after_failure(state, step, ending, error)._replace(left=True)


def _complete(step: Step, ending: Ending) -> bool:
    return step.owned and not step.prefill_only and ending.finish not in (None, "abort")


def _end(state: State, ending: Ending) -> Transition:
    if ending.stop is not None:
        return Transition(state, Act.END, finish="stop", stop_reason=ending.stop)
    return Transition(state, Act.END, finish=ending.finish or "length", stop_reason=ending.stop_reason)


def _after_failure(state: State, step: Step, ending: Ending, error: UnitError) -> Transition:
    if state.doom is not None:
        return Transition(state, Act.FAIL, error, state.doom)
    if error.client_fault and not state.delivered:
        refusal = RequestError(error.status, "unit_refused", str(error), body=error.body)
        return Transition(state, Act.FAIL, error, refusal)
    state = replace(state, failures=state.failures + 1)
    if state.failures > MAX_FAILURES:
        text = f"given up after {state.failures} failures: {error}"
        return Transition(state, Act.FAIL, error, RequestError(502, "unit_failed", text))
    if not state.delivered:
        return Transition(state, Act.ANEW, error)
    if ending.stuck is not None:
        text = f"{error}; it can't go on elsewhere: {ending.stuck}"
        return Transition(state, Act.FAIL, error, RequestError(502, "stream_lost", text))
    if ending.left <= 0:
        return Transition(state, Act.END, error, finish="length")
    return Transition(state, Act.RESCUE, error)
