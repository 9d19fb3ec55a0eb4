"""Stop strings and reasoning: any split of the text into chunks gives the same result."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshax_contract.stop_strings import StopMatcher
from syshaxd.runner.text import ReasoningSplitter, TextPipeline

ALPHABET = "abc<>/thinkë你"


def chunks_of(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:])]


def stopped(text: str, stops: list[str]) -> tuple[str, bool]:
    """The reference: the stop string that ends first; of those, the one that begins first."""
    for end in range(1, len(text) + 1):
        hits = [text[:end].rfind(stop) for stop in stops if text[:end].endswith(stop)]
        if hits:
            return text[: min(hits)], True
    return text, False


@given(
    st.text(alphabet="abc你", max_size=30),
    st.lists(st.text(alphabet="abc你", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=30),
)
def test_stop_strings_are_found_one_character_at_a_time(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher = StopMatcher(stops)
    out = "".join(matcher.feed(character) for character in text)
    assert (out + (matcher.flush() if matcher.matched is None else ""), matcher.matched is not None) == stopped(
        text, stops
    )


@given(
    st.text(alphabet="abc你", max_size=30),
    st.text(alphabet="abc你", min_size=1, max_size=4),
    st.lists(st.integers(0, 30), max_size=30),
)
def test_one_stop_string_in_any_chunks(text: str, stop: str, cuts: list[int]) -> None:
    matcher = StopMatcher([stop])
    out = "".join(matcher.feed(chunk) for chunk in chunks_of(text, cuts)) + matcher.flush()
    assert out == text.split(stop)[0]
    assert matcher.matched == (stop if stop in text else None)


def test_stop_strings_can_be_included() -> None:
    matcher = StopMatcher(["end"], include=True)
    assert matcher.feed("the en") + matcher.feed("d and more") == "the end"


def test_a_stop_string_counts_only_after_min_tokens() -> None:
    pipeline = TextPipeline(["x"], False, min_tokens=2, reasoning=False)
    assert pipeline.feed("ax", 1).content == "ax"
    assert pipeline.feed("bx", 2).content == "bx"
    assert pipeline.feed("cx", 3).content == "c"
    assert pipeline.stopped_by == "x"


@given(st.text(alphabet=ALPHABET, max_size=20), st.text(alphabet=ALPHABET, max_size=20), st.lists(st.integers(0, 60)))
@pytest.mark.parametrize("opened", [False, True])
def test_reasoning_in_any_chunks(opened: bool, thought: str, answer: str, cuts: list[int]) -> None:
    thought = thought.replace("<think>", "").replace("</think>", "")
    text = ("<think>" if opened else "") + thought + "</think>" + answer
    splitter = ReasoningSplitter()
    parts = [splitter.feed(chunk) for chunk in chunks_of(text, cuts)] + [splitter.flush()]
    assert "".join(part.reasoning for part in parts) == thought
    assert "".join(part.content for part in parts) == answer


def test_reasoning_that_never_ends_is_all_reasoning() -> None:
    splitter = ReasoningSplitter()
    parts = [splitter.feed("<thi"), splitter.feed("nk>on and on </th"), splitter.flush()]
    assert "".join(part.reasoning for part in parts) == "on and on </th"
    assert not any(part.content for part in parts)


def test_a_stop_string_inside_reasoning_ends_the_text() -> None:
    pipeline = TextPipeline(["STOP"], False, 0, reasoning=True)
    parts = [pipeline.feed("<think>a ST", 1), pipeline.feed("OP b</think>c", 2)]
    assert [part.reasoning for part in parts] == ["a ", ""]
    assert pipeline.stopped_by == "STOP"
