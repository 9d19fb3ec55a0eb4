"""Which requests may be handed over, and the bodies that units get."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from syshaxd.model.abilities import Abilities, Feature
from syshaxd.model.plan import Reason
from syshaxd.model.request import Endpoint, RequestInfo
from syshaxd.model.unit import BackendKind, Role, UnitState, UnitView
from syshaxd.runner import ClientRequest, features_of, handover_rules
from syshaxd.runner.bodies import body_of, max_tokens_of, response_ids
from syshaxd.runner.produced import Record
from syshaxd.runner.steps import Step, Ticket
from syshaxd.unitclient import Chunk

UNIT = UnitView("gpu", Role.ACCELERATOR, "vllm", BackendKind.EXTERNAL, UnitState.READY, "", model="unit-name")
WHY = Reason("r", "r")


def request(endpoint: Endpoint = Endpoint.CHAT, first: bool = False, **body: Any) -> ClientRequest:
    given: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
    if endpoint is Endpoint.COMPLETIONS:
        given = {"prompt": "x"}
    info = RequestInfo("R", endpoint, "m", True, 1, None, first_token_stays="seed" if first else None)
    return ClientRequest(info, {**given, "model": "m", **body}, 0.0, 0)


def produced(*tokens: int) -> Record:
    record = Record()
    record.take(Chunk(b"", prompt_token_ids=(1, 2), has_choice=True))
    for token in tokens:
        record.take(Chunk(b"", "t", (token,)))
    return record


@pytest.mark.parametrize(
    ("body", "stays", "first"),
    [
        ({}, None, None),
        ({"n": 1, "temperature": 1, "stop": ["x"], "logprobs": True}, None, None),
        ({"n": 2}, "n", None),
        ({"best_of": 2}, "best_of", None),
        ({"use_beam_search": True}, "beam_search", None),
        ({"echo": True}, "echo", None),
        ({"prompt_logprobs": 0}, "prompt_logprobs", None),
        ({"prompt": ["a", "b"]}, "several_prompts", None),
        ({"prompt": [1, 2]}, None, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "multimodal", None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}, None, None),
        ({"response_format": {"type": "json_object"}}, None, "response_format"),
        ({"response_format": {"type": "text"}}, None, None),
        ({"guided_regex": "a"}, None, "guided_decoding"),
        ({"tools": [{}]}, None, "tools"),
        ({"tools": [{}], "tool_choice": "none"}, None, None),
        ({"presence_penalty": 0.1}, None, "penalties"),
        ({"presence_penalty": 0, "repetition_penalty": 1.0}, None, None),
        ({"seed": 1, "temperature": 0.5}, None, "seed"),
        ({"seed": 1}, None, "seed"),
        ({"seed": 1, "temperature": 0}, None, None),
        ({"n": 2, "seed": 1}, "n", "seed"),
    ],
)
def test_rules(body: dict[str, Any], stays: str, first: str) -> None:
    assert tuple(handover_rules(body)) == (stays, first)


def test_an_owned_body_asks_for_tokens_and_keeps_stop_strings_here() -> None:
    ticket = Ticket("t", "gpu.pool")
    step = Step(UNIT, True, WHY, save=ticket)
    body = body_of(step, request(stop=["a"], kv_transfer_params={"evil": 1}, temperature=0.5), Record())
    assert body["model"] == "unit-name"
    assert "stop" not in body and body["stream"] and body["return_token_ids"]
    assert body["kv_transfer_params"] == {"syshax": {"save": "t", "save_on": "abort"}}
    assert body["temperature"] == 0.5


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_a_continuation_carries_the_context_and_what_is_left(endpoint: Endpoint) -> None:
    step = Step(UNIT, True, WHY, handoff="offload", load=Ticket("t", "gpu.pool"))
    body = body_of(step, request(endpoint, max_tokens=10, min_tokens=4), produced(7, 8, 9))
    assert (body["max_tokens"], body["min_tokens"]) == (7, 1)
    params = body["kv_transfer_params"]
    assert params["prompt_token_ids"] == [1, 2, 7, 8, 9]
    assert params["syshax"] == {"load": {"ticket": "t", "pool": "gpu.pool", "generation": 0}}
    if endpoint is Endpoint.COMPLETIONS:
        assert body["prompt"] == [1, 2, 7, 8, 9]


def test_completions_without_a_limit_keep_openais_default_over_a_cut() -> None:
    step = Step(UNIT, True, WHY, handoff="failover")
    assert body_of(step, request(Endpoint.COMPLETIONS), produced(7))["max_tokens"] == 15
    assert "max_tokens" not in body_of(step, request(Endpoint.CHAT), produced(7))
    assert max_tokens_of({}, Endpoint.CHAT) is None


def test_a_default_is_clipped_to_the_context_and_a_clients_limit_is_not() -> None:
    short = replace(UNIT, abilities=Abilities(max_context=5))
    step = Step(short, True, WHY, handoff="split")
    assert body_of(step, request(Endpoint.COMPLETIONS), produced(7))["max_tokens"] == 2
    assert body_of(step, request(Endpoint.COMPLETIONS, max_tokens=16), produced(7))["max_tokens"] == 15


def test_both_names_of_the_limit() -> None:
    step = Step(UNIT, True, WHY, then="cpu", k=1, save=Ticket("t", "gpu.pool"))
    body = body_of(step, request(max_completion_tokens=50, max_tokens=60, min_tokens=3), Record())
    assert (body["max_completion_tokens"], body["max_tokens"]) == (1, 1)
    assert body["min_tokens"] == 1, "its first token must not be one that ends the answer"
    assert body["kv_transfer_params"]["syshax"] == {"save": "t", "save_on": "length"}


def test_a_relayed_body_is_the_clients() -> None:
    sent = request(first=True, stop=["a"], stream=True, seed=1)
    body = body_of(Step(UNIT, False, WHY), sent, Record())
    assert body == {**sent.body, "model": "unit-name"}


def test_names_of_a_request_at_its_unit() -> None:
    assert response_ids(Endpoint.CHAT, "R") == ("chatcmpl-R",)
    assert response_ids(Endpoint.COMPLETIONS, "R") == ("cmpl-R-0", "cmpl-R")


@pytest.mark.parametrize(
    "body, features",
    [
        ({"response_format": {"type": "json_schema"}}, {Feature.STRUCTURED_OUTPUT}),
        ({"response_format": {"type": "text"}}, set()),
        ({"guided_regex": "a"}, {Feature.STRUCTURED_OUTPUT}),
        ({"tools": [{}]}, set()),
        ({"tools": [{}], "tool_choice": "auto"}, set()),
        ({"tools": [{}], "tool_choice": "none"}, set()),
        ({"tools": [{}], "tool_choice": "required"}, {Feature.FORCED_TOOLS}),
        ({"tools": [{}], "tool_choice": {"type": "function"}}, {Feature.FORCED_TOOLS}),
        ({"prompt_logprobs": 0}, {Feature.PROMPT_LOGPROBS}),
        ({"prompt": ["one"]}, set()),
        ({"prompt": ["one", "two"]}, {Feature.SEVERAL_PROMPTS}),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, {Feature.IMAGES}),
    ],
)
def test_what_a_unit_must_be_able_to_do(body: Any, features: set[Feature]) -> None:
    assert features_of(body) == features
