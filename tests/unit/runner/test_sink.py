"""What a unit says of KV that it was to load."""

from __future__ import annotations

from typing import Any

import pytest

from syshaxd.runner.sink import kv_result
from syshaxd.unitclient import Usage


@pytest.mark.parametrize(
    ("prompt", "details", "result"),
    [
        (201, {"cached_tokens": 200}, ("loaded", 200)),
        (201, {"cached_tokens": 0, "handoff_lost": "timeout"}, ("timeout", 0)),
        (201, {"cached_tokens": 96, "handoff_lost": "stale"}, ("stale", 96)),  # its own prefix cache had some
        (201, {"cached_tokens": 0, "handoff_lost": "a unit's whim"}, ("error", 0)),  # labels are a closed set
        (201, {"cached_tokens": 0}, ("recomputed", 0)),
        (201, None, ("recomputed", 0)),  # vLLM leaves a 0 out
        (201, {"cached_tokens": 99}, ("recomputed", 99)),
        (1, {"cached_tokens": 0}, ("loaded", 0)),  # the last token is always computed
        (201, {"cached_tokens": "many"}, ("recomputed", 0)),
        (201, {"cached_tokens": 10**9}, ("loaded", 201)),
        (201, {"cached_tokens": -5}, ("recomputed", 0)),
    ],
)
def test_what_became_of_the_kv(prompt: int, details: Any, result: tuple[str, int]) -> None:
    assert kv_result(Usage(prompt, 1, details)) == result
