"""Every ending of a leg in every state has a next step; failures are bounded; no token is doubled or lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syshaxd.errors import RequestError, UnitError, UnitErrorKind
from syshaxd.model.plan import Reason
from syshaxd.model.request import Endpoint, RequestInfo
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.runner import ClientRequest
from syshaxd.runner.bodies import body_of
from syshaxd.runner.produced import Produced
from syshaxd.runner.states import MAX_FAILURES, Act, Ending, State, next_step
from syshaxd.runner.steps import Step, Ticket
from syshaxd.runner.suspicions import KEPT, Suspicions
from syshaxd.unitclient import Chunk
from testbed.fake_unit.language import Detokenizer, encode

UNIT = UnitView("gpu", Role.ACCELERATOR, "sysinfer", BackendKind.PROCESS, UnitState.READY, "http://g", 1, "m")
WHY = Reason("test", "test")
PROMPT = (1, 2, 3)

statuses = st.sampled_from([0, 200, 400, 404, 422, 429, 500, 503])
errors = st.builds(
    lambda kind, status: UnitError("gpu", kind, "broke", status=status), st.sampled_from(list(UnitErrorKind)), statuses
)
states = st.builds(
    State,
    legs=st.integers(1, 20),
    failures=st.integers(0, MAX_FAILURES),
    refused=st.booleans(),
    struck=st.none() | st.tuples(st.sampled_from(["reset", "garbage", "status"]), st.integers(0, 20)),
    delivered=st.booleans(),
    doom=st.none() | st.just(RequestError(504, "request_timeout", "late")),
)
steps = st.builds(
    lambda owned, then, k, save: Step(UNIT, owned, WHY, then, k if owned else 0, save=save),
    st.booleans(), st.sampled_from(["", "cpu"]), st.sampled_from([0, 1]), st.none() | st.just(Ticket("t", "p")),
)  # fmt: skip
endings = st.builds(
    Ending,
    finish=st.none() | st.sampled_from(["stop", "length", "abort", "tool_calls", "anything"]),
    stop=st.none() | st.just("END"),
    error=st.none() | errors,
    produced=st.integers(0, 20),
    left=st.sampled_from([float("inf"), 5.0, 0.0, -1.0]),
    full=st.booleans(),
    stuck=st.none() | st.just("seed"),
    moving=st.booleans(),
)


@given(states, steps, endings)
def test_every_ending_has_a_next_step(state: State, step: Step, ending: Ending) -> None:
    done = next_step(state, step, ending)
    assert (done.act is Act.FAIL) == (done.refusal is not None)
    assert bool(done.finish) >= (done.act is Act.END)
    assert done.state.failures - state.failures in (0, 1) and done.state.failures <= MAX_FAILURES + 1
    if done.act in (Act.ANEW, Act.RESCUE):
        assert done.fault is not None and done.state.failures == state.failures + 1, "going on costs a failure"
        assert done.act is (Act.RESCUE if state.delivered else Act.ANEW), "what was sent is not said again"
        assert state.doom is None
    if done.act is Act.MOVE:
        assert ending.moving and ending.finish == "abort"
    if done.act is Act.OUTGROW:
        assert ending.full and ending.left > 0 and done.fault is None and done.state.failures == state.failures + 1
    if done.act is Act.DECODE:
        assert step.prefill_only and ending.left > 0
    if done.act is Act.END and ending.error is not None and done.fault is not None:
        assert ending.left <= 0 and state.delivered
    if ending.error is None and ending.stop is not None:
        assert (done.act, done.finish, done.stop_reason) == (Act.END, "stop", "END")


@given(st.lists(errors, min_size=MAX_FAILURES + 1, max_size=MAX_FAILURES + 1), st.booleans())
def test_failures_are_bounded(faults: list[UnitError], delivered: bool) -> None:
    state, ended = State(delivered=delivered), False
    for fault in faults:
        done = next_step(state, Step(UNIT, True, WHY), Ending(error=fault))
        state, ended = done.state, ended or done.act is Act.FAIL
    assert ended


def test_a_fault_of_the_client_is_told_once_and_a_unit_that_broke_after_its_end_is_not_blamed() -> None:
    refused = UnitError("gpu", UnitErrorKind.STATUS, "no", status=400, body=b'{"error": {}}')
    done = next_step(State(), Step(UNIT, True, WHY), Ending(error=refused))
    assert done.act is Act.FAIL and done.refusal is not None
    assert (done.refusal.status, done.refusal.body) == (400, b'{"error": {}}')
    reset = UnitError("gpu", UnitErrorKind.RESET, "gone")
    done = next_step(State(delivered=True), Step(UNIT, True, WHY), Ending(finish="stop", error=reset))
    assert (done.act, done.finish, done.fault) == (Act.END, "stop", None)


def test_a_refusal_after_the_first_byte_is_tried_once_where_the_stream_was_and_never_again() -> None:
    refused = UnitError("cpu", UnitErrorKind.STATUS, "too long", status=400, body=b'{"error": {}}')
    done = next_step(State(delivered=True), Step(UNIT, True, WHY), Ending(error=refused, produced=9))
    assert done.act is Act.RESCUE, "back to where it was"
    done = next_step(done.state, Step(UNIT, True, WHY), Ending(error=refused, produced=40))
    assert done.act is Act.FAIL and done.refusal is not None and done.refusal.status == 400


def test_what_breaks_two_units_in_the_same_way_is_not_carried_to_a_third() -> None:
    for delivered in (False, True):
        state = State(delivered=delivered)
        for produced, act in ((3, Act.RESCUE if delivered else Act.ANEW), (4, Act.FAIL)):
            died = UnitError("gpu", UnitErrorKind.RESET, "closed the stream")
            done = next_step(state, Step(UNIT, True, WHY), Ending(error=died, produced=produced))
            assert done.act is act
            state = done.state
            if act is Act.FAIL:
                assert done.refusal is not None and (done.refusal.status, done.refusal.code) == (400, "failed_alike")


@pytest.mark.parametrize(
    "first, second",
    [
        ((UnitErrorKind.RESET, 0, 3), (UnitErrorKind.RESET, 0, 40)),  # a stream that goes on well between two deaths
        ((UnitErrorKind.RESET, 0, 3), (UnitErrorKind.STATUS, 500, 3)),
        ((UnitErrorKind.CONNECT, 0, 3), (UnitErrorKind.CONNECT, 0, 3)),  # it was not there: not this request's doing
        ((UnitErrorKind.STATUS, 503, 3), (UnitErrorKind.STATUS, 503, 3)),
        ((UnitErrorKind.ABORTED, 0, 3), (UnitErrorKind.ABORTED, 0, 3)),
    ],
)
def test_what_two_failures_do_not_share_is_not_the_requests_fault(first: Any, second: Any) -> None:
    state = State(delivered=True)
    for kind, status, produced in (first, second):
        error = UnitError("gpu", kind, "failed", status=status)
        done = next_step(state, Step(UNIT, True, WHY), Ending(error=error, produced=produced))
        assert done.act is Act.RESCUE
        state = done.state


def test_length_is_said_only_where_the_client_or_the_longest_context_ends_it() -> None:
    step = Step(UNIT, True, WHY)
    assert next_step(State(), step, Ending("length", left=0, full=True)).act is Act.END
    assert next_step(State(), step, Ending("length", left=50, full=True)).act is Act.OUTGROW
    assert next_step(State(), step, Ending("length", left=50)).act is Act.END, "a limit of the unit's own"
    broken = UnitError("cpu", UnitErrorKind.RESET, "gone")
    assert next_step(State(delivered=True), step, Ending(error=broken, left=50, full=True)).act is Act.RESCUE


def test_no_input_casts_suspicion_on_a_unit_twice() -> None:
    suspicions = Suspicions()
    assert suspicions.first(b"a", "gpu") and suspicions.first(b"a", "cpu") and suspicions.first(b"b", "gpu")
    assert not suspicions.first(b"a", "gpu")
    for number in range(KEPT):
        suspicions.first(b"%d" % number, "gpu")
    assert suspicions.first(b"a", "gpu"), "what is remembered has a bound"


cuts = st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["move", "broken"])), max_size=MAX_FAILURES)


@given(st.text(min_size=1, max_size=20), cuts)
@example("你好", [(1, "move"), (2, "broken"), (0, "move")])
def test_no_token_is_doubled_or_lost(text: str, schedule: list[tuple[int, str]]) -> None:
    """A model that says `text`, asked leg by leg for what the body of each leg says is missing."""
    request = ClientRequest(
        RequestInfo("r", Endpoint.COMPLETIONS, "m", True, 1, 99), {"prompt": "x", "max_tokens": 99}, 0.0, 0
    )
    tokens, produced = encode(text), Produced(request)
    state, step, said = State(), Step(UNIT, True, WHY), ""
    for count, how in [*schedule, (len(tokens), "end")]:
        produced.record.begin_leg()
        body = body_of(step, request, produced.record)
        context = body.get("kv_transfer_params", {}).get("prompt_token_ids", list(PROMPT))
        assert body["max_tokens"] == 99 - (len(context) - len(PROMPT))
        rest = tokens[len(context) - len(PROMPT) :]
        ends = how == "end" or count >= len(rest) > 0
        detokenizer = Detokenizer(context)
        for index, token in enumerate(rest if ends else rest[:count]):
            finish = "stop" if ends and index == len(rest) - 1 else None
            prompt = tuple(context) if index == 0 else None
            chunk = Chunk(b"", detokenizer.feed(token), (token,), prompt, finish_reason=finish, has_choice=True)
            delta = produced.take(chunk, finish is not None)
            said += delta.content if delta is not None else ""
            state = replace(state, delivered=state.delivered or delta is not None)
        broken = UnitError("gpu", UnitErrorKind.CONNECT, "gone") if how == "broken" and not ends else None
        finish = "stop" if ends else None if broken else "abort"
        left = produced.tokens_left(None)
        done = next_step(state, step, Ending(finish, error=broken, left=left, moving=how == "move"))
        state = done.state
        if ends:
            assert done.act is Act.END and said == text
            break
        assert done.act in (Act.MOVE, Act.RESCUE, Act.ANEW)
        produced = Produced(request) if done.act is Act.ANEW else produced
    assert produced.record.output_ids == tokens
