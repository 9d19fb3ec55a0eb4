"""The fields of requests: what they may hold, the same for daemon and units."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syshax_contract.error_form import BadBody, error_form, normalised
from syshax_contract.request_fields import FIELDS, check_fields
from syshaxd.conductor.answers import BadRequest
from syshaxd.conductor.parsing import parse_request
from syshaxd.model.request import Endpoint
from sysinfer.server.requests import Limits, parse_chat, parse_completion

GOOD: dict[str, Any] = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
BAD = [
    ("stop", ["x"] * 17), ("stop", "x" * 4097), ("stop", [["x"]]), ("stop", 5), ("bad_words", ["x"] * 257),
    ("logit_bias", {"1" * 5000: 1}), ("logit_bias", {"\u0661": 1}), ("logit_bias", {"1": 101}),
    ("logit_bias", {"1": "a"}),
    ("logit_bias", {str(n): 1 for n in range(1025)}), ("logit_bias", []), ("n", 129), ("n", 0), ("n", 2.0),
    ("top_logprobs", 21), ("prompt_logprobs", 21), ("stop_token_ids", list(range(1025))), ("stop_token_ids", [-1]),
    ("service_tier", []), ("service_tier", "gold"), ("temperature", 3), ("temperature", "hot"), ("temperature", True),
    ("top_p", 0), ("repetition_penalty", 0), ("max_tokens", True), ("max_tokens", 0), ("max_tokens", 1 << 40),
    ("seed", 1 << 64), ("priority", 10**399), ("stream", "yes"), ("stream_options", {"include_usage": True}),
    ("tools", {}), ("response_format", "json"), ("min_tokens", -1), ("top_logprobs", 1),
]  # fmt: skip


@pytest.mark.parametrize("field, value", BAD)
@pytest.mark.parametrize("chat", [True, False])
def test_both_sides_refuse_it_by_the_same_name(field: str, value: Any, chat: bool) -> None:
    body = {**GOOD, field: value}
    if field == "top_logprobs" and value == 1 and not chat:
        return  # of chat
    with pytest.raises(BadRequest) as daemon:
        parse_request(dict(body), Endpoint.CHAT if chat else Endpoint.COMPLETIONS, {}, "R", "m")
    with pytest.raises(BadBody) as unit:
        (parse_chat if chat else parse_completion)(dict(body), Limits(1000, 512))
    assert (daemon.value.param, daemon.value.status, unit.value.param, unit.value.status) == (field, 400, field, 400)
    assert str(daemon.value) == str(unit.value) and len(str(daemon.value)) < 300


def test_pairs_that_contradict_each_other() -> None:
    for pair in ({"min_tokens": 9, "max_tokens": 8}, {"add_generation_prompt": True, "continue_final_message": True}):
        with pytest.raises(BadBody):
            check_fields({**GOOD, **pair}, True)
    with pytest.raises(BadBody, match="include_usage"):
        check_fields({**GOOD, "stream": True, "stream_options": {"include_usage": "yes"}}, True)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**400), 10**400) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
NAMES = [*FIELDS, "messages", "prompt", "logprobs", "tool_choice", "user", "functions", "suffix", "prompt_embeds"]
BODIES = st.fixed_dictionaries({}, optional={name: ODD for name in NAMES})
HEADERS = st.dictionaries(
    st.sampled_from(["x-syshax-route", "x-slo-ttft-ms", "x-slo-tpot-ms", "x-request-id"]), st.text(max_size=5)
)


@given(BODIES, HEADERS, st.sampled_from(Endpoint), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_body_is_an_error_of_ours(body: dict[str, Any], headers: Any, endpoint: Endpoint, sound: bool) -> None:
    """Whatever it holds, it is checked and passed on, or refused with 4xx: by the daemon and by sysinfer."""
    body = {**body, **GOOD} if sound else body
    chat = endpoint is Endpoint.CHAT
    try:
        parse_request(dict(body), endpoint, headers, "R", "m")
    except BadRequest as err:
        assert 400 <= err.status < 500
    try:
        (parse_chat if chat else parse_completion)(dict(body), Limits(1000, 512))
    except BadBody as err:
        assert 400 <= err.status < 500


@given(st.dictionaries(st.sampled_from(["message", "type", "param", "code", "x"]), ODD), st.integers(400, 599))
def test_every_units_error_gets_the_one_form(error: dict[str, Any], status: int) -> None:
    made = normalised(error, status)["error"]
    assert list(made) == ["message", "type", "param", "code"] and isinstance(made["code"], str) and json.dumps(made)


def test_vllms_errors_in_openais_words() -> None:
    own = {"message": "maximum context length is 8", "type": "BadRequestError", "param": "messages", "code": 400}
    told = error_form("maximum context length is 8", 400, "messages", "invalid_value")
    assert normalised(own, 400) == told
    assert told["error"]["type"] == "invalid_request_error"
