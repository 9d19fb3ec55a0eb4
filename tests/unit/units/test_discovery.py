"""Abilities from a server's description of itself."""

from __future__ import annotations

from typing import Any

import pytest

from syshaxd.model.abilities import Abilities, Feature
from syshaxd.units import SYSINFER, VLLM
from syshaxd.units.discovery import described

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"


def description(chat: tuple[str, ...], completion: tuple[str, ...] = ("return_token_ids",)) -> dict[str, Any]:
    """As FastAPI writes it."""
    return {
        "paths": {CHAT: {"post": {}}, COMPLETIONS: {"post": {}}, EMBEDDINGS: {"post": {}}, "/health": {"get": {}}},
        "components": {
            "schemas": {
                "ChatCompletionRequest": {"properties": {name: {} for name in chat}},
                "CompletionRequest": {"properties": {name: {} for name in completion}},
            }
        },
    }


def test_endpoints_are_those_described() -> None:
    found = described(VLLM.abilities, description(("response_format", "tool_choice", "prompt_logprobs")))
    assert found.endpoints == {CHAT, COMPLETIONS, EMBEDDINGS}
    assert found.features == VLLM.abilities.features and found.token_ids
    assert found.serves(EMBEDDINGS) and not found.serves("/v1/rerank")


def test_a_field_that_is_not_there_is_a_feature_that_is_not_served() -> None:
    found = described(VLLM.abilities, description(("tool_choice",), ("prompt",)))
    assert Feature.FORCED_TOOLS in found.features
    assert not found.features & {Feature.STRUCTURED_OUTPUT, Feature.PROMPT_LOGPROBS}
    assert not found.token_ids, "a server from before return_token_ids serves whole requests only"
    assert not found.serves(CHAT, frozenset({Feature.STRUCTURED_OUTPUT}))


def test_a_description_never_adds_what_the_kind_denies() -> None:
    found = described(SYSINFER.abilities, description(("response_format", "tool_choice", "prompt_logprobs")))
    assert found.features == SYSINFER.abilities.features


@pytest.mark.parametrize("odd", [None, [], {}, {"paths": []}, {"paths": {CHAT: 1}}, {"paths": {CHAT: {"get": {}}}}])
def test_what_is_no_description_changes_nothing(odd: Any) -> None:
    assert described(Abilities(), odd) == Abilities()
