"""Bodies of requests: bounded in bytes, values, depth, digits and time; text that is text."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syshax_contract.error_form import BadBody
from syshax_contract.request_body import MAX_DEPTH, MAX_VALUES, Bodies, decoded, parse_object

MIB = 1 << 20
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=4), st.booleans())
def test_every_sound_object_is_read(body: dict[str, Any], ascii_: bool) -> None:
    assert parse_object(json.dumps(body, ensure_ascii=ascii_).encode()) == body


@given(st.binary(max_size=60))
@example(b'{"a": NaN}')
@example(b'{"a": -Infinity}')
@example('{"a": "x"}'.encode("utf-16"))
@example(b'{"a": "\xed\xa0\xbd"}')
@example(b'{"a": ' + b"9" * 5000 + b"}")
def test_anything_else_is_refused_with_400(data: bytes) -> None:
    try:
        parse_object(data)
    except BadBody as err:
        assert err.status == 400 and len(str(err)) < 400


HALVES = st.sampled_from(["\ud83d", "a\udc00", "\ud83dx"])


@given(HALVES, st.sampled_from(["prompt", "stop", "messages", "metadata", "\ud800"]))
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(half: str, field: str) -> None:
    for value in (half, [half], [{"role": "user", "content": half}], {half: 1}, {"a": {"b": [1, half]}}):
        with pytest.raises(BadBody, match="half of a surrogate pair") as caught:
            parse_object(json.dumps({"model": "m", field: value}).encode())
        assert caught.value.param == field.encode("utf-8", "replace").decode()


def test_a_whole_emoji_is_text_however_it_is_spelled() -> None:
    assert parse_object(b'{"a": "\\ud83d\\ude00 \\\\ud83d"}') == {"a": "\U0001f600 \\ud83d"}


DEEP = [b"[" * 100_000, b'{"a":' * 5000, b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}"]
MANY = [b"[1" + b",1" * (8 * MIB) + b"]", b"[[]" + b",[]" * (5 * MIB) + b"]", b'[""' + b',""' * (5 * MIB) + b"]"]


@pytest.mark.parametrize("value", DEEP, ids=["arrays", "objects", "one more than may be"])
def test_depth_is_bounded(value: bytes) -> None:
    with pytest.raises(BadBody, match="nested deeper than 128"):
        parse_object(value)


def test_the_deepest_that_may_be_can_be_written_again() -> None:
    body = parse_object(b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}")
    assert json.dumps(body)


@pytest.mark.parametrize("value", MANY, ids=["numbers", "arrays", "strings"])
def test_a_body_of_millions_of_values_is_refused_before_it_is_parsed(value: bytes) -> None:
    begun = time.process_time()
    with pytest.raises(BadBody, match=f"more than {MAX_VALUES} values"):
        parse_object(b'{"prompt":' + value + b"}")
    assert time.process_time() - begun < 3


def test_long_text_is_not_many_values() -> None:
    text = 'a, [b], {c}: "d" \\ ' * 300_000
    assert parse_object(json.dumps({"prompt": text}).encode())["prompt"] == text


@pytest.mark.parametrize("kind, pack", [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)])
def test_content_encodings(kind: str, pack: Any) -> None:
    assert decoded(pack(b"{}"), kind, 10) == b"{}"
    with pytest.raises(BadBody) as caught:
        decoded(pack(bytes(200 * MIB)) if kind != "identity" else b"x", kind if kind != "identity" else "br", MIB)
    assert caught.value.status == (413 if kind != "identity" else 415), "a bomb is not unpacked beyond the bound"
    if kind != "identity":
        for broken in (b"{}", b"", pack(b"x" * 999)[:-9]):
            with pytest.raises(BadBody, match="content-encoding says"):
                decoded(broken, kind, MIB)


async def _parts(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_all_bodies_being_read_share_one_budget() -> None:
    bodies = Bodies(100)
    with bodies.share() as first:
        assert await first.read(_parts(b"x" * 60), 80) == b"x" * 60
        with bodies.share() as second:
            with pytest.raises(BadBody) as caught:
                await second.read(_parts(b"y" * 30, b"y" * 30), 80)
            assert caught.value.status == 429
    with bodies.share() as third:
        assert await third.read(_parts(b"z" * 80), 80) == b"z" * 80, "given back, by whom was refused too"
        with pytest.raises(BadBody) as caught:
            await third.read(_parts(b"z"), 80)
        assert caught.value.status == 413
    assert bodies.held == 0
    bodies.close()


async def test_a_large_body_does_not_keep_the_loop() -> None:
    bodies = Bodies(1 << 30)
    data = b'{"prompt": [1' + b",1" * (MAX_VALUES - 10) + b"]}"
    work = asyncio.ensure_future(bodies.run(len(data), parse_object, data))
    turns = 0
    while not work.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 1 and len((await work)["prompt"]) == MAX_VALUES - 9
    bodies.close()
