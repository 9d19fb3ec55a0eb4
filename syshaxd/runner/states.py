"""Where a request goes on after a leg, as a pure transition function: how the leg ended comes in, what to do goes out.

(new) -> leg -> END                     the answer is complete
           |-> DECODE -> leg            a prefill is done, another unit goes on
           |-> MOVE -> leg              the daemon ended it, to hand it over
           |-> ANEW -> leg              it failed before the client saw anything
           |-> RESCUE -> leg            it failed after that: another unit goes on from the tokens sent
           |-> OUTGROW -> leg           its unit's context is full, and there is a longer one
           `-> FAIL                     the client is told
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from syshaxd.errors import UnitError, UnitErrorKind

from .client_request import RequestError
from .steps import Step

MAX_FAILURES = 8  # of one request, over all units
PROGRESS = 8  # tokens between two failures by which they are not of one cause
_STRIKES = (UnitErrorKind.RESET, UnitErrorKind.TIMEOUT, UnitErrorKind.STALL, UnitErrorKind.GARBAGE)


class Act(enum.Enum):
    """What the stream has to do next."""

    END = "end"
    DECODE = "decode"
    MOVE = "move"
    ANEW = "anew"
    RESCUE = "rescue"
    OUTGROW = "outgrow"
    FAIL = "fail"


@dataclass(frozen=True)
class State:
    """Of one request, replaced whole. `legs`: calls to units begun; `delivered`: the client has seen something of the
    answer; `refused`: a unit would not go on with it; `struck`: how a unit last failed under it, and after how many
    tokens; `doom`: whatever happens, the request ends with this error at its next change of leg."""

    legs: int = 0
    failures: int = 0
    refused: bool = False
    struck: tuple[str, int] | None = None
    delivered: bool = False
    doom: RequestError | None = None


@dataclass(frozen=True)
class Ending:
    """How a leg ended. `finish`: what its unit gave as the reason, None: it gave none; `stop`: the client's stop string
    that ended it here; `produced`: tokens of output so far; `left`: those that may still come, by the client's limit
    and the model's longest context; `full`: this unit's context ends here; `stuck`: why no other unit could go on;
    `moving`: the daemon has ordered its end."""

    finish: str | None = None
    stop_reason: Any = None
    stop: str | None = None
    error: UnitError | None = None
    produced: int = 0
    left: float = float("inf")
    full: bool = False
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
    if ending.finish == "length" and ending.full and ending.left > 0 and ending.stuck is None:
        if state.failures < MAX_FAILURES:
            return Transition(replace(state, failures=state.failures + 1), Act.OUTGROW)
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
    if error.client_fault and (state.refused or not state.delivered):
        refusal = RequestError(error.status, "unit_refused", str(error), body=error.body)
        return Transition(state, Act.FAIL, error, refusal)
    if _alike(state, ending, error):
        text = f"{error}; a unit failed in the same way under this request before, so it is not tried again"
        return Transition(state, Act.FAIL, error, RequestError(400, "failed_alike", text))
    strike = _strike(error)
    struck = (strike, ending.produced) if strike else state.struck
    refused = state.refused or error.client_fault
    state = replace(state, failures=state.failures + 1, refused=refused, struck=struck)
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


def _strike(error: UnitError) -> str:
    """What may be the request's own doing: the unit died, hung or broke down; "" where it was full, or not there."""
    if error.kind in _STRIKES:
        return error.kind.value
    answered = error.kind in (UnitErrorKind.STATUS, UnitErrorKind.REPORTED)
    return "status" if answered and error.status >= 500 and error.status != 503 else ""


def _alike(state: State, ending: Ending, error: UnitError) -> bool:
    """The poison rule: what breaks two units in the same way, at the same place, is not carried to a third."""
    if state.struck is None:
        return False
    kind, produced = state.struck
    return kind == _strike(error) and ending.produced - produced < PROGRESS
