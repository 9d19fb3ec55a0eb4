"""The event-stream parser: any split of the bytes gives the same payloads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshaxd.unitclient.events import SseError, SseParser

STREAM = 'data: {"a": 1}\n\n: a comment\n\nevent: x\nid: 7\ndata: two\ndata: lines 你好\n\ndata: [DONE]\n\n'.encode()
PAYLOADS = [b'{"a": 1}', "two\nlines 你好".encode(), b"[DONE]"]


def parse(pieces: list[bytes]) -> list[bytes]:
    parser = SseParser()
    return [payload for piece in pieces for payload in parser.feed(piece)]


@given(st.lists(st.integers(0, len(STREAM))), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_any_split_and_line_end_gives_the_same_payloads(cuts: list[int], line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    # A stream of bare CRs is known to be over only by the byte that follows.
    stream += b":\n" if line_end == b"\r" else b""
    edges = [0, *sorted(cut * len(stream) // len(STREAM) for cut in cuts), len(stream)]
    assert parse([stream[a:b] for a, b in zip(edges, edges[1:])]) == PAYLOADS


def test_a_line_that_is_no_field_is_an_error() -> None:
    with pytest.raises(SseError, match="event-stream field"):
        parse([b"<html>502</html>\n\n"])


def test_an_event_without_end_is_bounded() -> None:
    with pytest.raises(SseError, match="more than 100 bytes"):
        SseParser(max_event=100).feed(b"data: " + b"x" * 200)


def test_byte_order_mark_and_missing_space() -> None:
    assert parse([b"\xef\xbb\xbfdata:x\n\n"]) == [b"x"]


def test_half_an_event_is_seen() -> None:
    parser = SseParser()
    parser.feed(b"data: x\n\ndata: ha")
    assert parser.partial
