"""HTTP/1.1 answers in any pieces; what is none, or too much of one, is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syshaxd.unitclient.http_answer import MAX_HEAD, MAX_LINE, HttpAnswer, HttpError

CUTS = st.lists(st.integers(0, 400), max_size=12)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:end] for start, end in zip(edges, edges[1:])]


def chunked(parts: list[bytes]) -> bytes:
    body = b"".join(b"%X;x=y\r\n%b\r\n" % (len(part), part) for part in parts if part)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\nTrailer: 1\r\n\r\n"


@given(st.lists(st.binary(max_size=40), max_size=8), CUTS)
def test_a_chunked_body_in_any_pieces(parts: list[bytes], cuts: list[int]) -> None:
    answer = HttpAnswer()
    assert b"".join(answer.feed(piece) for piece in pieces(chunked(parts), cuts)) == b"".join(parts)
    assert answer.ended and answer.status == 200
    answer.end()


@given(st.binary(max_size=60), CUTS)
def test_a_body_of_known_length_and_one_to_the_end(body: bytes, cuts: list[int]) -> None:
    for field in (b"Content-Length: %d\r\n" % len(body), b""):
        answer = HttpAnswer()
        data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 503 Busy\r\nContent-Type: a/b\r\n" + field + b"\r\n" + body
        assert b"".join(answer.feed(piece) for piece in pieces(data, cuts)) == body
        assert (answer.status, answer.headers["content-type"], answer.ended) == (503, "a/b", bool(field))
        answer.end()
        assert answer.ended


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 16 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * (MAX_LINE + 1),
        b"x" * (MAX_HEAD + 1),
    ],
)
def test_what_is_no_answer_is_refused(data: bytes) -> None:
    with pytest.raises(HttpError):
        HttpAnswer().feed(data)


def test_an_answer_that_ends_early_is_refused() -> None:
    for data in (b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", chunked([b"abc"])[:-20]):
        answer = HttpAnswer()
        answer.feed(data)
        with pytest.raises(ConnectionResetError):
            answer.end()


@given(st.binary(max_size=200), CUTS)
def test_any_bytes_are_an_answer_or_an_error(data: bytes, cuts: list[int]) -> None:
    answer = HttpAnswer()
    try:
        for piece in pieces(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + data, cuts):
            answer.feed(piece)
    except HttpError:
        return
