"""A retry is known by its SDK's header and its body."""

from __future__ import annotations

import pytest

from syshaxd.conductor.retries import FOR, KEPT, Refusals, is_retry

RETRY = {"x-stainless-retry-count": "1"}


def test_a_retry_has_waited_since_its_first_attempt() -> None:
    refusals = Refusals()
    assert refusals.waited(b"a", RETRY, 10.0) == 0.0
    refusals.note(b"a", 10.0)
    assert refusals.waited(b"a", RETRY, 11.5) == 1.5
    refusals.note(b"a", 11.5 - 1.5)
    assert refusals.waited(b"a", RETRY, 14.0) == 4.0
    assert refusals.waited(b"a", RETRY, 14.0) == 0.0, "it was served since, or is another client's"


def test_another_client_with_the_same_prompt_is_no_retry() -> None:
    refusals = Refusals()
    refusals.note(b"a", 10.0)
    assert refusals.waited(b"a", {}, 11.0) == refusals.waited(b"a", {"x-stainless-retry-count": "0"}, 11.0) == 0.0
    assert refusals.waited(b"b", RETRY, 11.0) == 0.0


def test_it_forgets() -> None:
    refusals = Refusals()
    refusals.note(b"a", 10.0)
    assert refusals.waited(b"a", RETRY, 11.0 + FOR) == 0.0
    refusals.note(b"b", 10.0)
    for number in range(KEPT):
        refusals.note(b"%d" % number, 10.0)
    assert refusals.waited(b"b", RETRY, 11.0) == 0.0 < refusals.waited(b"1", RETRY, 11.0)


@pytest.mark.parametrize("count", ["", "0", "-1", "x", "\u0663", "1.5"])
def test_what_is_no_count_is_no_retry(count: str) -> None:
    assert not is_retry({"x-stainless-retry-count": count})
