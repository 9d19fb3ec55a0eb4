"""Stop strings: armed or not, in any pieces, the same end as a plain search finds."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from syshax_contract.stop_strings import StopMatcher

WORDS = st.text("ab", min_size=1, max_size=4)


def searched(pieces: list[tuple[str, bool]], stops: list[str]) -> tuple[str, str | None]:
    """The reference: after each armed piece, look for stop strings that end in it; the one that begins first counts."""
    whole = ""
    for piece, armed in pieces:
        old, whole = len(whole), whole + piece
        ends = [(end - len(s), s) for s in stops for end in range(old + 1, len(whole) + 1) if whole[:end].endswith(s)]
        if armed and ends:
            start, stop = min(ends, key=lambda hit: hit[0])
            return whole[:start], stop
    return whole, None


@given(st.lists(st.tuples(st.text("ab", max_size=4), st.booleans()), max_size=10), st.lists(WORDS, max_size=3))
def test_what_ends_in_armed_text_counts(pieces: list[tuple[str, bool]], stops: list[str]) -> None:
    text, stop = searched(pieces, stops)
    matcher = StopMatcher(stops)
    said = "".join(matcher.feed(piece, armed) for piece, armed in pieces)
    assert (said + matcher.flush(), matcher.matched) == (text, stop)


def test_long_stop_strings_that_almost_match_cost_no_more_than_their_length() -> None:
    matcher = StopMatcher([("a" * 4096) + str(number) for number in range(16)])
    begun = time.process_time()
    for _ in range(2000):
        matcher.feed("aaaa")
    assert time.process_time() - begun < 5, "16 x 4 KiB held against 8,000 characters"
